"""Whom to dial: every live member without a link, at once, then with back-off. A pure machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshnn.cluster.effects import Dial
from meshnn.cluster.member import Address, BootId, DeviceId, Member

FIRST_S = 0.0
# The greater id waits for the lesser one to dial, so that two newcomers do not both dial at once.
POLITE_S = 0.7
# The second try comes so long after the first, each further one after twice the time.
SECOND_S = 1.0
BACKOFF_MAX_S = 8.0
# A lost link counts against a device only after so long: most come back at once.
GRACE_S = 1.0
# A living device that could not be linked with for so long is cut off from this one.
CUT_OFF_S = 3.0


@dataclass(slots=True)
class _Missing:
    address: Address
    due: float
    wait_s: float
    since: float


class Contacts:
    """Which members are linked, since when they are not, when to dial them again."""

    def __init__(self, me: DeviceId) -> None:
        """Nobody is linked yet."""
        self._me = me
        self._linked: dict[DeviceId, BootId] = {}
        self._lost: dict[DeviceId, tuple[BootId, float]] = {}
        self._missing: dict[DeviceId, _Missing] = {}
        self._changed = True
        self._regained = False
        self._cut_off: frozenset[DeviceId] = frozenset()

    @property
    def linked(self) -> frozenset[DeviceId]:
        """The devices with a link."""
        return frozenset(self._linked)

    @property
    def deadline(self) -> float | None:
        """When to dial next or to give up on a lost link, in the caller's clock."""
        if not self._missing and not self._lost:
            return None
        times = [missing.due for missing in self._missing.values()]
        times += [until for _, until in self._lost.values()]
        times += [row.since + CUT_OFF_S for device, row in self._missing.items() if device not in self._cut_off]
        return min(times)

    def due(self, now: float) -> bool:
        """Whether `review` has anything to do though the members are the same: a link changed, or time came."""
        deadline = self.deadline
        return self._changed or (deadline is not None and deadline <= now)

    @property
    def cut_off(self) -> frozenset[DeviceId]:
        """The living devices that this one has failed to reach for a while, as of the last review."""
        return self._cut_off

    def reachable(self, member: Member, now: float) -> bool:
        """Whether plans may count on a member: itself, or linked in this very life, or lost a moment ago."""
        device = member.device_id
        if device == self._me:
            return True
        boot, until = self._lost.get(device, (None, now))
        return self._linked.get(device) == member.boot_id or (boot == member.boot_id and until > now)

    def on_linked(self, device: DeviceId, boot: BootId) -> None:
        """A link is up; the first of all where there was none."""
        self._changed = True
        self._regained = self._regained or not self._linked
        self._linked[device] = boot
        self._lost.pop(device, None)
        self._missing.pop(device, None)

    def on_unlinked(self, device: DeviceId, evidence: str, now: float) -> None:
        """A link is gone; a host that says the process is gone gets no grace."""
        self._changed = True
        boot = self._linked.pop(device, None)
        if boot is not None and evidence in {"closed", "silent"}:
            self._lost[device] = (boot, now + GRACE_S)
        self._missing.pop(device, None)

    def on_network(self) -> None:
        """The network changed: whoever is not linked is dialled anew, without waiting for an old back-off."""
        self._missing.clear()

    def review(self, members: Iterable[Member], now: float) -> list[Dial]:
        """Dial whoever is due."""
        self._changed = False
        if self._regained:
            # Without any link this device was the one cut off: what it could not reach then says nothing of the others.
            self._regained = False
            self._missing = {device: row for device, row in self._missing.items() if now - row.since < SECOND_S}
        self._lost = {device: lost for device, lost in self._lost.items() if lost[1] > now}
        absent = {m.device_id: m for m in members if m.device_id != self._me and m.device_id not in self._linked}
        self._missing = {device: row for device, row in self._missing.items() if device in absent}
        dials: list[Dial] = []
        for device, member in sorted(absent.items()):
            first = FIRST_S if self._me < device else POLITE_S
            row = self._missing.get(device)
            if row is None or row.address != member.address:
                since = now if row is None else row.since
                row = self._missing[device] = _Missing(member.address, now + first, SECOND_S / 2, since)
            if row.due <= now:
                row.wait_s = min(BACKOFF_MAX_S, row.wait_s * 2)
                row.due = now + row.wait_s
                dials.append(Dial(member.address))
        self._cut_off = frozenset(d for d, row in self._missing.items() if row.since + CUT_OFF_S <= now)
        return dials


def remembered(now_here: Iterable[Address], before: Iterable[Address], most: int) -> tuple[Address, ...]:
    """Where to look for others at the next start: those who are here now first, then those who were, `most` in all.

    Who is away today may be all there is to find tomorrow.
    """
    return tuple(dict.fromkeys((*now_here, *before)))[:most]
