"""Two holders for every model: the leader's pure machine that restores the second after a death (DESIGN.md 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshnn.cluster.member import DeviceId
from meshnn.node.catalogue import Catalogue
from meshnn.node.effects import Effect, Send, note
from meshnn.node.messages import Copy

HOLDERS_WANTED = 2
# After this long without the copy another device is asked.
COPY_PATIENCE_S = 60.0
# A device that could not take a copy is left alone for so long.
REFUSAL_S = 30.0


@dataclass(frozen=True, slots=True)
class _Asked:
    device: DeviceId
    until: float


class Copies:
    """Which device was asked to hold which model, and who refused."""

    def __init__(self) -> None:
        """Nothing asked yet."""
        self._asked: dict[str, _Asked] = {}
        self._refused: dict[tuple[str, DeviceId], float] = {}

    @property
    def deadline(self) -> float | None:
        """When a copy that did not come is asked of another device, in the caller's clock."""
        times = [asked.until for asked in self._asked.values()] + list(self._refused.values())
        return min(times, default=None)

    def reset(self) -> None:
        """This node leads no longer."""
        self._asked.clear()
        self._refused.clear()

    def review(self, catalogue: Catalogue, disks: Mapping[DeviceId, int], now: float) -> list[Effect]:
        """Ask for the copies that are missing; `disks` are the free bytes of each alive device."""
        self._refused = {key: until for key, until in self._refused.items() if until > now}
        effects: list[Effect] = []
        for record in catalogue.records:
            holders = tuple(device for device in catalogue.holders(record.digest) if device in disks)
            asked = self._asked.get(record.digest)
            if len(holders) >= HOLDERS_WANTED or not holders:
                self._asked.pop(record.digest, None)
                continue
            if asked is not None and asked.until > now and asked.device in disks and asked.device not in holders:
                continue
            device = self._next(record.digest, record.size_bytes, holders, disks)
            if device is None:
                self._asked.pop(record.digest, None)
                continue
            self._asked[record.digest] = _Asked(device, now + COPY_PATIENCE_S)
            effects += [
                Send(device, Copy(record.digest, record.size_bytes, holders)),
                note("copy_asked", model=record.name, device=device),
            ]
        return effects

    def on_refused(self, device: DeviceId, digest: str, reason: str, now: float) -> list[Effect]:
        """A device could not take the copy: the next review asks another."""
        self._refused[digest, device] = now + REFUSAL_S
        asked = self._asked.get(digest)
        if asked is not None and asked.device == device:
            del self._asked[digest]
        return [note("copy_refused", warning=True, digest=digest[:12], device=device, reason=reason)]

    def possible(
        self, digest: str, size_bytes: int, holders: tuple[DeviceId, ...], disks: Mapping[DeviceId, int]
    ) -> bool:
        """Whether some other alive device has the disk for a copy and has not refused it."""
        return self._next(digest, size_bytes, holders, disks) is not None

    def _next(
        self, digest: str, size_bytes: int, holders: tuple[DeviceId, ...], disks: Mapping[DeviceId, int]
    ) -> DeviceId | None:
        fits = [
            (-free, device)
            for device, free in disks.items()
            if device not in holders and free >= size_bytes and (digest, device) not in self._refused
        ]
        return min(fits)[1] if fits else None
