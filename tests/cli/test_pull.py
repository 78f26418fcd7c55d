"""`meshnn models pull`, `list` and `show`: from a real web server to a node, or to the state folder where none runs."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshnn import known_models
from meshnn.cli import group
from meshnn.errors import MeshError
from tests import web
from tests.web import Shelf
from tools.processes import Device, Done, Mesh

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
MODEL = (ROOT / "models" / "default.tflite").read_bytes()
SHA256 = hashlib.sha256(MODEL).hexdigest()
PHOTO = ROOT / "examples" / "cat.png"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to loopback goes there, whatever this machine's way to the internet is."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    """A web server that has the model."""
    with web.serving(MODEL) as made:
        yield made


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of one node."""
    with Mesh(tmp_path_factory.mktemp("mesh")) as made:
        made.start("only")
        yield made


@pytest.fixture
def node(mesh: Mesh) -> Device:
    """The node, asking no proxy for loopback."""
    device = mesh.devices["only"]
    device.environment.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    return device


@pytest.fixture
def idle(mesh: Mesh, tmp_path: Path) -> Device:
    """A device whose node does not run, with a state folder of its own."""
    return mesh.device(f"idle-{tmp_path.name}", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")


def _refused(done: Done, code: int, *words: str) -> None:
    assert (done.code, done.out) == (code, ""), (done.out, done.err)
    assert len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


def _downloads(device: Device) -> list[Path]:
    folder = device.folder / "downloads"
    return list(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.integration
def test_a_pulled_model_is_served(node: Device, shelf: Shelf) -> None:
    """Broken off once, resumed, checked, added under the address's last part; nothing of the download stays."""
    shelf.manners = [web.breaks_off(1_000_000)]
    done = node.meshnn("models", "pull", f"{shelf.address}/pulled.tflite#sha256={SHA256}")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("pulled is served: 2.0 MB")
    assert shelf.ranges == ["", "bytes=1000000-"]
    assert _downloads(node) == []
    answer = node.meshnn("ask", str(PHOTO), "--model", "pulled", "--json")
    assert answer.json()["predictions"][0]["label"] == "cat"
    again = node.meshnn("models", "pull", f"{shelf.address}/pulled.tflite#sha256={SHA256}")
    assert (again.code, again.out) == (0, "pulled is here already: nothing to download\n")
    assert len(shelf.asked) == 2
    other = f"{shelf.address}/other.tflite#sha256={'0' * 64}"
    _refused(node.meshnn("models", "pull", other, "--name", "pulled"), 4, "--replace")
    assert len(shelf.asked) == 2


@pytest.mark.integration
def test_what_is_no_model_is_refused_and_not_kept(node: Device, shelf: Shelf) -> None:
    """The right bytes of something else: exit 4 by the node, and the download is gone."""
    shelf.data = b"<html>please log in</html>" * 100
    _refused(node.meshnn("models", "pull", f"{shelf.address}/page.tflite"), 4, "page")
    assert _downloads(node) == []


@pytest.mark.integration
def test_wrong_bytes_exit_4_and_a_missing_file_exits_1(node: Device, shelf: Shelf) -> None:
    """One line each."""
    shelf.always = web.gives(MODEL[::-1])
    _refused(node.meshnn("models", "pull", f"{shelf.address}/m.tflite#sha256={SHA256}"), 4, "sha256", "deleted")
    shelf.always = web.status(404)
    _refused(node.meshnn("models", "pull", f"{shelf.address}/m.tflite"), 1, "404")
    assert [path.stat().st_size for path in _downloads(node) if path.suffix == ".part"] == [0]


@pytest.mark.integration
def test_a_running_node_lists_its_models_and_on_demand_the_catalogue(node: Device, shelf: Shelf) -> None:
    """Scripts find the mesh's models with their holders; `--catalogue` adds what can be pulled."""
    assert node.meshnn("models", "pull", f"{shelf.address}/listed.tflite").code == 0
    rows = node.meshnn("models", "list", "--json").json()
    assert {row["where"] for row in rows} == {"mesh"}
    listed = next(row for row in rows if row["name"] == "listed")
    assert (listed["digest"], listed["bytes"]) == (SHA256, len(MODEL))
    assert listed["holders"] == [node.status()["self"]]
    more = node.meshnn("models", "list", "--json", "--catalogue").json()
    assert {row["where"] for row in more} == {"mesh", "ships", "catalogue"}


@pytest.mark.integration
def test_the_default_is_shown_with_a_node_and_without(node: Device, idle: Device) -> None:
    """The same operators either way."""
    shown = [device.meshnn("models", "show", "default", "--json").json() for device in (node, idle)]
    assert shown[0]["operators"] == shown[1]["operators"]
    assert [each["digest"] for each in shown] == [SHA256, SHA256]


def test_without_a_node_a_pulled_model_is_stored(idle: Device, shelf: Shelf) -> None:
    """Kept for the node that will run; listed, shown and asked until then."""
    done = idle.meshnn("models", "pull", f"{shelf.address}/a%20b.tflite", "--name", "kept")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("kept is stored")
    assert _downloads(idle) == []
    rows = idle.meshnn("models", "list", "--json").json()
    assert {"name": "kept", "digest": SHA256, "bytes": len(MODEL), "holders": [], "where": "stored"} in rows
    assert {"ships", "catalogue"} <= {row["where"] for row in rows}
    assert len(idle.meshnn("models", "show", "kept", "--json").json()["operators"]) >= 20
    again = idle.meshnn("models", "pull", f"{shelf.address}/x.tflite#sha256={SHA256}", "--name", "kept")
    assert (again.code, len(shelf.asked)) == (0, 1)


def test_names_that_cannot_be_pulled(idle: Device) -> None:
    """Unknown: the choices are named. Shipped: nothing to do. A file: what to type instead."""
    _refused(idle.meshnn("models", "pull", "nothing"), 4, "'nothing'", "mobilenet_v2_1.0_224_quant")
    shipped = idle.meshnn("models", "pull", "default")
    assert (shipped.code, shipped.out) == (0, "default ships with meshnn: nothing to download\n")
    _refused(idle.meshnn("models", "pull", str(PHOTO)), 2, "models add")
    _refused(idle.meshnn("models", "pull", "ftp://127.0.0.1/m.tflite"), 2, "http")
    _refused(idle.meshnn("models", "pull", "http://127.0.0.1/"), 2, "--name")
    _refused(idle.meshnn("models", "show", "efficientnet_lite0"), 4, "meshnn models pull efficientnet_lite0")
    _refused(idle.meshnn("models", "show", "nothing"), 4, "nothing")
    assert _downloads(idle) == []


def _catalogue_of(folder: Path, url: str, sha256: str, size_bytes: int) -> Path:
    path = folder / "catalogue.toml"
    path.write_text(
        "[[model]]\n"
        f'name = "small"\nabout = "a test\'s"\nurl = "{url}"\nsha256 = "{sha256}"\nsize_bytes = {size_bytes}\n'
        'licence = "Apache-2.0"\ntried = true\ntask = "classification"\n'
    )
    return path


def _typed(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments, standalone_mode=False)


def test_a_name_of_the_catalogue_is_fetched_and_held_to_it(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Address, size and digest are the catalogue's; the licence is told."""
    state = ("--state-dir", str(tmp_path / "state"))
    paths = {"wrong": _catalogue_of(tmp_path, f"{shelf.address}/m.tflite", SHA256, len(MODEL) + 1)}
    monkeypatch.setattr(known_models, "shipped_file", lambda name: paths["wrong"])
    refused = _typed("models", "pull", "small", *state)
    assert isinstance(refused.exception, MeshError)
    assert refused.exception.exit_code == 4
    _catalogue_of(tmp_path, f"{shelf.address}/m.tflite", SHA256, len(MODEL))
    pulled = _typed("models", "pull", "small", *state)
    assert pulled.exception is None, pulled.exception
    assert pulled.stdout.splitlines()[0].startswith("small is stored: 2.0 MB")
    assert "Apache-2.0" in pulled.stdout
    rows = json.loads(_typed("models", "list", "--json", *state).stdout)
    assert [(row["name"], row["where"]) for row in rows] == [("small", "stored")]


def test_a_spoilt_catalogue_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not TOML, not of its shape: named, not crashed on; none at all is an empty one."""
    path = tmp_path / "catalogue.toml"
    monkeypatch.setattr(known_models, "shipped_file", lambda name: path)
    for text in ("= no", "x = 1", "[[model]]\nname = 1\n"):
        path.write_text(text)
        with pytest.raises(MeshError, match="cannot be read"):
            known_models.catalogue()
    monkeypatch.setattr(known_models, "shipped_file", lambda name: None)
    assert known_models.catalogue() == ()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_sees_a_bar(idle: Device, shelf: Shelf) -> None:
    """On stderr alone, and only where that is a terminal: stdout has the one line."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "meshnn", "models", "pull", f"{shelf.address}/barred.tflite"]
    environment = {**idle.environment, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    drawn = b""
    with os.fdopen(ours, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(4096):
                drawn += piece
        except OSError:
            pass  # what a terminal says when its last program has gone
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, drawn
    assert out.startswith("barred is stored")
    assert len(out.splitlines()) == 1
    assert b"barred" in drawn
    assert b"2.0/2.0 MB" in drawn
