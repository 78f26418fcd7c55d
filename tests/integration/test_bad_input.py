"""Bad input gets one clear line and its exit code, and the node lives on."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from meshnn.graph.builder import Builder
from meshnn.graph.writer import write
from tests import shared_data
from tools.processes import Device, Done, Mesh, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"
WAIT_S = 60.0
GARBAGE_ROUNDS = 40


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One node."""
    with Mesh(tmp_path_factory.mktemp("mesh")) as made:
        made.start("only")
        yield made


@pytest.fixture
def node(mesh: Mesh) -> Iterator[Device]:
    """The node; after each test it still answers."""
    device = mesh.devices["only"]
    yield device
    assert not device.dead(), device.log[-2000:]
    assert device.meshnn("ask", str(PHOTO)).code == 0


def _refused(done: Done, code: int, *words: str) -> None:
    """The exit code, nothing on stdout, one line on stderr with these words."""
    assert done.code == code, (done.code, done.out, done.err)
    assert done.out == ""
    assert len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


def _truncated_jpeg(path: Path) -> None:
    Image.effect_noise((300, 300), 60).convert("RGB").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def _bomb(path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(path, "PNG")


def _empty_archive(path: Path) -> None:
    np.savez(path, nothing=np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("text.jpg", lambda path: path.write_text("no photo")),
        ("cut.jpg", _truncated_jpeg),
        ("bomb.png", _bomb),
        ("empty.png", lambda path: path.write_bytes(b"")),
        ("folder", lambda path: path.mkdir()),
        ("absent.jpg", lambda path: None),
        ("wrong.npz", _empty_archive),
        ("broken.npz", lambda path: path.write_bytes(b"PK\x03\x04 but no archive")),
    ],
)
def test_an_input_that_cannot_be_read_exits_7(node: Device, tmp_path: Path, name: str, make: object) -> None:
    """Whatever is no photo and no tensors of the model."""
    path = tmp_path / name
    make(path)  # type: ignore[operator]
    _refused(node.meshnn("ask", str(path)), 7, name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.tflite", b"this is no model at all, but long enough to look at"),
        ("empty.tflite", b""),
        ("truncated.tflite", MODEL.read_bytes()[: MODEL.stat().st_size // 2]),
        ("header.tflite", MODEL.read_bytes()[:64]),
    ],
)
def test_a_file_that_is_no_model_exits_4(node: Device, tmp_path: Path, name: str, data: bytes) -> None:
    """Text, nothing, a file broken off."""
    path = tmp_path / name
    path.write_bytes(data)
    _refused(node.meshnn("models", "add", str(path)), 4)
    assert node.status()["models"] == []


def test_a_model_file_that_is_not_there_exits_4(node: Device, tmp_path: Path) -> None:
    """A path of nothing."""
    _refused(node.meshnn("models", "add", str(tmp_path / "absent.tflite")), 4, "absent.tflite")


def test_a_custom_operator_without_a_runtime_is_refused_by_name(node: Device, tmp_path: Path) -> None:
    """The runtime lacks it: exit 4, and the line names the operator."""
    path = tmp_path / "custom.tflite"
    builder = Builder(np.random.default_rng(0))
    made = builder.operator("CUSTOM:NoSuchOperator", (builder.input(1, 4),), (1, 4))
    path.write_bytes(b"".join(bytes(chunk) for chunk in write(builder.graph(made)).chunks()))
    _refused(node.meshnn("models", "add", str(path)), 4, "NoSuchOperator")


def test_an_unknown_model_exits_4_naming_the_choices(node: Device) -> None:
    """A name nobody added."""
    _refused(node.meshnn("ask", str(PHOTO), "--model", "nothing"), 4, "nothing")
    _refused(node.meshnn("models", "remove", "nothing"), 4, "nothing")


def test_usage_exits_2(node: Device) -> None:
    """What click refuses, and what cannot be meant."""
    assert node.meshnn("ask").code == 2
    assert node.meshnn("bench", "--requests", "1", "--seconds", "1").code == 2
    assert node.meshnn("join", "--memory", "much").code == 2
    assert node.meshnn("nonsense").code == 2


def test_no_node_exits_3(mesh: Mesh, node: Device) -> None:
    """`status` and `leave` where nothing runs."""
    del node
    idle = mesh.device("idle")
    _refused(idle.meshnn("status"), 3, "meshnn join")
    _refused(idle.meshnn("leave"), 3, "meshnn join")


def test_a_second_node_on_the_state_folder_exits_1(mesh: Mesh, node: Device) -> None:
    """One folder, one node."""
    other = mesh.device("other", MESHNN_STATE_DIR=str(node.folder))
    _refused(other.meshnn("join"), 1, "state folder")


@pytest.mark.parametrize("option", ["--port", "--http-port"])
def test_a_port_in_use_exits_1(mesh: Mesh, node: Device, option: str) -> None:
    """An explicit port that is taken is an error; the default goes on to the next."""
    del node
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        _refused(mesh.device("second").meshnn("join", option, port), 1, port)


def test_a_model_that_fits_nowhere_exits_5_at_once(node: Device, mesh: Mesh) -> None:
    """No memory for any plan: exit 5 long before the deadline, and the ask says the same."""
    del node
    small = mesh.device("small", "--memory", "200KB", MESHNN_MESH=f"{mesh.mesh}-small")
    small.start()
    small.wait_ready()
    done = small.meshnn("models", "add", str(MODEL), "--deadline", "60")
    _refused(done, 5, "MB")
    asked = small.meshnn("ask", str(PHOTO), "--model", "default", "--deadline", "3")
    assert asked.code == 5, asked.err
    small.stop()


def test_a_deadline_that_passes_exits_6(node: Device) -> None:
    """A deadline shorter than any answer."""
    _refused(node.meshnn("ask", str(PHOTO), "--deadline", "0.001"), 6)


def test_garbage_on_every_port_changes_nothing(node: Device) -> None:
    """Bytes of no protocol on the peers' port, its datagrams and the API: no leak, and it goes on serving."""
    note = node.status()
    port = int(next(m["address"] for m in note["members"] if m["id"] == note["self"]).rpartition(":")[2])
    http_port = int(str(_note(node)["http_port"]))
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    _throw_garbage(port, http_port)
    until(lambda: len(process.net_connections()) < 40, WAIT_S, "garbage connections are closed")
    before = process.num_fds(), process.num_threads()
    _throw_garbage(port, http_port)
    until(lambda: process.num_fds() <= before[0] + 3, WAIT_S, "descriptors come back")
    assert process.num_threads() <= before[1] + 3


def test_leave_says_goodbye_and_the_node_ends_with_0(mesh: Mesh, node: Device) -> None:
    """The others list it as left; its note is gone; `leave` again finds no node."""
    guest = mesh.start("guest")[0]
    until(lambda: node.sees("guest"), WAIT_S, "the guest is seen")
    done = guest.meshnn("leave")
    assert (done.code, done.out) == (0, "left\n")
    assert guest.process is not None
    assert guest.process.wait(WAIT_S) == 0, guest.log
    until(lambda: node.states().get("guest") == "left", WAIT_S, "the guest is listed as left")
    assert not (guest.folder / "node.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_in_order(mesh: Mesh, node: Device, number: signal.Signals) -> None:
    """The exit status is 128 + the signal's number, and the others know at once."""
    name = f"passing{number}"
    guest = mesh.start(name)[0]
    until(lambda: node.sees(name), WAIT_S, "the guest is seen")
    assert guest.stop(number) == 128 + number, guest.log
    until(lambda: node.states().get(name) == "left", WAIT_S, "the guest is listed as left")


def test_a_stored_model_is_there_once_the_node_starts(mesh: Mesh, node: Device) -> None:
    """`models add` without a node keeps the file; the node that starts on the folder serves it."""
    del node
    later = mesh.device("later", MESHNN_MESH=f"{mesh.mesh}-later")
    done = later.meshnn("models", "add", str(MODEL), "--name", "kept")
    assert done.code == 0, done.err
    alone = later.meshnn("ask", str(PHOTO), "--json")
    assert alone.code == 0, alone.err
    assert "alone" in alone.err
    assert alone.json()["model"] == "kept"
    later.start()
    later.wait_ready()
    answered = later.meshnn("ask", str(PHOTO), "--model", "kept", "--json")
    assert answered.code == 0, answered.err
    assert answered.json()["predictions"][0]["label"] == "cat"
    later.stop()


def test_a_model_whose_operators_the_runtime_has_passes_whole(node: Device) -> None:
    """A real model of the shared data is added, listed, asked and removed."""
    model = shared_data.model("coral__mobilenet_v2_1.0_224_quant.tflite")
    assert node.meshnn("models", "add", str(model), "--name", "birds").code == 0
    done = node.meshnn("ask", str(shared_data.photo("coral_parrot.jpg")), "--json")
    assert "macaw" in done.json()["predictions"][0]["label"], done.out
    assert node.meshnn("models", "remove", "birds").code == 0
    assert node.status()["models"] == []


def _note(device: Device) -> dict[str, object]:
    return dict(json.loads((device.folder / "node.json").read_text()))


def _throw_garbage(port: int, http_port: int) -> None:
    """Random bytes, a TLS hello cut short, a half request, datagrams of every size."""
    for number in range(GARBAGE_ROUNDS):
        for target in (port, http_port):
            with socket.create_connection(("127.0.0.1", target), timeout=30) as stream:
                stream.sendall((b"\x16\x03\x01\x02\x00" if number % 2 else b"") + os.urandom(1 + 7 * number))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(os.urandom(1 + 30 * number), ("127.0.0.1", port))
