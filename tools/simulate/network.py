"""The network between simulated devices: datagrams that get lost, doubled and overtaken, links that hang and break."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from meshnn.cluster.member import Address, BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.node.switchboard import codec
from tools.simulate.world import World

# What a datagram costs beside its payload: our header and seal, UDP, IP.
DATAGRAM_OVERHEAD_BYTES = 84 + 28
PING_S = 0.25
PINGS_UNANSWERED = 3
KEEPALIVE_S = 8.0
RETRANSMIT_S = 0.2
RETRANSMIT_MAX_S = 2.0
HANDSHAKE_TRIPS = 3
BYTES_PER_S = 10e6
QUEUE_MAX = 10_000
CORRUPT_DATAGRAMS = 10

K = TypeVar("K")
_CODEC = codec()
_ENCODER = msgspec.msgpack.Encoder()


class Station(Protocol):
    """What the network needs of a device."""

    id: DeviceId
    powered: bool

    @property
    def boot_id(self) -> BootId:
        """Its present life."""

    @property
    def address(self) -> Address:
        """Where it listens."""

    @property
    def running(self) -> bool:
        """Whether its process lives."""

    @property
    def responsive(self) -> bool:
        """Whether its process lives and is not stopped."""

    def hear_datagram(self, source: DeviceId, boot: BootId, message: msgspec.Struct) -> None:
        """A datagram came."""

    def hear_message(self, source: DeviceId, message: object) -> None:
        """Something came over a link."""

    def linked(self, other: Station) -> None:
        """A link is up."""

    def unlinked(self, device: DeviceId, evidence: str) -> None:
        """This end of a link is gone."""

    def unreachable(self, address: Address, evidence: str) -> None:
        """A dial came to nothing."""


@dataclass
class Weather:
    """What happens everywhere: shares of datagrams lost and doubled, the least delay and the mean of the rest (s).

    `corrupt` is the share of frames on links in which a bit flips; among datagrams it is ten times that.
    """

    loss: float = 0.0
    doubled: float = 0.0
    corrupt: float = 0.0
    delay_s: float = 0.002
    jitter_s: float = 0.015


@dataclass
class _End:
    """One end of a link: whether it is open, what waits to leave it, when what left last arrives."""

    open: bool = True
    queue: deque[tuple[object, int]] = field(default_factory=deque)
    pumping: bool = False
    backoff_s: float = RETRANSMIT_S
    arrives_at: float = 0.0
    missed: int = 0
    pulsing: bool = False


@dataclass
class _Link:
    """A connection between two lives."""

    ends: dict[DeviceId, _End]
    lives: dict[DeviceId, BootId]


class Network:
    """All paths between the stations; what is cut, who is deaf and mute, what the weather is."""

    def __init__(self, world: World, *, count_bytes: bool = False) -> None:
        """A network without stations; counting bytes costs an encoding of every datagram."""
        self.weather = Weather()
        # A script's finger on every message over a link, before it leaves; True takes it away.
        self.tap: Callable[[DeviceId, DeviceId, object], bool] | None = None
        self.cut: dict[tuple[DeviceId, DeviceId], int] = {}
        self.muted: dict[DeviceId, int] = {}
        self.sent = 0
        self.sent_bytes = 0
        self.wire_bytes = 0
        self.stream_bytes = 0
        self.corrupted = 0
        self._count_bytes = count_bytes
        self._world = world
        self._stations: dict[DeviceId, Station] = {}
        self._addresses: dict[Address, DeviceId] = {}
        self._links: dict[tuple[DeviceId, DeviceId], _Link] = {}
        self._expected: dict[tuple[DeviceId, DeviceId], int] = {}
        self._chances: dict[tuple[DeviceId, DeviceId], random.Random] = {}

    # -- what stands where --

    def add(self, station: Station) -> None:
        """A device is there."""
        self._stations[station.id] = station
        self._addresses[station.address] = station.id

    def connected(self, near: DeviceId, far: DeviceId) -> bool:
        """Whether this end holds a link to the other."""
        link = self._links.get(_pair(near, far))
        return link is not None and link.ends[near].open

    def reaches(self, source: DeviceId, target: DeviceId) -> bool:
        """Whether a packet gets through at this moment, chance aside."""
        return not (source in self.muted or target in self.muted or (source, target) in self.cut)

    def queued(self, near: DeviceId) -> int:
        """The longest queue of what this device wants to send over one link."""
        return max((len(link.ends[near].queue) for pair, link in self._links.items() if near in pair), default=0)

    # -- what goes wrong --

    def part(self, pairs: Iterable[tuple[DeviceId, DeviceId]], duration_s: float) -> None:
        """Cut directed paths for a while."""
        pairs = list(pairs)
        self._count(self.cut, pairs, 1)
        self._world.later(duration_s, lambda: self._count(self.cut, pairs, -1))
        for source, target in pairs:
            self._doubt(source, target)

    def mute(self, device: DeviceId, duration_s: float) -> None:
        """One device is deaf and mute for a while."""
        self._count(self.muted, [device], 1)
        self._world.later(duration_s, lambda: self._count(self.muted, [device], -1))
        self.doubt_all(device)

    def doubt_all(self, device: DeviceId) -> None:
        """Every link of a device may have gone silent."""
        for pair in sorted(pair for pair in self._links if device in pair):
            self._doubt(*pair)

    # -- datagrams --

    def datagram(self, source: Station, to: DeviceId, message: msgspec.Struct) -> None:
        """Send one, best effort."""
        self.sent += 1
        if self._count_bytes:
            size = len(_ENCODER.encode(message))
            self.sent_bytes += size
            self.wire_bytes += size + DATAGRAM_OVERHEAD_BYTES
        chance = self._chance(source.id, to)
        weather = self.weather
        copies = 1 + (weather.doubled > 0 and chance.random() < weather.doubled)
        for _ in range(copies):
            delay_s = weather.delay_s + chance.expovariate(1 / weather.jitter_s)
            if weather.corrupt and chance.random() < CORRUPT_DATAGRAMS * weather.corrupt:
                self._garble(message, chance)
            elif chance.random() >= weather.loss and self.reaches(source.id, to):
                self._world.later(delay_s, self._arrive(source.id, source.boot_id, to, message))

    def _garble(self, message: msgspec.Struct, chance: random.Random) -> None:
        """Bits flip, or the end is missing: the receiver's checksum drops it, and its decoder must bear it anyway."""
        data = bytearray(_CODEC.encode(message))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        with contextlib.suppress(PeerError):
            _CODEC.decode(data[: chance.choice([len(data), chance.randrange(len(data))])])
        self.corrupted += 1

    def _arrive(self, source: DeviceId, boot: BootId, to: DeviceId, message: msgspec.Struct) -> Callable[[], None]:
        def arrive() -> None:
            target = self._stations.get(to)
            if target is not None and target.running:
                target.hear_datagram(source, boot, message)

        return arrive

    # -- links --

    def dial(self, source: Station, address: Address) -> None:
        """Try to open a link to whoever is there."""
        boot = source.boot_id
        trip_s = self._trip_s(source.id, self._addresses.get(address, source.id))
        self._world.later(HANDSHAKE_TRIPS * trip_s, lambda: self._connect(source, boot, address))

    def _connect(self, source: Station, boot: BootId, address: Address) -> None:
        target = self._stations.get(self._addresses.get(address, DeviceId("")))
        if target is None or target is source or not source.responsive or source.boot_id != boot:
            return
        both = self.reaches(source.id, target.id) and self.reaches(target.id, source.id)
        if not target.powered or not both:
            return
        if not target.running:
            source.unreachable(address, "refused")
            return
        link = self._links.get(_pair(source.id, target.id))
        if not target.responsive or (link is not None and link.ends[source.id].open and link.ends[target.id].open):
            return
        if link is not None:
            for near, far in ((source, target), (target, source)):
                if link.ends[near.id].open:
                    link.ends[near.id].open = False
                    near.unlinked(far.id, "closed")
        ends = {source.id: _End(), target.id: _End()}
        lives = {source.id: source.boot_id, target.id: target.boot_id}
        self._links[_pair(source.id, target.id)] = _Link(ends, lives)
        for near, far in ((source, target), (target, source)):
            near.linked(far)
            self._watch(near.id, far.id)

    def send(self, near: DeviceId, far: DeviceId, message: object, size_bytes: int = 300) -> bool:
        """Send over the link, in order; False where there is none."""
        link = self._links.get(_pair(near, far))
        if link is None or not link.ends[near].open:
            return False
        if self.tap is not None and self.tap(near, far, message):
            return True
        end = link.ends[near]
        assert len(end.queue) < QUEUE_MAX, f"{len(end.queue)} messages wait on one link"
        self.stream_bytes += size_bytes
        end.queue.append((message, size_bytes))
        if not end.pumping:
            self._pump(link, near, far)
        return True

    def _pump(self, link: _Link, near: DeviceId, far: DeviceId) -> None:
        """Put on the way what waits, or wait as TCP does while nothing gets through."""
        end = link.ends[near]
        end.pumping = False
        if not end.open:
            return
        if end.queue and not (self.reaches(near, far) and self.reaches(far, near)):
            end.pumping = True
            end.backoff_s = min(RETRANSMIT_MAX_S, end.backoff_s * 2)
            self._world.later(end.backoff_s, lambda: self._pump(link, near, far))
            return
        end.backoff_s = RETRANSMIT_S
        while end.queue:
            message, size_bytes = end.queue.popleft()
            leaves_at = max(end.arrives_at, self._world.now + self._trip_s(near, far))
            end.arrives_at = leaves_at + size_bytes / BYTES_PER_S
            self._world.later(end.arrives_at - self._world.now, self._deliver(link, near, far, message))

    def _deliver(self, link: _Link, near: DeviceId, far: DeviceId, message: object) -> Callable[[], None]:
        def deliver() -> None:
            target = self._stations[far]
            if not (link.ends[far].open and target.running and target.boot_id == link.lives[far]):
                return
            corrupt = self.weather.corrupt
            if corrupt and self._chance(near, far).random() < corrupt:
                # The seal of the stream does not fit: this end breaks it off, and the other hears of it.
                self.corrupted += 1
                self.end(far, near, "reset")
            else:
                target.hear_message(near, message)

        return deliver

    def end(self, near: DeviceId, far: DeviceId, evidence: str) -> None:
        """This end is over; the other hears of it where the path allows."""
        link = self._links.get(_pair(near, far))
        if link is None or not link.ends[near].open:
            return
        link.ends[near].open = False
        station = self._stations[near]
        if station.running and station.boot_id == link.lives[near]:
            station.unlinked(far, evidence)
        self._tell_end(link, near, far)

    def unplug(self, device: DeviceId) -> None:
        """The machine is gone: its ends are no more, and the others hear nothing."""
        for pair in sorted(pair for pair in self._links if device in pair):
            self._links[pair].ends[device].open = False
        self.doubt_all(device)

    def kill(self, device: DeviceId) -> None:
        """The process is gone: its host resets every link."""
        for pair in sorted(pair for pair in self._links if device in pair):
            link = self._links[pair]
            far = pair[0] if pair[1] == device else pair[1]
            if link.ends[device].open:
                link.ends[device].open = False
                self._tell_end(link, device, far)

    def _tell_end(self, link: _Link, near: DeviceId, far: DeviceId) -> None:
        """The reset on its way to the other end; where it is lost, silence tells later."""

        def tell() -> None:
            if link.ends[far].open and self.reaches(near, far) and self._stations[near].powered:
                self._close(link, far, near, "reset")

        self._world.later(self._trip_s(near, far), tell)
        self._world.later(KEEPALIVE_S, lambda: self._close(link, far, near, "silent"))

    def _close(self, link: _Link, near: DeviceId, far: DeviceId, evidence: str) -> None:
        if not link.ends[near].open:
            return
        link.ends[near].open = False
        station = self._stations[near]
        if station.running and station.boot_id == link.lives[near]:
            station.unlinked(far, evidence)

    # -- silence --

    def expecting(self, near: DeviceId, far: DeviceId, delta: int) -> None:
        """Counts work outstanding at a device; while there is some its link is pinged."""
        count = max(0, self._expected.get((near, far), 0) + delta)
        if count:
            self._expected[near, far] = count
            self._watch(near, far)
        else:
            self._expected.pop((near, far), None)

    def forget_expected(self, near: DeviceId) -> None:
        """A device begins a new life and waits for nothing."""
        self._expected = {key: count for key, count in self._expected.items() if key[0] != near}

    def _watch(self, near: DeviceId, far: DeviceId) -> None:
        link = self._links.get(_pair(near, far))
        if link is None or (near, far) not in self._expected or not link.ends[near].open or link.ends[near].pulsing:
            return
        link.ends[near].pulsing, link.ends[near].missed = True, 0
        self._world.later(PING_S, lambda: self._pulse(link, near, far))

    def _pulse(self, link: _Link, near: DeviceId, far: DeviceId) -> None:
        end, station, other = link.ends[near], self._stations[near], self._stations[far]
        end.pulsing = False
        if not end.open or (near, far) not in self._expected or station.boot_id != link.lives[near]:
            return
        heard = self.reaches(near, far) and self.reaches(far, near)
        heard = heard and other.responsive and other.boot_id == link.lives[far]
        end.missed = 0 if heard or not station.responsive else end.missed + 1
        if end.missed >= PINGS_UNANSWERED:
            self.end(near, far, "silent")
            return
        end.pulsing = True
        self._world.later(PING_S, lambda: self._pulse(link, near, far))

    def _doubt(self, one: DeviceId, other: DeviceId) -> None:
        """The system's own keep-alive ends a link over which nothing went for long."""
        link = self._links.get(_pair(one, other))
        if link is None:
            return

        def judge() -> None:
            alive = self._stations[one].powered and self._stations[other].powered
            if alive and self.reaches(one, other) and self.reaches(other, one):
                return
            for near, far in ((one, other), (other, one)):
                self._close(link, near, far, "silent")

        self._world.later(KEEPALIVE_S, judge)

    # -- inside --

    def _chance(self, source: DeviceId, to: DeviceId) -> random.Random:
        found = self._chances.get((source, to))
        if found is None:
            found = self._chances[source, to] = self._world.chance("path", source, to)
        return found

    def _trip_s(self, source: DeviceId, to: DeviceId) -> float:
        """One way over a link; a lost packet costs a retransmission."""
        chance, weather = self._chance(source, to), self.weather
        trip_s = weather.delay_s + chance.expovariate(1 / weather.jitter_s)
        wait_s = RETRANSMIT_S
        while weather.loss and chance.random() < weather.loss and wait_s < KEEPALIVE_S:
            trip_s += wait_s
            wait_s *= 2
        return trip_s

    @staticmethod
    def _count(table: dict[K, int], keys: Iterable[K], delta: int) -> None:
        for key in keys:
            left = table.get(key, 0) + delta
            if left:
                table[key] = left
            else:
                del table[key]


def _pair(one: DeviceId, other: DeviceId) -> tuple[DeviceId, DeviceId]:
    return (one, other) if one < other else (other, one)
