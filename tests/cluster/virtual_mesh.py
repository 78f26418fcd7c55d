"""A mesh of real cluster machines on a virtual clock: seeded loss, delay, cuts, stalls, crashes and restarts."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.effects import (
    Dial,
    Effect,
    IdentityClash,
    LeaderChanged,
    MemberChanged,
    PersistIncarnation,
    PersistTerm,
    SendDatagram,
    SendStream,
)
from meshnn.cluster.member import Address, BootId, DeviceId, Load, Member, MemberState
from meshnn.cluster.messages import PAYLOAD_BYTES_MAX, Message, estimate_bytes

_ENCODER = msgspec.msgpack.Encoder()
PERSIST_S = 0.005
LINK_S = 0.01


def device_id(index: int) -> DeviceId:
    """The id of the device of this number: numbers sort like ids."""
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return DeviceId("n" + digits[index // 1024] + digits[index // 32 % 32] + digits[index % 32] + "a" * 22)


def member(index: int, boot: int = 0, incarnation: int = 1000) -> Member:
    """A member record for tests."""
    address = Address(f"10.0.{index // 250}.{index % 250 + 1}", 7000)
    boot_id = BootId(f"{index:08x}{boot:08x}")
    return Member(device_id(index), boot_id, f"device-{index}", address, 8000, incarnation)


class Device:
    """One device: its machine while it runs, what it has on disk, and what was observed of it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = device_id(index)
        self.boot = 0
        self.disk_term = 0
        self.disk_vote: DeviceId | None = None
        self.disk_incarnation = 0
        self.cluster: Cluster | None = None
        self.powered = True
        self.stalled_until = 0.0
        self.waiting: list[tuple[str, Callable[[], list[Effect]]]] = []
        self.links: set[DeviceId] = set()
        self.deaths: list[tuple[float, DeviceId]] = []
        self.leaders: list[tuple[float, DeviceId | None, int]] = []


