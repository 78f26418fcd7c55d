"""`python -m tools.simulate.mutants`: every mutant of `rules` must be killed, by directed tests or within 200 seeds.

Works on a copy of the tree in a temporary folder; the working tree is never touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.simulate.mutant import Mutant
from tools.simulate.rules import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("meshnn", "tests", "tools", "pyproject.toml")
TEST_S = 600.0
SWEEP_S = 900.0
SEEDS = 200
BATCH = 20


def main(arguments: Sequence[str]) -> int:
    """Apply the mutants one after the other; exit 0 only if none survives and the tests pass without any."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose rule contains this")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"for what its tests miss (default {SEEDS}; 0: none)")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.rule]
    with tempfile.TemporaryDirectory(prefix="meshnn-mutants-") as folder:
        tree = Path(folder)
        for part in PARTS:
            _copy(ROOT / part, tree / part)
        failing = [tests for tests in sorted({mutant.tests for mutant in chosen}) if _tests_fail(tree, tests)]
        if failing:
            print(f"these tests fail without any mutant: {' '.join(failing)}")
            return 1
        survivors = [mutant.rule for mutant in chosen if not _killed(tree, mutant, options.seeds)]
    print(f"{len(chosen)} mutants, {len(chosen) - len(survivors)} killed; survivors: {', '.join(survivors) or 'none'}")
    return 1 if survivors else 0


def apply(tree: Path, mutant: Mutant) -> str:
    """Break the rule in a copy of the tree; the file as it was. ValueError where the line is not there once."""
    path = tree / mutant.path
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.line) != 1:
        raise ValueError(f"{mutant.rule}: its line stands {whole.count(mutant.line)} times in {mutant.path}")
    path.write_text(whole.replace(mutant.line, mutant.broken), encoding="utf-8")
    return whole


def _killed(tree: Path, mutant: Mutant, seeds: int) -> bool:
    whole = apply(tree, mutant)
    try:
        killed = _tests_fail(tree, mutant.tests)
        how = f"killed by {mutant.tests}"
        if not killed:
            seed = _seed_that_fails(tree, seeds)
            killed = seed > 0
            how = f"killed within seeds 1-{seed}" if killed else f"noticed by no test and by none of {seeds} seeds"
    finally:
        (tree / mutant.path).write_text(whole, encoding="utf-8")
    print(f"{'ok      ' if killed else 'SURVIVED'} {mutant.rule}: {how}", flush=True)
    return killed


def _tests_fail(tree: Path, tests: str) -> bool:
    """Whether any of these files fails in the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    return _run(tree, command, TEST_S) != 0


def _seed_that_fails(tree: Path, seeds: int) -> int:
    """The last seed of the first batch that fails; 0 where none does."""
    for first in range(1, seeds + 1, BATCH):
        command = [sys.executable, "-m", "tools.simulate", "--seeds", f"{first}-{first + BATCH - 1}"]
        if _run(tree, command, SWEEP_S):
            return first + BATCH - 1
    return 0


def _run(tree: Path, command: Sequence[str], timeout_s: float) -> int:
    """The exit status of a program that sees the copy alone; one that hangs was noticed too."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return 124
    return done.returncode


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
