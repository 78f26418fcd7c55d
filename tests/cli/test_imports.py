"""What the quick commands import: a small device pays for every module."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.processes import Device, Mesh

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "examples" / "cat.png"
HEAVY = {"aiohttp", "asyncio", "numpy", "PIL", "zeroconf", "cryptography", "structlog", "rich", "ai_edge_litert"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One real node for the commands to speak to."""
    with Mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh.start("only")[0]


def _run(node: Device, *arguments: str) -> tuple[str, set[str]]:
    """What a command that succeeds prints, and the packages it had imported at its end."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        "from meshnn.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=node.environment, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


def test_version_imports_nothing_heavy(node: Device) -> None:
    """`meshnn --version` starts with click alone."""
    out, imported = _run(node, "--version")
    assert out.startswith("meshnn, version ")
    assert not imported & HEAVY


@pytest.mark.integration
def test_ask_by_a_running_node_imports_nothing_heavy(node: Device) -> None:
    """The photo is read and sent as it is: no arrays, no event loop, no pictures in this process."""
    out, imported = _run(node, "ask", str(PHOTO))
    assert "cat" in out
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.integration
def test_status_for_scripts_imports_nothing_heavy(node: Device) -> None:
    """`--json` draws no tables."""
    out, imported = _run(node, "status", "--json")
    assert '"self"' in out
    assert not imported & HEAVY