class VirtualMesh:
    """Runs devices under one seeded heap of events; same seed, same trace."""

    def __init__(self, seed: int, loss: float = 0.0, mdns: bool = True) -> None:
        self.now = 100.0
        self.loss = loss
        self.mdns = mdns
        self.rng = random.Random(seed)
        self.devices: dict[DeviceId, Device] = {}
        self.cut: set[tuple[DeviceId, DeviceId]] = set()
        self.no_datagrams: set[tuple[DeviceId, DeviceId]] = set()
        self.sent: dict[str, int] = {}
        self.sent_bytes = 0
        self.clashes: list[IdentityClash] = []
        self._by_address: dict[Address, DeviceId] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._trace = hashlib.sha256()
        self._timers: dict[DeviceId, float | None] = {}

    # -- the script --

    def start(self, *indices: int, wall_ms: int | None = None, seeds: Iterable[int] = ()) -> None:
        """Start (or restart, as a new life) devices; with mDNS on they see all who run, and are seen."""
        for index in indices:
            device = self.devices.setdefault(device_id(index), Device(index))
            device.boot += 1
            device.powered = True
            wall = int(self.now * 1000) if wall_ms is None else wall_ms
            me = member(index, device.boot, max(device.disk_incarnation + 1, wall))
            self._by_address[me.address] = device.id
            rng = random.Random(self.rng.getrandbits(64))
            addresses = tuple(member(seed).address for seed in seeds)
            device.cluster = Cluster(me, addresses, device.disk_term, device.disk_vote, rng, self.now)
            device.links, device.waiting, device.stalled_until = set(), [], 0.0
            self._note("start", device.id)
            self._perform(device, device.cluster.start(self.now))
            if self.mdns:
                self._announce(device)

    def kill(self, index: int) -> None:
        """End a process as SIGKILL does: its host says so to whoever is linked, and refuses whoever dials."""
        device = self.device(index)
        device.cluster = None
        self._timers[device.id] = None
        self._note("kill", device.id)
        for peer in sorted(device.links):
            self._later(LINK_S, self._unlink(peer, device.id, "reset"))
        device.links = set()

    def unplug(self, index: int) -> None:
        """Power loss: silence."""
        device = self.device(index)
        device.cluster, device.powered, device.links = None, False, set()
        self._timers[device.id] = None
        self._note("unplug", device.id)

    def leave(self, index: int) -> None:
        """An orderly goodbye; then the process is gone."""
        device = self.device(index)
        self._perform(device, self.cluster(index).leave(self.now))
        self.kill(index)

    def load(self, index: int, load: Load) -> None:
        """A device's load changed."""
        self._perform(self.device(index), self.cluster(index).set_load(load, self.now))

    def stall(self, index: int, duration_s: float) -> None:
        """SIGSTOP for a while: what arrives waits."""
        device = self.device(index)
        device.stalled_until = max(device.stalled_until, self.now + duration_s)
        self._later(duration_s, lambda: self._wake(device))

    def part(self, left: Iterable[int], right: Iterable[int], one_way: bool = False) -> None:
        """Cut every path from left to right, and back."""
        theirs = [device_id(index) for index in right]
        for a in [device_id(index) for index in left]:
            self.cut.update((a, b) for b in theirs)
            if not one_way:
                self.cut.update((b, a) for b in theirs)

    def block_datagrams(self, left: Iterable[int], right: Iterable[int]) -> None:
        """A firewall that lets streams through: no datagram from left to right arrives."""
        theirs = [device_id(index) for index in right]
        self.no_datagrams |= {(device_id(index), b) for index in left for b in theirs}

    def heal(self) -> None:
        """Mend every path; mDNS tells all of all."""
        self.cut.clear()

    def outage(self, index: int, duration_s: float) -> None:
        """One device is deaf and mute for a while."""
        mine = device_id(index)
        pairs = {(mine, other) for other in self.devices} | {(other, mine) for other in self.devices}
        pairs -= self.cut
        self.cut |= pairs
        self._later(duration_s, lambda: self.cut.difference_update(pairs))

    def run(self, duration_s: float) -> None:
        """Let virtual time pass."""
        end = self.now + duration_s
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], within_s: float) -> float:
        """Let time pass until the condition holds; how long it took. Fails after `within_s`."""
        begun = self.now
        while not condition():
            assert self.now - begun <= within_s, f"not within {within_s} s; {self.describe()}"
            self.run(0.05)
        return self.now - begun

    # -- what is seen --

    def device(self, index: int) -> Device:
        """A device by number."""
        return self.devices[device_id(index)]

    def cluster(self, index: int) -> Cluster:
        """The machine of a running device."""
        cluster = self.device(index).cluster
        assert cluster is not None
        return cluster

    @property
    def running(self) -> list[Device]:
        """The devices that run, in order."""
        return [device for _, device in sorted(self.devices.items()) if device.cluster is not None]

    def agreed(self, *indices: int) -> bool:
        """Whether these devices (all running ones by default) list exactly each other, ALIVE, under one leader."""
        devices = [self.device(index) for index in indices] or self.running
        ids = tuple(sorted(device.id for device in devices))
        clusters = [device.cluster for device in devices if device.cluster is not None]
        alive = all(
            cluster.alive == ids and all(cluster.members[one].state is MemberState.ALIVE for one in ids)
            for cluster in clusters
        )
        leaders = {(cluster.leader, cluster.term) for cluster in clusters}
        return alive and len(leaders) == 1 and next(iter(leaders))[0] in ids

    def state(self, viewer: int, subject: int) -> MemberState | None:
        """What one device believes of another; None where it knows nothing."""
        row = self.cluster(viewer).members.get(device_id(subject))
        return None if row is None else row.state

    def false_deaths(self) -> int:
        """How often anybody buried a device."""
        return sum(len(device.deaths) for device in self.devices.values())

    @property
    def trace(self) -> str:
        """A hash over everything that happened."""
        return self._trace.hexdigest()

    def describe(self) -> str:
        """Each running device's view, for failures."""
        lines = []
        for device in self.running:
            assert device.cluster is not None
            rows = {row.name: row.state.value for row in device.cluster.members.values()}
            lines.append(f"{device.index}: leader {device.cluster.leader} term {device.cluster.term} {rows}")
        return "\n".join(lines)

    # -- the network --

    def _perform(self, device: Device, effects: list[Effect]) -> None:
        for effect in effects:
            self._trace.update(_ENCODER.encode(effect))
            match effect:
                case SendDatagram(to, _, message):
                    self._datagram(device, to, message)
                case SendStream(to, message):
                    self._stream(device, to, message)
                case Dial(address):
                    self._dial(device, address)
                case PersistTerm(term, voted_for):
                    self._persist(device, term, voted_for)
                case _:
                    self._observe(device, effect)
        self._arm(device)

    def _observe(self, device: Device, effect: Effect) -> None:
        match effect:
            case PersistIncarnation(incarnation):
                assert incarnation >= device.disk_incarnation, "an incarnation never goes back"
                device.disk_incarnation = incarnation
            case MemberChanged(before, after) if before is not None and after is not None:
                if before.usable and after.state is MemberState.DEAD:
                    device.deaths.append((self.now, after.device_id))
            case LeaderChanged(leader, term):
                device.leaders.append((self.now, leader, term))
            case IdentityClash():
                self.clashes.append(effect)
            case _:
                pass

    def _datagram(self, device: Device, to: DeviceId, message: Message) -> None:
        kind = type(message).__name__
        size = len(_ENCODER.encode(message))
        assert size <= estimate_bytes(message)
        assert size <= PAYLOAD_BYTES_MAX
        self.sent[kind] = self.sent.get(kind, 0) + 1
        self.sent_bytes += size
        if self.rng.random() < self.loss or (device.id, to) in self.cut | self.no_datagrams:
            return
        assert device.cluster is not None
        boot = device.cluster.me.boot_id
        source = device.id
        self._deliver(self._delay_s(), to, f"{kind} {source}", lambda c: c.on_datagram(source, boot, message, self.now))

    def _stream(self, device: Device, to: DeviceId, message: Message) -> None:
        target = self.devices.get(to)
        if target is None or target.cluster is None or not self._both_ways(device.id, to):
            return
        if self.rng.random() < self.loss**3:
            return
        if to not in device.links:
            self._link(device, target)
        source = device.id
        kind = type(message).__name__
        delay_s = 2 * LINK_S + self._delay_s()
        self._deliver(delay_s, to, f"{kind} {source}", lambda c: c.on_stream_message(source, message, self.now))

    def _dial(self, device: Device, address: Address) -> None:
        to = self._by_address.get(address)
        target = None if to is None else self.devices[to]
        if target is None or target is device or not target.powered or not self._both_ways(device.id, target.id):
            return
        if target.cluster is None:
            refused = target.id
            self._deliver(LINK_S, device.id, "refused", lambda c: c.on_evidence(refused, "refused", self.now))
        elif target.stalled_until <= self.now:
            self._link(device, target)

    def _link(self, one: Device, other: Device) -> None:
        if other.id in one.links and one.id in other.links:
            return
        for near, far in ((one, other), (other, one)):
            near.links.add(far.id)
            assert far.cluster is not None
            me = far.cluster.me
            self._deliver(LINK_S, near.id, f"linked {far.id}", self._linked(me))

    def _linked(self, me: Member) -> Callable[[Cluster], list[Effect]]:
        return lambda c: c.on_linked(me.device_id, me.boot_id, me.name, me.address, me.http_port, self.now)

    def _unlink(self, peer: DeviceId, gone: DeviceId, how: str) -> Callable[[], None]:
        def unlink() -> None:
            self.devices[peer].links.discard(gone)
            if self._both_ways(peer, gone):
                self._deliver(0.0, peer, how, lambda c: c.on_unlinked(gone, "reset", self.now))

        return unlink

    def _persist(self, device: Device, term: int, voted_for: DeviceId | None) -> None:
        boot = device.boot

        def persisted(cluster: Cluster) -> list[Effect]:
            if device.boot != boot:
                return []
            assert term >= device.disk_term, "a term never goes back"
            device.disk_term, device.disk_vote = term, voted_for
            return cluster.on_persisted(term, self.now)

        self._deliver(PERSIST_S, device.id, f"persisted {term}", persisted)

    def _announce(self, device: Device) -> None:
        for other in self.running:
            if other is not device:
                for near, far in ((device, other), (other, device)):
                    seen = member(far.index).address
                    delay_s = self.rng.uniform(0.1, 0.6)
                    self._deliver(delay_s, near.id, "seen", self._seen(seen))

    def _seen(self, address: Address) -> Callable[[Cluster], list[Effect]]:
        return lambda c: c.on_seen(address, self.now)

    def _both_ways(self, a: DeviceId, b: DeviceId) -> bool:
        return (a, b) not in self.cut and (b, a) not in self.cut

    def _delay_s(self) -> float:
        return 0.002 + self.rng.expovariate(1 / 0.015)

    def _deliver(self, delay_s: float, to: DeviceId, what: str, act: Callable[[Cluster], list[Effect]]) -> None:
        target = self.devices.get(to)
        if target is None:
            return
        boot = target.boot

        def arrive() -> None:
            # A datagram reaches whichever life is there; what is local belongs to one life.
            if target.cluster is None or (target.boot != boot and not what.startswith(("Ping", "Ack", "Gossip"))):
                return
            if target.stalled_until > self.now:
                cluster = target.cluster
                if len(target.waiting) < 1000:
                    target.waiting.append((what, lambda: act(cluster)))
                return
            self._note(what, to)
            self._perform(target, act(target.cluster))

        self._later(delay_s, arrive)

    def _wake(self, device: Device) -> None:
        if device.cluster is None or device.stalled_until > self.now:
            return
        waiting, device.waiting = device.waiting, []
        for what, act in waiting:
            self._note(what, device.id)
            self._perform(device, act())
        self._perform(device, device.cluster.on_deadline(self.now))

    def _arm(self, device: Device) -> None:
        cluster = device.cluster
        deadline = None if cluster is None else cluster.deadline
        if deadline == self._timers.get(device.id):
            return
        self._timers[device.id] = deadline
        if deadline is not None:
            self._later(max(0.0, deadline - self.now), lambda: self._fire(device, cluster, deadline))

    def _fire(self, device: Device, cluster: Cluster | None, deadline: float) -> None:
        if device.cluster is not cluster or cluster is None or self._timers.get(device.id) != deadline:
            return
        if device.stalled_until > self.now:
            return
        self._timers[device.id] = None
        now = max(self.now, deadline)
        self._perform(device, cluster.on_deadline(now))

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._serial, action))

    def _note(self, what: str, device: DeviceId) -> None:
        self._trace.update(f"{self.now:.6f} {device} {what}\n".encode())


def busy_load(step: int) -> Load:
    """A load that differs from step to step."""
    return Load(queue_depth=step % 5, stage_ms=10.0 + step, free_bytes=10**9 + step)
