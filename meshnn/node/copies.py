"""Two holders for every model: the leader's pure machine that restores the second after a death (DESIGN.md 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshnn.cluster.member import DeviceId
from meshnn.node.catalogue import Catalogue
from meshnn.node.effects import Effect, Send, note
from meshnn.node.messages import Copy

HOLDERS_WANTED = 2
# After this long without the copy another device is asked; the bytes take their time at the slowest link we plan for.
COPY_PATIENCE_S = 30.0
COPY_BYTES_PER_S = 1e6
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
        named = {record.digest for record in catalogue.records}
        self._asked = {digest: asked for digest, asked in self._asked.items() if digest in named}
        self._refused = {key: until for key, until in self._refused.items() if until > now and key[0] in named}
        effects: list[Effect] = []
        for record in catalogue.records:
            holders = tuple(device for device in catalogue.holders(record.digest) if device in disks)
            asked = self._asked.get(record.digest)
            if len(holders) >= HOLDERS_WANTED or not holders:
                self._asked.pop(record.digest, None)
                continue
            if asked is not None and asked.until > now and asked.device in disks and asked.device not in holders:
                continue
            if asked is not None and asked.until <= now and asked.device in disks:
                self._refused[record.digest, asked.device] = now + REFUSAL_S
            device = self._next(record.digest, record.size_bytes, holders, disks)
            if device is None:
                self._asked.pop(record.digest, None)
                continue
            self._asked[record.digest] = _Asked(device, now + patience_s(record.size_bytes))
            effects += [
                Send(device, Copy(record.digest, record.size_bytes, holders)),
                note("copy_asked", model=record.name, device=device),
            ]
        return effects

    def on_linked(self, device: DeviceId) -> None:
        """A link is new: what the device was asked over an earlier one may be lost, so it is asked again."""
        self._asked = {digest: asked for digest, asked in self._asked.items() if asked.device != device}

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


def patience_s(size_bytes: int) -> float:
    """How long a copy of so many bytes may take, in seconds."""
    return COPY_PATIENCE_S + size_bytes / COPY_BYTES_PER_S
