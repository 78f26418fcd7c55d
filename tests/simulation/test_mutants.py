"""The list of mutants does not rot: each still names one line of the tree, and tests that are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.simulate.mutant import Mutant
from tools.simulate.mutants import ROOT, apply
from tools.simulate.rules import MUTANTS

pytestmark = pytest.mark.simulation


def test_there_are_enough() -> None:
    """At least 25, no rule twice."""
    assert len({mutant.rule for mutant in MUTANTS}) == len(MUTANTS) >= 25


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_it_breaks_one_line_that_is_there(mutant: Mutant, tmp_path: Path) -> None:
    """Its line stands once in its file, what it becomes is Python, and its tests exist."""
    copy = tmp_path / mutant.path
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutant.path).read_text(encoding="utf-8"), encoding="utf-8")
    whole = apply(tmp_path, mutant)
    broken = copy.read_text(encoding="utf-8")
    assert broken != whole
    ast.parse(broken)
    assert all((ROOT / tests).is_file() for tests in mutant.tests.split())


def test_a_line_that_moved_is_an_error(tmp_path: Path) -> None:
    """A mutant that breaks nothing would count as a survivor for the wrong reason."""
    (tmp_path / "x.py").write_text("a = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="stands 0 times"):
        apply(tmp_path, Mutant("r", "x.py", "b = 1", "b = 2", "t"))
