"""Three real nodes on loopback: they find each other, share the shipped model, answer, and lose one of them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tools.processes import Device, Mesh, until
from tools.whole import outputs_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"
NAMES = ("one", "two", "three")
WAIT_S = 90.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Three devices that hold the shipped model only together; it was added on the first."""
    with Mesh(tmp_path_factory.mktemp("mesh")) as made:
        devices = made.start(*NAMES, options=("--memory", "3MB"))
        until(lambda: all(device.sees(*NAMES) for device in devices), WAIT_S, "the devices find each other")
        added = devices[0].meshnn("models", "add", str(MODEL), "--name", "photos", "--deadline", "90")
        assert added.code == 0, added.err
        yield made


def _asked(device: Device, folder: Path, *options: str) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """The JSON line and the tensors of one answer."""
    done = device.meshnn("ask", str(PHOTO), "--json", "--tensors", str(folder), *options)
    assert done.code == 0, done.err + done.out
    with np.load(folder / f"{PHOTO.stem}.npz", allow_pickle=False) as arrays:
        return done.json(), dict(arrays)


@pytest.mark.parametrize("name", NAMES)
def test_any_device_answers_byte_for_byte(mesh: Mesh, name: str, tmp_path: Path) -> None:
    """An ask from each device gives the whole model's bytes, run by several devices."""
    answer, arrays = _asked(mesh.devices[name], tmp_path)
    inputs = {key.removeprefix("input:"): value for key, value in arrays.items() if key.startswith("input:")}
    expected = outputs_of(MODEL, inputs)
    for tensor, array in expected.items():
        assert arrays[f"output:{tensor}"].tobytes() == array.tobytes()
    assert answer["predictions"][0]["label"] == "cat"  # type: ignore[index]
    stages = answer["plan"]["stages"]  # type: ignore[index]
    assert len({stage["device_id"] for stage in stages}) >= 2
    assert stages[0]["operators"][0] == 0
    assert answer["exact"] is True


def test_answers_have_the_shape_that_scripts_rely_on(mesh: Mesh, tmp_path: Path) -> None:
    """The keys of the ask line are those of the contract, in types too."""
    answer, _ = _asked(mesh.devices["two"], tmp_path, "--top", "2", "--model", "photos")
    assert set(answer) == {"input", "ok", "model", "predictions", "latency_ms", "attempts", "exact", "plan"}
    assert (answer["input"], answer["ok"], answer["model"]) == (str(PHOTO), True, "photos")
    assert len(answer["predictions"]) == 2  # type: ignore[arg-type]
    assert set(answer["predictions"][0]) == {"index", "label", "score"}  # type: ignore[index]
    assert set(answer["plan"]) == {"epoch", "stages"}  # type: ignore[call-overload]
    assert set(answer["plan"]["stages"][0]) == {  # type: ignore[index]
        "device",
        "device_id",
        "operators",
        "split",
        "compute_ms",
        "bytes_in",
    }


def test_status_has_the_shape_that_scripts_rely_on(mesh: Mesh) -> None:
    """The keys of `status --json` are those of the contract; every id is a device id; two hold the model."""
    status = mesh.devices["three"].status()
    assert {"mesh", "self", "leader", "term", "epoch", "members", "models", "plans"} <= set(status)
    ids = {member["id"] for member in status["members"]}
    assert status["self"] in ids
    assert status["leader"] in ids
    for member in status["members"]:
        assert {"id", "name", "state", "address", "memory_mb", "speed"} <= set(member)
        assert member["state"] in {"alive", "suspect", "dead", "left"}
    model = next(row for row in status["models"] if row["name"] == "photos")
    assert set(model) == {"name", "digest", "bytes", "holders"}
    assert len(model["holders"]) >= 2
    assert status["epoch"].startswith(f"{status['plans'][0]['epoch'].split('.')[0]}.")


