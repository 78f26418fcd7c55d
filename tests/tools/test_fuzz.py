"""The fuzzer: it finds what is planted, the same again from the same seed; and a little of it on every border."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshnn.errors import PeerError
from meshnn.telemetry import captured
from tools.fuzz.__main__ import BORDERS
from tools.fuzz.border import MEMORY_LIMIT_BYTES, Border, fuzz

INPUTS = 150
# The live borders send to real sockets: a few of each show that they work.
LIVE = {"http": 20, "node": 60}


@dataclass
class Planted:
    """A border of one number."""

    deed: Callable[[int], object]
    at_end: str = ""

    def draw(self, rng: random.Random) -> int:
        """One of a thousand."""
        return rng.randrange(1000)

    def take(self, given: object) -> None:
        """Do it."""
        assert isinstance(given, int)
        self.deed(given)

    def close(self) -> None:
        """Complain where it was asked for."""
        if self.at_end:
            raise AssertionError(self.at_end)


def border(deed: Callable[[int], object], at_end: str = "", **kwargs: object) -> Border:
    """A border with a fault."""
    return Border("planted", lambda rng, folder: Planted(deed, at_end), (PeerError,), episode=500, **kwargs)  # type: ignore[arg-type]


def refuse(number: int) -> None:
    """What a border may do."""
    raise PeerError(f"not {number}")


def fail(number: int) -> None:
    """What it may not."""
    if number == 77:
        raise KeyError(number)


def test_refusals_are_counted_and_no_finding(tmp_path: Path) -> None:
    """What the border promises to raise is how it refuses."""
    result = fuzz(border(refuse), 1000, 1, tmp_path)
    assert (result.inputs, result.refused, result.findings) == (1000, 1000, {})


def test_a_fault_is_found_and_found_again(tmp_path: Path) -> None:
    """Named by error and place, with its reproduction; the same seed gives the same."""
    found = [fuzz(border(fail), 5000, 1, tmp_path) for _ in range(2)]
    assert found[0].findings == found[1].findings
    ((fault, how),) = found[0].findings.items()
    assert fault.startswith("KeyError in test_fuzz.py")
    assert how.endswith("input: 77")
    episode = int(how.split("--episode ")[1].split()[0])
    assert fuzz(border(fail), 5000, 1, tmp_path, episode).findings == found[0].findings


def test_an_input_that_takes_too_long_is_found(tmp_path: Path) -> None:
    """Processor time beyond the bound, twice in a row."""

    def dawdle(number: int) -> None:
        until = time.thread_time() + (0.02 if number == 5 else 0.0)
        while time.thread_time() < until:
            pass

    result = fuzz(border(dawdle, limit_s=0.01), 3000, 1, tmp_path)
    assert list(result.findings) == ["took more than 10 ms"]
    assert result.slowest_s >= 0.02


@pytest.mark.parametrize(("slow_times", "findings"), [(1, []), (2, ["took more than 10 ms"])])
def test_an_episode_that_was_slow_is_looked_at_once_more(tmp_path: Path, slow_times: int, findings: list[str]) -> None:
    """Where an input cannot be given twice its whole episode is: a pause of the machine is no finding."""
    seen = []

    def pause(number: int) -> None:
        seen.append(number)
        slow = len(seen) in (10, 10 + 500)[:slow_times]
        until = time.thread_time() + (0.02 if slow else 0.0)
        while time.thread_time() < until:
            pass

    result = fuzz(border(pause, limit_s=0.01, again=False), 1000, 1, tmp_path)
    assert list(result.findings) == findings
    assert result.inputs == 1000


def test_an_input_that_takes_too_much_memory_is_found(tmp_path: Path) -> None:
    """Memory is looked at now and then, and wherever an input was slow."""
    result = fuzz(border(lambda number: bytearray(MEMORY_LIMIT_BYTES + 1)), 10, 1, tmp_path)
    assert list(result.findings) == ["held more than 16 MiB"]


def test_what_shows_only_at_the_end_is_found(tmp_path: Path) -> None:
    """An episode is closed, and what is wrong then is a finding."""
    assert list(fuzz(border(lambda number: None, "a task is left"), 10, 1, tmp_path).findings) == [
        "at the end: a task is left"
    ]


@pytest.mark.parametrize("name", sorted(set(BORDERS) - {"mdns"}))
def test_no_border_breaks(name: str, tmp_path: Path) -> None:
    """A little of `python -m tools.fuzz`; limits of time are for an idle machine and are not judged here."""
    with captured():
        result = fuzz(BORDERS[name], LIVE.get(name, INPUTS), 7, tmp_path)
    assert result.inputs > 0
    assert not {fault: how for fault, how in result.findings.items() if not fault.startswith("took more")}
