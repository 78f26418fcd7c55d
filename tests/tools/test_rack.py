"""The rack's command line and its excuses: what can be known of it without root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.acceptance.__main__ import SCENARIOS, parse
from tools.acceptance.verdict import Verdict
from tools.racklab import __main__ as rack
from tools.racklab import cgroups, outer
from tools.racklab.lab import INSIDE, Lab


def _entered(monkeypatch: pytest.MonkeyPatch, code: int) -> list[list[str]]:
    """Where the commands go that would have been run in the rack, each ending with `code`."""
    entered: list[list[str]] = []

    def enter(command: Sequence[str]) -> int:
        entered.append(list(command))
        return code

    monkeypatch.setattr(outer, "enter", enter)
    return entered


def test_the_command_is_what_follows_the_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tools/rack lab -- CMD ARG` enters the rack with the command alone, its own dashes kept."""
    entered = _entered(monkeypatch, 7)
    assert rack.main(["lab", "--", "echo", "-n", "x"]) == 7
    assert entered == [["echo", "-n", "x"]]


def test_run_executes_itself_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside, `tools/rack run` starts itself with the very same words within the rack."""
    entered = _entered(monkeypatch, 0)
    monkeypatch.delenv(INSIDE, raising=False)
    words = ["run", "-n", "5", "--rate", "100mbit", "--cpu", "0.2", "--", "true"]
    assert rack.main(words) == 0
    assert entered[0][1:] == ["-m", "tools.racklab", *words]


@pytest.mark.parametrize("words", [[], ["run"], ["run", "-n", "x", "--", "true"], ["lab", "--"], ["fly", "--", "x"]])
def test_what_cannot_be_meant_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A missing command, verb or number ends with status 2 and a line about usage."""
    with pytest.raises(SystemExit) as ended:
        rack.main(words)
    assert ended.value.code == 2
    assert "usage: tools/rack" in capsys.readouterr().err


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ip and tc the excuse is one line that names them and their package."""
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in {"ip", "tc"} else f"/bin/{tool}")
    assert outer.missing() == "the rack needs ip, tc (Debian: iproute2, util-linux, mount)"


def test_anyone_but_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the excuse says root, and entering ends with it."""
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in outer.missing()
    with pytest.raises(SystemExit, match="rack: the rack needs root"):
        outer.enter(["true"])


def test_a_lab_outside_the_rack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Lab made outside would build its bridge on this very machine: it is an error."""
    monkeypatch.delenv(INSIDE, raising=False)
    with pytest.raises(RuntimeError, match="inside the rack"):
        Lab(2)


def test_garbage_is_what_no_living_process_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups go whose process is gone or was another one of the same number; those of the living stay."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    own = cgroups.stamp(os.getpid())
    base = tmp_path / "cpu"
    kept, gone = base / f"{cgroups.PREFIX}{own}", base / f"{cgroups.PREFIX}{os.getpid()}-1"
    for group in (kept, gone, base / "somebody-else"):
        (group / "d00").mkdir(parents=True)
    cgroups.collect_garbage()
    assert sorted(path.name for path in base.iterdir()) == sorted([kept.name, "somebody-else"])


def test_acceptance_takes_scenarios_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scenarios of the command line are those of the table; another name, or no model, is refused with status 2."""
    model = tmp_path / "m.tflite"
    model.write_bytes(b"x")
    files = ["--model", str(model), "--photo", str(model)]
    assert parse([*SCENARIOS, *files]).scenarios == list(SCENARIOS)
    for wrong in (["kill-everyone", *files], ["alone", "--model", str(tmp_path / "none")]):
        with pytest.raises(SystemExit) as ended:
            parse(wrong)
        assert ended.value.code == 2
    assert "choose from alone" in capsys.readouterr().err


def test_a_verdict_is_one_line() -> None:
    """Figures and broken rules stand in one line; one broken rule fails the scenario."""
    verdict = Verdict("memory", {"devices_in_plan": 3})
    verdict.check(True, "never shown")
    assert verdict.line == "memory: pass (devices in plan 3)"
    verdict.check(False, "two devices")
    assert verdict.line == "memory: FAIL: two devices (devices in plan 3)"
    assert not verdict.passed
