"""The schema package is needed to read and write, and for nothing else."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from meshnn.errors import ModelError
from meshnn.graph import schema
from meshnn.graph.reader import read
from meshnn.graph.writer import write
from tests.graph.networks import chain


@pytest.fixture
def without_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board with a runtime but without the package that holds the schema."""
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> object:
        if name.startswith("ai_edge_litert"):
            raise ImportError(name)
        return real(name, package)

    schema.available.cache_clear()
    monkeypatch.setattr(importlib, "import_module", absent)


def test_a_board_without_the_schema_says_so(without_schema: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is refused by one clear line, and `available` tells beforehand."""
    try:
        assert not schema.available()
        with pytest.raises(ModelError, match="ai-edge-litert is not installed"):
            read(b"\x10\x00\x00\x00TFL3" + bytes(100))
    finally:
        monkeypatch.undo()
        schema.available.cache_clear()
    assert schema.available()
    write(chain())


def test_planning_modules_import_neither_schema_nor_runtime() -> None:
    """Card, costs, splits and even the reader are imported without the runtime's package."""
    names = ("layout", "balance", "shard", "merge")
    modules = ("card", "cost", "cut", "describe", "reader", "table", "writer", *(f"splits.{name}" for name in names))
    lines = "; ".join(f"import meshnn.graph.{module}" for module in modules)
    root = Path(__file__).resolve().parents[2]
    code = f"import sys; {lines}; sys.exit(any('litert' in name or 'flatbuffers' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120, cwd=root).returncode == 0


def test_options_know_their_union() -> None:
    """Option tables of both unions are found by name; a stranger is refused."""
    assert schema.union_of(schema.tables().Conv2DOptionsT())[0] == 1
    assert schema.union_of(schema.tables().DilateOptionsT())[0] == 2
    with pytest.raises(ModelError, match="belong to no operator"):
        schema.union_of(object())