def test_several_inputs_come_in_order_and_the_first_failure_decides(mesh: Mesh, tmp_path: Path) -> None:
    """A broken photo between two good ones: three lines, exit 7."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no photo")
    done = mesh.devices["one"].meshnn("ask", str(PHOTO), str(broken), str(PHOTO), "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["ok"] for line in lines] == [True, False, True]
    assert lines[1]["error"]["code"] == "input_error"
    assert done.code == 7


def test_raw_tensors_go_in_and_come_out(mesh: Mesh, tmp_path: Path) -> None:
    """What `--tensors` wrote is itself an input, and gives the same output; equal stems get a number."""
    _, arrays = _asked(mesh.devices["one"], tmp_path)
    given = {key: value for key, value in arrays.items() if key.startswith("input:")}
    np.savez(tmp_path / "again.npz", **given)  # type: ignore[arg-type]
    again = str(tmp_path / "again.npz")
    done = mesh.devices["two"].meshnn("ask", again, again, "--json", "--tensors", str(tmp_path / "out"))
    assert done.code == 0, done.err
    for name in ("again.npz", "again-2.npz"):
        with np.load(tmp_path / "out" / name, allow_pickle=False) as found:
            outputs = [key for key in arrays if key.startswith("output:")]
            assert all(found[key].tobytes() == arrays[key].tobytes() for key in outputs)


def test_bench_checks_every_answer(mesh: Mesh) -> None:
    """`bench --check` under concurrency finds nothing failed and nothing wrong."""
    done = mesh.devices["two"].meshnn(
        "bench", "--model", "photos", "--requests", "60", "--concurrency", "4", "--check", "--json"
    )
    assert done.code == 0, done.err
    report = done.json()
    assert (report["ok"], report["failed"], report["wrong"]) == (60, 0, 0)
    assert set(report) == {"ok", "failed", "wrong", "throughput_per_s", "latency_ms", "attempts_max"}
    assert set(report["latency_ms"]) == {"p50", "p95", "p99", "max"}


def test_the_api_refuses_a_foreign_web_page(mesh: Mesh) -> None:
    """A request with a Host or Origin that is not this machine's is refused."""
    note = json.loads((mesh.devices["one"].folder / "node.json").read_text())
    request = urllib.request.Request(
        f"http://127.0.0.1:{note['http_port']}/api/v1/status", headers={"Host": "evil.example"}
    )
    with pytest.raises(urllib.request.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)


def test_a_caller_without_a_node_asks_the_mesh_nearby(mesh: Mesh, tmp_path: Path) -> None:
    """`ask` where no node runs finds the mesh by mDNS (or a named peer) and is answered by it."""
    note = json.loads((mesh.devices["one"].folder / "node.json").read_text())
    visitor = mesh.device("visitor", MESHNN_PEER=f"127.0.0.1:{note['port']}")
    done = visitor.meshnn("ask", str(PHOTO), "--json", "--model", "photos", "--tensors", str(tmp_path))
    del mesh.devices["visitor"]
    assert done.code == 0, done.err
    answer = done.json()
    assert answer["model"] == "photos"
    assert len(answer["plan"]["stages"]) >= 2
    assert (tmp_path / f"{PHOTO.stem}.npz").stat().st_size > 0


def test_a_name_is_kept_for_its_file(mesh: Mesh, tmp_path: Path) -> None:
    """Another file under a name in use is refused with exit 4; a second name for the same file is fine."""
    other = tmp_path / "other.tflite"
    other.write_bytes(MODEL.read_bytes() + b"\0" * 16)
    refused = mesh.devices["two"].meshnn("models", "add", str(other), "--name", "photos")
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert "--replace" in refused.err


def test_the_answer_still_comes_when_a_worker_is_killed(mesh: Mesh, tmp_path: Path) -> None:
    """Kill -9 of a device that works: the next asks are answered, right; the others list it as dead."""
    answer, _ = _asked(mesh.devices["one"], tmp_path / "before")
    workers = {stage["device"] for stage in answer["plan"]["stages"]} - {"one"}  # type: ignore[index]
    victim = mesh.devices[sorted(workers)[0]]
    victim.kill()
    for number in range(3):
        _, arrays = _asked(mesh.devices["one"], tmp_path / f"after{number}")
        inputs = {key.removeprefix("input:"): value for key, value in arrays.items() if key.startswith("input:")}
        for tensor, array in outputs_of(MODEL, inputs).items():
            assert arrays[f"output:{tensor}"].tobytes() == array.tobytes()
    until(lambda: mesh.devices["one"].states()[victim.name] == "dead", WAIT_S, "the death is known")
    victim.start()
    victim.wait_ready()
    until(lambda: mesh.devices["one"].sees(*NAMES), WAIT_S, "the device comes back")


def test_npz_of_the_contract_has_names_of_the_file(mesh: Mesh, tmp_path: Path) -> None:
    """The arrays are keyed by the tensors' own names in the file."""
    _, arrays = _asked(mesh.devices["one"], tmp_path)
    expected = outputs_of(
        MODEL, {key.removeprefix("input:"): v for key, v in arrays.items() if key.startswith("input:")}
    )
    assert {f"output:{name}" for name in expected} == {key for key in arrays if key.startswith("output:")}
