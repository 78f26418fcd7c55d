"""The exit code and the one line of what can go wrong before a node is asked, or without one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meshnn import client
from tools.processes import Device, Done, Mesh

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Device]:
    """A device without a node, and a mesh of its own name that nobody is in."""
    with Mesh(tmp_path) as mesh:
        yield mesh.device("idle")


def _refused(done: Done, code: int, *words: str) -> None:
    """The exit code, nothing on stdout, one line on stderr with these words."""
    assert (done.code, done.out) == (code, ""), (done.out, done.err)
    assert len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize(
    "typed",
    [
        ("ask", "x.jpg", "--top", "0"),
        ("ask", "x.jpg", "--top", "many"),
        ("ask", "x.jpg", "--deadline", "0"),
        ("ask", "x.jpg", "--nonsense"),
        ("models",),
        ("models", "add"),
        ("models", "pull"),
        ("models", "list", "extra"),
        ("bench", "--requests", "0"),
        ("join", "extra"),
    ],
)
def test_wrong_usage_exits_2(idle: Device, typed: tuple[str, ...]) -> None:
    """What click refuses; no node is looked for, nothing printed on stdout but help."""
    done = idle.meshnn(*typed)
    assert done.code == 2, done.err
    assert "Usage:" in done.out + done.err


@pytest.mark.parametrize(
    ("typed", "word"),
    [
        (("join", "--peer", "nowhere"), "HOST:PORT"),
        (("join", "--port", "99999"), "--port"),
        (("join", "--interface", "eth0"), "IP address"),
        (("join", "--threads", "0"), "--threads"),
        (("join", "--name", ""), "--name"),
        (("join", "--config", "absent.toml"), "absent.toml"),
        (("bench",), "--requests"),
    ],
)
def test_what_cannot_be_meant_exits_2_in_one_line(idle: Device, typed: tuple[str, ...], word: str) -> None:
    """Settings that cannot be read are named by where they stand."""
    _refused(idle.meshnn(*typed), 2, word)


@pytest.mark.parametrize(
    "typed", [("plan", "show"), ("models", "remove", "x"), ("bench", "--requests", "1"), ("status", "--json")]
)
def test_commands_that_need_a_node_exit_3_without_one(idle: Device, typed: tuple[str, ...]) -> None:
    """The line says how to start one."""
    _refused(idle.meshnn(*typed), 3, "meshnn join")


@pytest.mark.parametrize(
    ("typed", "word"),
    [
        (("models", "show", str(PHOTO)), "cat"),
        (("models", "add", str(PHOTO)), ""),
        (("models", "add", "absent.tflite"), "absent.tflite"),
        (("models", "add", str(MODEL), "--name", "a/b"), "cannot name a model"),
        (("ask", str(PHOTO), "--model", "nothing"), "nothing"),
    ],
)
def test_models_that_are_none_exit_4_without_a_node_too(idle: Device, typed: tuple[str, ...], word: str) -> None:
    """A photo given for a model, a name that cannot be one, a name nobody knows."""
    done = idle.meshnn(*typed)
    assert (done.code, done.out) == (4, ""), done
    assert word in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_an_unreadable_input_is_said_before_a_mesh_is_looked_for(idle: Device, tmp_path: Path) -> None:
    """One line, exit 7: no word of an answer alone that never came."""
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("absent.png", "empty.png", "."):
        _refused(idle.meshnn("ask", str(tmp_path / name)), 7, str(tmp_path / name))


def test_several_inputs_are_each_answered_and_the_first_failure_is_the_code(idle: Device, tmp_path: Path) -> None:
    """A missing file, a photo, tensors of the wrong name: three lines of JSON in order, exit 7."""
    np.savez(tmp_path / "wrong.npz", nothing=np.zeros(3))
    inputs = [str(tmp_path / "absent.jpg"), str(PHOTO), str(tmp_path / "wrong.npz")]
    done = idle.meshnn("ask", "--json", *inputs)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 7, done.err
    assert [line["input"] for line in lines] == inputs
    assert [line["ok"] for line in lines] == [False, True, False]
    assert lines[0]["error"]["code"] == "input_error"
    assert lines[1]["predictions"][0]["label"] == "cat"


def test_tensors_of_equal_stems_do_not_overwrite_each_other(idle: Device, tmp_path: Path) -> None:
    """`cat.npz`, then `cat-2.npz`; they can be asked about again and give the same bytes."""
    folder = tmp_path / "tensors"
    assert idle.meshnn("ask", str(PHOTO), str(PHOTO), "--tensors", str(folder)).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["cat-2.npz", "cat.npz"]
    again = tmp_path / "again"
    assert idle.meshnn("ask", str(folder / "cat.npz"), "--tensors", str(again)).code == 0
    with np.load(folder / "cat.npz") as first, np.load(again / "cat.npz") as second:
        assert set(first) == set(second)
        assert all(first[key].tobytes() == second[key].tobytes() for key in first)


def test_tensors_where_they_cannot_be_written_exit_1(idle: Device, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    done = idle.meshnn("ask", str(PHOTO), "--tensors", str(tmp_path / "file" / "inside"))
    assert done.code == 1
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err


def test_a_note_that_a_power_cut_left_behind_is_no_node(idle: Device) -> None:
    """Its process number belongs to another by now, and nothing listens there: this device answers alone."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        note = {"http_port": bound.getsockname()[1], "pid": os.getpid()}
        (idle.folder / "node.json").write_text(json.dumps(note))
        done = idle.meshnn("ask", str(PHOTO))
        assert (done.code, "alone" in done.err) == (0, True), done.err
        (idle.folder / "node.json").write_text(json.dumps(note))
        _refused(idle.meshnn("status"), 3, "meshnn join")


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"http_port": "x", "pid": 1}', '{"pid": 1}'])
def test_a_spoilt_note_is_no_node(tmp_path: Path, text: str) -> None:
    """Whatever stands in it."""
    (tmp_path / "node.json").write_text(text)
    assert client.find(tmp_path) is None


def test_a_reader_that_goes_away_is_no_fault(idle: Device) -> None:
    """`meshnn ... | head -1`: no traceback."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as out:
        command = [sys.executable, "-m", "meshnn", "models", "show", str(MODEL), "--json"]
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, env=idle.environment, cwd=ROOT, timeout=120, check=False
        )
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1


def test_help_names_every_command_and_the_exit_codes(idle: Device) -> None:
    """The first page a person sees."""
    done = idle.meshnn("--help")
    assert done.code == 0
    for word in ("join", "ask", "status", "models", "bench", "leave", "Exit codes"):
        assert word in done.out
    for name in ("add", "list", "show", "remove", "pull"):
        assert name in idle.meshnn("models", "--help").out
