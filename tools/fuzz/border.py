"""One border: what is sent to it, what it may answer, what it costs; and the loop that finds out."""

from __future__ import annotations

import random
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from meshnn.errors import MeshError

TIME_LIMIT_S = 0.050
MEMORY_LIMIT_BYTES = 16 << 20
# Every so many inputs, and after every input that took so long (`suspicious_s`), the memory of one is measured.
SAMPLED_EVERY = 997
SUSPICIOUS_S = 0.005
FINDINGS_MAX = 20
SHOWN_BYTES = 400


class Target(Protocol):
    """A border ready to be given inputs. `draw` makes one, `take` gives it; only `take` is measured."""

    def draw(self, rng: random.Random) -> object:
        """The next input."""

    def take(self, given: object) -> None:
        """Give it to the border; whatever the border does not promise to raise is a finding."""

    def close(self) -> None:
        """The episode is over; raises AssertionError where something went wrong that `take` could not see."""


@dataclass(frozen=True)
class Border:
    """How to begin an episode of inputs, and what refusing looks like.

    An episode is reproduced whole: a border with a memory takes thousands of inputs in one. `share` scales the
    number of inputs for slow borders. `again` says that an input may be given twice, to measure it once more.
    """

    name: str
    begin: Callable[[random.Random, Path], Target]
    refuses: tuple[type[Exception], ...] = (MeshError,)
    episode: int = 5000
    share: float = 1.0
    again: bool = True
    clock: Callable[[], float] = time.thread_time
    limit_s: float = TIME_LIMIT_S
    measures_memory: bool = True
    suspicious_s: float = SUSPICIOUS_S


@dataclass
class Result:
    """What a run of one border came to; `findings` by what went wrong, each with its reproduction."""

    border: str
    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    largest_bytes: int = 0
    measured: int = 0
    wall_s: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)


def rng_of(border: str, seed: int, episode: int) -> random.Random:
    """The chance of one episode; the same in every process."""
    return random.Random((zlib.crc32(border.encode()) << 64) + (seed << 32) + episode)


def fuzz(border: Border, inputs: int, seed: int, folder: Path, only: int | None = None, limit_s: float = 1e9) -> Result:
    """Give a border so many inputs (or one episode `only`), for `limit_s` at most."""
    result = Result(border.name)
    began = time.monotonic()
    episode = only or 0
    while result.inputs < inputs and len(result.findings) < FINDINGS_MAX and time.monotonic() - began < limit_s:
        count = min(border.episode, inputs - result.inputs)
        once = _episode(border, count, seed, episode, folder)
        if not border.again and _slow(border) in once.findings:
            # Once more, and only that counts: what a pause of the machine cost is not the border's.
            once = _episode(border, count, seed, episode, folder)
        _add(result, once)
        if only is not None:
            break
        episode += 1
    result.wall_s = time.monotonic() - began
    return result


def _add(result: Result, episode: Result) -> None:
    """Count one episode more."""
    result.inputs += episode.inputs
    result.refused += episode.refused
    result.measured += episode.measured
    result.slowest_s = max(result.slowest_s, episode.slowest_s)
    result.largest_bytes = max(result.largest_bytes, episode.largest_bytes)
    for fault, how in episode.findings.items():
        result.findings.setdefault(fault, how)


def _slow(border: Border) -> str:
    """The fault of an input that takes too long."""
    return f"took more than {border.limit_s * 1000:.0f} ms"


def _episode(border: Border, count: int, seed: int, episode: int, folder: Path) -> Result:
    result = Result(border.name)
    rng = rng_of(border.name, seed, episode)
    target = border.begin(rng, folder)
    how = f"python -m tools.fuzz {border.name} --seed {seed} --episode {episode}"
    for _ in range(count):
        given = target.draw(rng)
        fault = _give(border, target, given, result)
        result.inputs += 1
        if fault:
            what, _, said = fault.partition("\n")
            result.findings.setdefault(what, f"{how}\n  said: {said}\n  input: {_shown(given)}")
            if not border.again:
                break
    try:
        target.close()
    except AssertionError as error:
        result.findings.setdefault(f"at the end: {error}", how)
    return result


def _give(border: Border, target: Target, given: object, result: Result) -> str:
    """One input, measured; the fault it showed, empty where there is none."""
    sampled = border.measures_memory and result.inputs % SAMPLED_EVERY == 0
    if sampled and not border.again:
        return _peak(border, target, given, result)
    begin = border.clock()
    fault = _taken(border, target, given, result)
    took_s = border.clock() - begin
    if took_s > border.limit_s and border.again:  # once more: what a pause of the machine cost is not the input's
        begin = border.clock()
        _taken(border, target, given, None)
        took_s = min(took_s, border.clock() - begin)
    result.slowest_s = max(result.slowest_s, took_s)
    if took_s > border.limit_s:
        fault = fault or _slow(border)
    if border.again and border.measures_memory and (sampled or took_s > border.suspicious_s):
        fault = fault or _peak(border, target, given, None, result)
    return fault


def _peak(border: Border, target: Target, given: object, counted: Result | None, result: Result | None = None) -> str:
    """Give an input while memory is traced; the fault."""
    into = result or counted
    assert into is not None
    tracemalloc.start()
    fault = _taken(border, target, given, counted)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    into.measured += 1
    into.largest_bytes = max(into.largest_bytes, peak_bytes)
    return fault or (f"held more than {MEMORY_LIMIT_BYTES >> 20} MiB" if peak_bytes > MEMORY_LIMIT_BYTES else "")


def _taken(border: Border, target: Target, given: object, result: Result | None) -> str:
    """Give an input; what it raised that the border does not promise, named by its place, and below that its words."""
    try:
        target.take(given)
    except border.refuses:
        if result is not None:
            result.refused += 1
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/meshnn/" in frame.filename] or list(frames)
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}"
        return f"{type(error).__name__} in {place}\n{str(error)[:SHOWN_BYTES]}"
    return ""


def _shown(given: object) -> str:
    text = given.hex() if isinstance(given, (bytes, bytearray)) else repr(given)
    return text if len(text) <= SHOWN_BYTES else f"{text[:SHOWN_BYTES]}... ({len(text)} characters)"
