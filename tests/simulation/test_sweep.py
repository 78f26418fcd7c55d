"""The sweep: seeded lives of a mesh under faults hold every rule, and together reach what must be reached."""

from __future__ import annotations

import importlib

import pytest

from tools.simulate import determinism
from tools.simulate.__main__ import main
from tools.simulate.sweep import Report, Setting, missing, run

pytestmark = pytest.mark.simulation

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


def test_the_same_seed_gives_the_same_trace_under_any_hash_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes with different hash seeds print the same traces, other seeds other ones."""
    assert determinism.main(["--seeds", "1-3", "--seconds", "20"]) == 0
    assert "3 seeds twice, 0 with another trace; 3 different traces" in capsys.readouterr().out


def test_another_trace_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One seed whose two runs differ fails the command and is named."""
    monkeypatch.setattr(determinism, "traces", lambda command: [{"seed 1": "trace a"}, {"seed 1": "trace b"}])
    assert determinism.main(["--seeds", "1"]) == 1
    assert "FAILED seed 1: traces trace a and trace b" in capsys.readouterr().out


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
