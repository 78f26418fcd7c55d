"""A disk that is full or read-only: the node serves on as a follower, says so, and is well again with the disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tools.acceptance.verdict import Verdict
from tools.borders.ground import MODEL, Ground, status
from tools.processes import Device, until

NAMES = ("a", "b", "c")
DISK_BYTES = 24_000_000
MEET_S = 60.0
LEAD_S_MAX = 20.0
HEALTH_S_MAX = 20.0
LEAST_ASKED = 20

Change = Callable[[Path], None]


def full(ground: Ground, verdict: Verdict) -> None:
    """No space left: a filler takes the last byte."""
    _suffer(ground, verdict, _fill, lambda folder: (folder / "filler").unlink())


def read_only(ground: Ground, verdict: Verdict) -> None:
    """The file system becomes read-only under the node, as the kernel makes it after an error of the disk."""
    _suffer(ground, verdict, _freeze, _thaw)


def _suffer(ground: Ground, verdict: Verdict, harm: Change, mend: Change) -> None:
    folders = [ground.folder / name for name in NAMES]
    for folder in folders:
        folder.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    try:
        _told(ground, verdict, harm, mend)
    finally:
        for device in ground.mesh.devices.values():
            device.stop()
        for folder in folders:
            # Once for the folder itself, once for what a broken scenario left over it.
            for _ in range(2):
                subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def _told(ground: Ground, verdict: Verdict, harm: Change, mend: Change) -> None:
    devices = ground.mesh.start(*NAMES)
    until(lambda: all(device.sees(*NAMES) for device in devices), MEET_S, "three meet")
    ground.add(devices[0], MODEL)
    ids = {status(device)["self"]: device for device in devices}
    until(lambda: status(devices[0])["leader"] is not None, MEET_S, "one leads")
    leader = ids[status(devices[0])["leader"]]
    ill, well = [device for device in devices if device is not leader]
    traffic = ground.traffic(ill, None)
    until(lambda: traffic.ok > LEAST_ASKED, MEET_S, "somebody asks")
    harm(ill.folder)
    leader.kill()
    took = until(lambda: _leads(well, well), MEET_S, "the device with a disk leads")
    verdict.figures["new_leader_s"] = round(took, 1)
    until(lambda: _leads(ill, well), MEET_S, "the other follows it")
    told = until(lambda: status(ill)["health"]["state"] == "degraded", MEET_S, "it says that it is degraded")
    verdict.figures["degraded_s"], verdict.figures["subjects"] = round(told, 1), _subjects(ill)
    until(lambda: _seen(well, status(ill)["self"]) == "degraded", MEET_S, "the others see it")
    verdict.check("disk (term.json)" in _subjects(ill), f"not a word of its term: {_subjects(ill)}")
    verdict.check("never leads" in ill.meshnn("status").out.replace("\n", " "), "`meshnn status` does not say so")
    mend(ill.folder)
    restored = until(lambda: status(ill)["health"]["state"] == "ok", MEET_S, "it is well again")
    verdict.figures["well_again_s"] = round(restored, 1)
    well.kill()
    alone = until(lambda: _leads(ill, ill), MEET_S, "with its disk it leads")
    verdict.figures |= {"leads_again_s": round(alone, 1), "good_percent": traffic.good_percent}
    verdict.figures["asked"] = traffic.ok + traffic.failed
    verdict.check(took <= LEAD_S_MAX, f"a new leader only after {took:.1f} s")
    verdict.check(restored <= HEALTH_S_MAX, f"well again only after {restored:.1f} s")
    verdict.check(traffic.good_percent >= 95, f"{traffic.good_percent} % good: {traffic.errors[:2]}")


def _leads(eye: Device, leader: Device) -> bool:
    with suppress(Exception):
        return bool(status(eye)["leader"] == status(leader)["self"])
    return False


def _seen(eye: Device, device: str) -> str:
    return next(str(member.get("health")) for member in status(eye)["members"] if member["id"] == device)


def _subjects(device: Device) -> list[str]:
    return [str(trouble["subject"]) for trouble in status(device)["health"]["troubles"]]


def _fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while filler.write(bytes(size)):
                    pass


def _freeze(folder: Path) -> None:
    """A mount of its own over the folder, since files that are open keep the first one writable."""
    _mount("--bind", folder, folder)
    _mount("-o", "remount,bind,ro", folder)


def _thaw(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


def _mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"mount {' '.join(map(str, words))}: {done.stderr.strip()} (this scenario needs root)")
