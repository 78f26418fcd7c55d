"""The table of members: one row per device, this one included, with tombstones of the dead."""

from __future__ import annotations

import functools
import hashlib
import types
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping

import msgspec

from meshnn.cluster.effects import MemberChanged
from meshnn.cluster.member import Address, DeviceId, Member, MemberState
from meshnn.cluster.messages import BUCKETS, Dead, Rumour, Suspect
from meshnn.cluster.timing import TOMBSTONE_S, Timing, timing_for

ROWS_MAX = 4096
"""The most rows kept: a bound against floods, four times the largest mesh designed for."""


class Roster:
    """The rows, their order and their snapshots; whoever changes a row calls `put`, and `changes` tells the story."""

    def __init__(self, me: Member, now: float) -> None:
        self.me = me.device_id
        self.changes: list[MemberChanged] = []
        self._rows: dict[DeviceId, Member] = {me.device_id: me}
        self._since: dict[DeviceId, float] = {me.device_id: now}
        self._heard: dict[DeviceId, float] = {}
        self._hashes: dict[DeviceId, tuple[Member, int]] = {}
        self._dead: set[DeviceId] = set()
        self._usable: tuple[DeviceId, ...] = (me.device_id,)
        self._snapshot: Mapping[DeviceId, Member] | None = None

    @property
    def mine(self) -> Member:
        """This device's own row."""
        return self._rows[self.me]

    @property
    def usable(self) -> tuple[DeviceId, ...]:
        """The ids of ALIVE and SUSPECT members, sorted."""
        return self._usable

    @property
    def others(self) -> tuple[DeviceId, ...]:
        """The usable members without this device, sorted."""
        return tuple(device for device in self.usable if device != self.me)

    @property
    def trusted(self) -> tuple[DeviceId, ...]:
        """The ids of ALIVE members, sorted: usable ones that nobody suspects."""
        return tuple(device for device in self.usable if self._rows[device].state is MemberState.ALIVE)

    @property
    def snapshot(self) -> Mapping[DeviceId, Member]:
        """All rows, the dead and departed too, by id in order; does not change afterwards."""
        if self._snapshot is None:
            self._snapshot = types.MappingProxyType({device: self._rows[device] for device in sorted(self._rows)})
        return self._snapshot

    @property
    def timing(self) -> Timing:
        """The parameters for the mesh of this size."""
        return timing_for(len(self.usable))

    def get(self, device: DeviceId) -> Member | None:
        """The row of a device, or None."""
        return self._rows.get(device)

    def live(self, device: DeviceId) -> Member | None:
        """The row of a device where it is usable, else None."""
        row = self._rows.get(device)
        return row if row is not None and row.usable else None

    @property
    def full(self) -> bool:
        """Whether no further device can be admitted: all rows are of living ones."""
        return len(self._rows) >= ROWS_MAX and len(self.usable) >= len(self._rows)

    def put(self, row: Member, now: float) -> None:
        """Store a row; a change of state or life starts its `since` anew."""
        before = self._rows.get(row.device_id)
        if before is None and len(self._rows) >= ROWS_MAX:
            self._drop_oldest_tombstone()
        self._rows[row.device_id] = row
        (self._dead.add if row.state is MemberState.DEAD else self._dead.discard)(row.device_id)
        self._snapshot = None
        if (before is not None and before.usable) != row.usable:
            self._recount(row)
        if before is None or before.usable != row.usable or before.boot_id != row.boot_id:
            self._since[row.device_id] = now
        if before is not None and before.boot_id != row.boot_id:
            self._heard.pop(row.device_id, None)
        if before is None or msgspec.structs.replace(before, load=row.load) != row:
            self.changes.append(MemberChanged(before, row))

    def _recount(self, row: Member) -> None:
        """Take a device into the usable ones, or out; sorting all of them anew at each of a thousand is slow."""
        at = bisect_left(self._usable, row.device_id)
        if row.usable:
            self._usable = (*self._usable[:at], row.device_id, *self._usable[at:])
        else:
            self._usable = self._usable[:at] + self._usable[at + 1 :]

    def mark(self, row: Member, state: MemberState, now: float) -> None:
        """Store a row in another state."""
        self.put(msgspec.structs.replace(row, state=state), now)

    def since(self, device: DeviceId) -> float:
        """When the device's present life became usable here, or when it ceased to be."""
        return self._since.get(device, 0.0)

    def hear(self, device: DeviceId, now: float) -> None:
        """Note that something came directly from a device."""
        self._heard[device] = now

    def heard_at(self, device: DeviceId) -> float | None:
        """When something last came directly from this life of the device."""
        return self._heard.get(device)

    def dead(self) -> list[Member]:
        """The tombstones of devices that died (not of those that left), in order."""
        return [self._rows[device] for device in sorted(self._dead)]

    def recently_dead(self, now: float, within_s: float) -> list[DeviceId]:
        """The devices buried in the last `within_s` seconds, in order."""
        return [row.device_id for row in self.dead() if now - self._since[row.device_id] <= within_s]

    def holds_usable(self, address: Address) -> bool:
        """Whether a usable member, this device included, listens at the address."""
        return any(row.usable and row.address == address for row in self._rows.values())

    def accusation(self, device: DeviceId) -> Rumour | None:
        """What this device holds against another, as a rumour it can refute; None where nothing."""
        row = self._rows.get(device)
        if row is None or row.state is MemberState.ALIVE or row.state is MemberState.LEFT:
            return None
        kind = Suspect if row.state is MemberState.SUSPECT else Dead
        return kind(device, row.incarnation, self.me)

    def expire(self, now: float) -> None:
        """Forget tombstones older than a day."""
        for device, row in self.snapshot.items():
            if not row.usable and device != self.me and now - self._since[device] >= TOMBSTONE_S:
                self._drop(row)

    def _drop_oldest_tombstone(self) -> None:
        """Make room for a living device: the dead of long ago must not keep it out."""
        dead = [device for device, row in self.snapshot.items() if not row.usable and device != self.me]
        if dead:
            self._drop(self._rows[min(dead, key=lambda device: (self._since[device], device))])

    def _drop(self, row: Member) -> None:
        del self._rows[row.device_id]
        self._dead.discard(row.device_id)
        self._since.pop(row.device_id, None)
        self._heard.pop(row.device_id, None)
        self._hashes.pop(row.device_id, None)
        self._snapshot = None
        self.changes.append(MemberChanged(row, None))

    def digest(self) -> tuple[int, ...]:
        """One hash per bucket over the usable rows, equal where two tables agree."""
        hashes = [0] * BUCKETS
        for device in self.usable:
            hashes[bucket_of(device)] ^= self._hash_of(device)
        return tuple(hashes)

    def _hash_of(self, device: DeviceId) -> int:
        """The hash of a row, kept until the row is another: a digest of a thousand rows is asked for often."""
        row = self._rows[device]
        kept = self._hashes.get(device)
        if kept is None or kept[0] is not row:
            kept = self._hashes[device] = (row, _row_hash(row))
        return kept[1]

    def rows_in(self, buckets: Iterable[int]) -> list[Member]:
        """All rows of the buckets, tombstones too, in order."""
        wanted = frozenset(buckets)
        return [row for device, row in self.snapshot.items() if bucket_of(device) in wanted]


@functools.lru_cache(maxsize=2 * ROWS_MAX)
def bucket_of(device: DeviceId) -> int:
    """The anti-entropy bucket of a device."""
    return zlib.crc32(device.encode()) % BUCKETS


def _row_hash(row: Member) -> int:
    facts = (row.device_id, row.boot_id, row.incarnation, row.state.value, row.version, row.load.version)
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=4).digest())
