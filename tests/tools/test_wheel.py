"""What a person installs: the wheel holds the model and the catalogue, is small, and answers by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import meshnn
from tools.processes import Done

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "examples" / "cat.png"
WHEEL_BYTES_MAX = 5_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the repository, without a network; nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("dist")
    program = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, as an installer lays them out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_is_small_and_named_for_its_version(wheel: Path) -> None:
    """Under 5 MB, for any system."""
    assert wheel.name == f"meshnn-{meshnn.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < WHEEL_BYTES_MAX


def test_the_wheel_holds_the_package_the_model_and_nothing_of_the_workshop(unpacked: Path) -> None:
    """Every module, the very model and catalogue of the repository; no tests, tools, photos or caches."""
    models = unpacked / "meshnn" / "models"
    assert sorted(path.name for path in models.iterdir()) == ["catalogue.toml", "default.tflite"]
    for path in models.iterdir():
        assert path.read_bytes() == (ROOT / "models" / path.name).read_bytes()
    modules = {path.relative_to(ROOT) for path in (ROOT / "meshnn").rglob("*.py")}
    assert {path.relative_to(unpacked) for path in unpacked.rglob("*.py")} == modules
    assert {path.name for path in unpacked.iterdir()} == {"meshnn", f"meshnn-{meshnn.__version__}.dist-info"}
    assert not list(unpacked.rglob("__pycache__"))


def test_the_wheel_declares_the_command_and_what_it_needs(unpacked: Path) -> None:
    """`meshnn` on the path after an installation; the dependencies and the licence of pyproject.toml."""
    info = unpacked / f"meshnn-{meshnn.__version__}.dist-info"
    assert "meshnn = meshnn.cli:main" in (info / "entry_points.txt").read_text()
    metadata = (info / "METADATA").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    unconditional = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if "Requires-Dist" in line]
    assert {line for line in unconditional if ";" not in line} == {
        line for line in project["dependencies"] if ";" not in line
    }
    assert "License-Expression: Apache-2.0" in metadata
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def _typed(unpacked: Path, home: Path, *arguments: str) -> Done:
    """A command run from the unpacked wheel, somewhere else than the repository, with an empty home."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("MESHNN_", "XDG_"))},
        "HOME": str(home),
        "PYTHONPATH": str(unpacked),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MESHNN_INTERFACE": "127.0.0.1",
        "MESHNN_MESH": f"wheel-{os.getpid()}",
    }
    program = "import sys, meshnn.cli; sys.stderr.write(meshnn.__file__ + '\\n'); meshnn.cli.main()"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False)
    place, _, err = done.stderr.partition("\n")
    assert place == str(unpacked / "meshnn" / "__init__.py")
    return Done(done.returncode, done.stdout, err)


def test_the_first_question_after_an_installation_is_answered(unpacked: Path, tmp_path: Path) -> None:
    """No mesh, no download, no settings: `meshnn ask examples/cat.png` says cat, and that it answered alone."""
    done = _typed(unpacked, tmp_path, "ask", str(PHOTO))
    assert done.code == 0, done.err
    assert done.out.startswith(f"{PHOTO}: cat ")
    assert "with default" in done.out
    assert done.err == "meshnn: no mesh found; this device answers alone\n"


def test_an_installation_finds_its_catalogue(unpacked: Path, tmp_path: Path) -> None:
    """`models list` names what ships and what can be pulled."""
    done = _typed(unpacked, tmp_path, "models", "list")
    assert done.code == 0, done.err
    assert done.out.startswith("default\t2.0 MB\tships with meshnn\t")
    assert "mobilenet_v2_1.0_224_quant\t3.6 MB\tmeshnn models pull\t" in done.out
