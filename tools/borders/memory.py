"""Too little memory: a control group of 256 MiB, and another program that takes what is left of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tools.acceptance.verdict import Verdict
from tools.borders.ground import Ground, rss_bytes, status
from tools.processes import Device, until

ROOT = Path("/sys/fs/cgroup")
LIMIT_BYTES = 256 << 20
MEET_S = 90.0
SHED_S_MAX = 10.0
GOOD_PERCENT_MIN = 95.0
STEP_BYTES = 4 << 20
# A program that takes memory in steps when told to, and is the first to be ended by the system.
HOG = """
import sys
open('/proc/self/oom_score_adj', 'w').write('1000')
held = []
for line in sys.stdin:
    held.append(bytearray(b'x') * int(line))
    print(len(held), flush=True)
"""


class Group:
    """A memory control group of this test's own, version 1 or 2."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        """Made; OSError where it may not be."""
        second = (ROOT / "cgroup.controllers").exists()
        self._second = second
        self.folder = (ROOT if second else ROOT / "memory") / name
        self.folder.mkdir()
        (self.folder / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit_bytes))

    def launch(
        self, command: Sequence[str], environment: dict[str, str], out: IO[bytes], err: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """A process in the group, its children too."""
        words = ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *command]
        return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    @property
    def killed(self) -> int:
        """How many processes the system ended in it."""
        name = "memory.events" if self._second else "memory.oom_control"
        lines = dict(line.split(" ", 1) for line in (self.folder / name).read_text().splitlines())
        return int(lines.get("oom_kill", "0"))

    @property
    def used_bytes(self) -> int:
        """What its processes take."""
        name = "memory.current" if self._second else "memory.usage_in_bytes"
        return int((self.folder / name).read_text())

    def close(self) -> None:
        """Remove it, once its processes are gone."""
        for _ in range(50):
            with suppress(OSError):
                self.folder.rmdir()
                return
            threading.Event().wait(0.1)


@contextmanager
def _node(ground: Ground, memory: str) -> Iterator[tuple[Group, Device, Device]]:
    """A node in a group of 256 MiB, and a free one; they have met."""
    group = Group(f"meshnn-borders-{ground.mesh.mesh}", LIMIT_BYTES)
    try:
        free = ground.mesh.device("free", "--memory", "2GB")
        tight = ground.mesh.device("tight", "--memory", memory, launch=group.launch)
        for device in (free, tight):
            device.start()
        for device in (free, tight):
            device.wait_ready()
        until(lambda: free.sees("free", "tight"), MEET_S, "the two meet")
        yield group, free, tight
    finally:
        for device in ground.mesh.devices.values():
            device.stop()
        group.close()


def memory(ground: Ground, verdict: Verdict) -> None:
    """The node sheds its spare shards before the system ends anything; what is asked goes on; it grows back."""
    if ground.model is None:
        raise ValueError("name a model of some 25 MB with --model")
    with _node(ground, "90MB") as (group, free, tight):
        ground.add(free, ground.model)
        until(lambda: _used(tight) > 0, MEET_S, "it holds a shard")
        verdict.check(status(tight)["health"]["state"] == "ok", "its memory is short before anything happens")
        traffic = ground.traffic(free, ground.model.stem, label=None)
        with _hog(group) as hog:
            _squeeze(verdict, hog, group, free, tight)
        back = until(lambda: status(tight)["health"]["state"] == "ok", 2 * MEET_S, "the budget grows back")
        verdict.figures |= {"grown_back_s": round(back), "ended_by_the_system": group.killed}
        verdict.figures |= {"good_percent": traffic.good_percent, "asked": traffic.ok + traffic.failed}
        verdict.check(group.killed == 0, f"the system ended {group.killed}")
        verdict.check(not tight.dead(), "the node ended")
        verdict.check(traffic.good_percent >= GOOD_PERCENT_MIN, f"{traffic.good_percent} %: {traffic.errors[:2]}")


@contextmanager
def _hog(group: Group) -> Iterator[subprocess.Popen[str]]:
    """Another program in the group, which takes memory when told to."""
    words = ["sh", "-c", f'echo $$ > {group.folder}/cgroup.procs && exec "$@"', "sh", sys.executable, "-c", HOG]
    hog = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield hog
    finally:
        hog.kill()
        hog.wait()


def _squeeze(verdict: Verdict, hog: subprocess.Popen[str], group: Group, free: Device, tight: Device) -> None:
    """Let the other program take what is left, and look at what the node does."""
    before = _used(tight)
    steps = _crowd(hog, group, tight)
    took = until(lambda: _used(tight) < before, MEET_S, "shards are shed")
    troubles = [str(trouble["subject"]) for trouble in status(tight)["health"]["troubles"]]
    verdict.figures |= {
        "shed_s": round(took, 1),
        "budget_mb": _budget(tight),
        "taken_by_the_other_mb": round(steps * STEP_BYTES / 1e6),
        "shards_before_mb": before,
        "shards_after_mb": _used(tight),
        "node_rss_mb": round(rss_bytes(tight) / 1e6),
        "group_mb": round(group.used_bytes / 1e6),
        "troubles": troubles,
    }
    verdict.check(took <= SHED_S_MAX, f"shed only after {took:.1f} s")
    verdict.check("memory" in troubles, "its status says nothing of memory")
    until(lambda: _seen(free, tight) == _budget(tight), MEET_S, "the other hears of the budget")


def trial(ground: Ground, verdict: Verdict) -> None:
    """A model that takes more than the group has, added where it is: the trial ends, the node lives and serves."""
    if ground.model is None:
        raise ValueError("name a model of more than 200 MB with --model")
    with _node(ground, "100MB") as (group, free, tight):
        traffic = ground.traffic(tight, None)
        done = tight.meshnn("models", "add", str(ground.model), timeout_s=300.0)
        verdict.figures |= {
            "exit_code": done.code,
            "said": done.err.strip()[:160],
            "ended_by_the_system": group.killed,
            "good_percent": traffic.good_percent,
            "asked": traffic.ok + traffic.failed,
        }
        verdict.check(done.code != 0, "it was taken")
        verdict.check(not tight.dead(), "the node ended")
        verdict.check(free.sees("free", "tight"), "it is no member any more")
        verdict.check(tight.meshnn("ask", "examples/cat.png").code == 0, "it answers no more")


def _crowd(hog: subprocess.Popen[str], group: Group, tight: Device) -> int:
    """Let the other program take memory in steps until the node says that it is short; how many it took."""
    assert hog.stdin is not None
    assert hog.stdout is not None
    pause = threading.Event()
    for step in range(1, LIMIT_BYTES // STEP_BYTES):
        hog.stdin.write(f"{STEP_BYTES}\n")
        hog.stdin.flush()
        hog.stdout.readline()
        pause.wait(0.25)
        if status(tight)["health"]["state"] == "degraded":
            return step
        if group.killed:
            raise RuntimeError(f"the system ended a process after {step} steps")
    raise RuntimeError("the memory never became short")


def _row(eye: Device, device: str) -> dict[str, object]:
    return next(member for member in status(eye)["members"] if member["id"] == device)


def _used(device: Device) -> float:
    return float(str(_row(device, status(device)["self"])["used_mb"]))


def _budget(device: Device) -> float:
    return float(str(_row(device, status(device)["self"])["memory_mb"]))


def _seen(eye: Device, device: Device) -> float:
    return float(str(_row(eye, status(device)["self"])["memory_mb"]))
