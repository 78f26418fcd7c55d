"""The set-up script, run for real in a folder of its own, with stand-ins for Python and uv that only note their calls.

The installers themselves stay out: a test reaches no registry.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "set_up.sh"
TOOLS = ("sh", "cat", "cksum", "dirname", "rm", "mkdir", "cp", "chmod")

# Notes its call; answers as a Python of the version and with the modules that the test gives it. Asked for an
# environment, it puts a copy of itself there, as venv does.
PYTHON = """#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
case "$*" in
    *"version_info < (3, 11)"*) exit %(too_old)d ;;
    *sys.executable*) echo "$0" ;;
    *"import venv, ensurepip"*) exit %(no_venv)d ;;
    *"import pip"*) exit 0 ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""

UV = """#!/bin/sh
echo "uv $*" >>"$CALLS"
case "$*" in
    venv*) mkdir -p .venv/bin && cp "$HERE/bin/python3" .venv/bin/python ;;
esac
"""


class Bench:
    """A copy of the script in an empty project, and a PATH that holds only what a test puts there."""

    def __init__(self, here: Path) -> None:
        """Lay out project and PATH beneath `here`."""
        self.here = here
        self.project = here / "project"
        self.calls = here / "calls"
        (self.project / "tools").mkdir(parents=True)
        (here / "bin").mkdir()
        shutil.copy(SCRIPT, self.project / "tools" / "set_up.sh")
        (self.project / "requirements-dev.txt").write_text("one==1 --hash=sha256:00\n", encoding="utf-8")
        (self.project / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, f"no {tool} on this machine"
            (here / "bin" / tool).symlink_to(found)

    def put(self, name: str, text: str) -> None:
        """A program on the PATH."""
        path = self.here / "bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def python(self, name: str = "python3", *, too_old: bool = False, no_venv: bool = False) -> None:
        """A Python on the PATH."""
        self.put(name, PYTHON % {"too_old": too_old, "no_venv": no_venv})

    def run(self) -> tuple[int, str, list[str]]:
        """Run the script; its exit code, what it said, and the calls it made in this run."""
        self.calls.write_text("", encoding="utf-8")
        environ = {"PATH": str(self.here / "bin"), "CALLS": str(self.calls), "HERE": str(self.here)}
        done = subprocess.run(
            ["/bin/sh", str(self.project / "tools" / "set_up.sh")],
            env=environ,
            cwd=os.sep,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stdout == ""
        return done.returncode, done.stderr, self.calls.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty project with the script in it."""
    return Bench(tmp_path)


def test_without_uv_it_uses_venv_and_pip_with_hashes(bench: Bench) -> None:
    """On a machine with Python alone, venv makes the environment and pip installs the hashed lock, then the project."""
    bench.python()
    code, said, calls = bench.run()
    assert (code, len(said.splitlines())) == (0, 1)
    assert any(call.endswith("-m venv --clear .venv") for call in calls)
    installs = [call for call in calls if " install " in call]
    assert "--require-hashes -r requirements-dev.txt" in installs[0]
    assert "--no-deps --no-build-isolation --editable ." in installs[1]


def test_uv_is_preferred(bench: Bench) -> None:
    """Where uv is installed it makes the environment and installs, with hashes demanded too."""
    bench.python()
    bench.put("uv", UV)
    code, _, calls = bench.run()
    assert code == 0
    assert [call.split()[1] for call in calls if call.startswith("uv")] == ["venv", "pip", "pip"]
    assert any("--require-hashes -r requirements-dev.txt" in call for call in calls)
    assert not any("-m venv" in call or "-m pip" in call for call in calls)


def test_nothing_is_done_twice(bench: Bench) -> None:
    """A second run calls nothing and says nothing; a changed lock or project file installs again."""
    bench.python()
    assert bench.run()[0] == 0
    assert bench.run() == (0, "", [])
    for name in ("requirements-dev.txt", "pyproject.toml"):
        with (bench.project / name).open("a", encoding="utf-8") as file:
            file.write("# more\n")
        assert any(" install " in call for call in bench.run()[2])
        assert bench.run() == (0, "", [])


def test_a_failed_installation_is_tried_again(bench: Bench) -> None:
    """Nothing is taken for done that was not: a failure of the installer is the script's own, and leaves no stamp."""
    bench.python()
    bench.put("uv", "#!/bin/sh\nexit 7\n")
    assert bench.run()[0] == 7
    bench.put("uv", UV)
    code, _, calls = bench.run()
    assert code == 0
    assert any(" install " in call for call in calls)


def test_a_missing_venv_module_is_one_line(bench: Bench) -> None:
    """Debian ships Python without venv: one line names the package to install."""
    bench.python(no_venv=True)
    code, said, calls = bench.run()
    assert code != 0
    assert said == "set-up: Python's venv module is missing: on Debian, apt install python3-venv\n"
    assert not any(" install " in call for call in calls)


def test_a_missing_python_is_one_line(bench: Bench) -> None:
    """Without Python 3.11 one line says so."""
    bench.python(too_old=True)
    code, said, _ = bench.run()
    assert code != 0
    assert len(said.splitlines()) == 1
    assert "3.11" in said


def test_an_old_python3_is_passed_over(bench: Bench) -> None:
    """Where `python3` is an older version, or a shim of none, the first that is new enough serves."""
    bench.python("python3", too_old=True)
    bench.python("python3.13")
    code, _, calls = bench.run()
    assert code == 0
    assert any(call.startswith("python3.13 -m venv") for call in calls)
    assert not any(call.startswith("python3 -m venv") for call in calls)


def test_a_stale_environment_is_made_again(bench: Bench) -> None:
    """An environment whose Python is gone is removed and made anew, not repaired in place."""
    bench.python()
    assert bench.run()[0] == 0
    (bench.project / ".venv" / "bin" / "python").unlink()
    left = bench.project / ".venv" / "left"
    left.write_text("", encoding="utf-8")
    code, _, calls = bench.run()
    assert code == 0
    assert not left.exists()
    assert any("-m venv" in call for call in calls)
