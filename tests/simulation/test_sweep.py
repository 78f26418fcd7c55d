"""The sweep: seeded lives of a mesh under faults hold every rule, and together reach what must be reached."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.simulate.__main__ import main
from tools.simulate.sweep import Report, Setting, missing, run

pytestmark = pytest.mark.simulation

ROOT = Path(__file__).resolve().parents[2]
SEEDS_MAX = 40
SEEDS_MIN = 10


@pytest.mark.timeout(300)
def test_seeded_lives_hold_every_rule_and_reach_everything() -> None:
    """No seed fails, and within 40 of them everything that a sweep must reach was reached."""
    reports: list[Report] = []
    while len(reports) < SEEDS_MAX:
        report = run(len(reports) + 1, Setting(seconds=50.0))
        assert not report.failure, f"{Setting(seconds=50.0).reproduction(report.seed)}\n{report.failure}"
        reports.append(report)
        if len(reports) >= SEEDS_MIN and not missing(reports):
            break
    assert missing(reports) == []
    assert sum(report.answered for report in reports) > 100


def test_without_faults_every_request_is_answered() -> None:
    """A quiet mesh answers all, names no error, and needs no second attempt."""
    report = run(7, Setting(seconds=20.0, faults=()))
    assert not report.failure
    assert (report.answered, report.errors) == (report.requests, 0)
    assert report.requests > 100
    assert report.seen["retried and answered"] == 0


def test_the_same_seed_gives_the_same_trace_under_any_hash_seed() -> None:
    """Two processes with different hash seeds print the same traces, other seeds other ones."""
    printed = [_traces(hash_seed) for hash_seed in ("1", "4242")]
    assert printed[0] == printed[1]
    assert len(set(printed[0])) == len(printed[0]) == 3


def _traces(hash_seed: str) -> list[str]:
    command = [sys.executable, "-m", "tools.simulate", "--seeds", "1-3", "--seconds", "25", "--verbose"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith("seed ")]


def test_a_failing_seed_prints_the_line_that_runs_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bound that nothing can meet fails the seed; the exit status says so, and the line is whole."""
    monkeypatch.setattr(importlib.import_module("tools.simulate.sweep"), "MEET_S", -1.0)
    assert main(["--seeds", "5-5", "--nodes", "4", "--seconds", "5", "--faults", "kill,stall"]) == 1
    printed = capsys.readouterr().out
    expected = "python -m tools.simulate --nodes 4 --seconds 5 --seeds 5 --faults kill,stall --verbose"
    assert f"FAILED seed 5: {expected}" in printed


def test_what_was_never_reached_is_named() -> None:
    """A sweep in which something never happened names it."""
    report = run(1, Setting(seconds=5.0, faults=()))
    assert "burial" in missing([report])
    assert "two leaders at once" in missing([report])
