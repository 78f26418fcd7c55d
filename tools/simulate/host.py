"""A simulated device: its disk, its process with the real machines in it, and the deeds that their effects ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.effects import Dial, PersistIncarnation, PersistTerm, SendDatagram, SendStream
from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Load, Member
from meshnn.node.catalogue import Catalogue
from meshnn.node.core import Core
from meshnn.node.effects import DropFile, Effect, PlansChanged, SaveNames, Send
from meshnn.node.request import Answer, Fail
from meshnn.node.shards import Shards
from meshnn.node.slices import Passage
from meshnn.plan.messages import Failed
from meshnn.plan.plan import Epoch
from tools.simulate.disk import Disk
from tools.simulate.mind import Bare, Mind
from tools.simulate.network import Network, Station
from tools.simulate.plane import Plane
from tools.simulate.runtime import Runtime
from tools.simulate.world import World

INBOX_MAX = 20_000
MEMORY_BYTES = 700_000
DISK_BYTES = 10**9
WALL_S = 1_800_000_000.0
"""What the wall clocks say when the world begins."""

Event = Callable[[Mind, float], list[Effect]]


class Watcher(Protocol):
    """Who looks at everything that happens."""

    def on_started(self, host: Host) -> None:
        """A device begins a life."""

    def on_effect(self, host: Host, effect: Effect) -> None:
        """A machine wants something done."""

    def on_event(self, host: Host) -> None:
        """A device has taken an event in and performed what followed."""

    def on_work(self, host: Host) -> None:
        """A device's data plane has taken an event in."""

    def on_answer(self, host: Host, answer: Answer, value: int) -> None:
        """A request of this device is answered."""

    def on_fail(self, host: Host, fail: Fail) -> None:
        """A request of this device ends with a named error."""

    def on_trouble(self, host: Host, message: Failed) -> None:
        """A stage ended an attempt of this device's request."""

    def on_late(self, host: Host, passage: Passage) -> None:
        """A result came for a request that is over."""

    def on_run(self, host: Host, passage: Passage, handle: int) -> None:
        """A shard runs for an attempt."""


def device_id(index: int) -> DeviceId:
    """The id of the device of this number: numbers sort like ids."""
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return DeviceId("n" + digits[index // 1024] + digits[index // 32 % 32] + digits[index % 32] + "a" * 22)


class Host:
    """One device. `bare` ones have the cluster machine alone; the others a whole core and a data plane."""

    def __init__(
        self, world: World, network: Network, index: int, watcher: Watcher, peers: dict[DeviceId, Host], *, bare: bool
    ) -> None:
        """A device that was never started; it enters itself among its peers."""
        self.index = index
        self.id = device_id(index)
        self.boot = 0
        self.powered = True
        self.memory_bytes = MEMORY_BYTES
        self.mind: Mind | None = None
        self.plane: Plane | None = None
        self.stalled_until = 0.0
        self.wall_offset_s = 0.0
        self.disk = Disk(world, world.chance("disk", index))
        self.runtime = Runtime(world, self)
        self.world = world
        self.network = network
        self.watcher = watcher
        self._bare = bare
        self._inbox: list[Event] = []
        self._timer: float | None = None
        self.peers = peers
        peers[self.id] = self
        network.add(self)

    # -- what it is --

    @property
    def boot_id(self) -> BootId:
        """Its present life."""
        return BootId(f"{self.index:08x}{self.boot:08x}")

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(f"10.0.{self.index // 250}.{self.index % 250 + 1}", 7000)

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.mind is not None

    @property
    def responsive(self) -> bool:
        """Whether its process lives and is not stopped."""
        return self.mind is not None and self.stalled_until <= self.world.now

    @property
    def cluster(self) -> Cluster:
        """Its cluster machine; it must run."""
        assert self.mind is not None, f"device {self.index} does not run"
        return self.mind.cluster

    @property
    def core(self) -> Core:
        """Its core; it must run and have one."""
        assert isinstance(self.mind, Core), f"device {self.index} has no core"
        return self.mind

    # -- what is done to it --

    def start(self, seeds: Iterable[Address] = ()) -> None:
        """Begin a new life."""
        assert self.mind is None, f"device {self.index} runs already"
        self.boot += 1
        self.powered = True
        self.stalled_until = 0.0
        self._inbox.clear()
        self._timer = None
        self.network.forget_expected(self.id)
        self.world.note(f"start {self.index}")
        cluster = self._cluster(tuple(seeds))
        self.runtime.begin()
        if self._bare:
            self.mind = Bare(cluster)
        else:
            shards = Shards(self.memory_bytes, lambda recipe: recipe.key in self.disk.shards)
            catalogue = Catalogue(self.id, self.disk.names, dict(self.disk.models))
            self.mind = core = Core(cluster, catalogue, shards, self.id, self.boot_id)
            self.plane = Plane(self, core)
        self.watcher.on_started(self)
        self.take(lambda mind, now: mind.start(now))

    def _cluster(self, seeds: tuple[Address, ...]) -> Cluster:
        incarnation = max(self.disk.incarnation + 1, int((WALL_S + self.world.now + self.wall_offset_s) * 1000))
        capability = Capability(self.memory_bytes, DISK_BYTES, 1.0, 1, "x", can_cut=True)
        me = Member(
            self.id, self.boot_id, f"device-{self.index}", self.address, 8000, incarnation, capability=capability
        )
        chance = self.world.chance("node", self.index, self.boot)
        return Cluster(me, seeds, self.disk.term, self.disk.vote, chance, self.world.now)

    def kill(self, *, power: bool = False) -> None:
        """End the process as SIGKILL does; with `power` the whole machine goes silent."""
        if self.mind is None:
            return
        self.world.note(f"{'unplug' if power else 'kill'} {self.index}")
        self.mind = None
        if self.plane is not None:
            self.plane.end()
            self.plane = None
        self.disk.crash(power=power)
        self.powered = not power
        if power:
            self.network.unplug(self.id)
        else:
            self.network.kill(self.id)

    def leave(self) -> None:
        """Say goodbye; then the process is gone."""
        self.take(lambda mind, now: mind.leave(now))
        self.kill()

    def stall(self, duration_s: float) -> None:
        """SIGSTOP for a while: what arrives waits."""
        self.stalled_until = max(self.stalled_until, self.world.now + duration_s)
        self.world.note(f"stall {self.index} {duration_s:.3f}")
        boot = self.boot
        self.world.later(duration_s, lambda: self._wake(boot))

    def _wake(self, boot: int) -> None:
        if self.boot != boot or not self.responsive:
            return
        inbox, self._inbox = self._inbox, []
        for event in inbox:
            if self.mind is not None:
                self.take(event)
        if self.plane is not None:
            self.plane.on_time()
        if self.mind is not None:
            self.take(lambda mind, now: mind.on_deadline(now))

    def publish(self) -> None:
        """The device measured itself anew: its row changes."""
        capability = msgspec.structs.replace(self.cluster.me.capability, speed=self.cluster.me.capability.speed + 1.0)
        self.post(lambda mind, now: list(mind.cluster.set_capability(capability, now)))

    def set_load(self, load: Load) -> None:
        """The device was measured."""
        self.post(lambda mind, now: list(mind.cluster.set_load(load, now)))

    # -- events --

    def post(self, event: Event) -> None:
        """An event for whoever decides here: at once, or when the process goes on."""
        if self.mind is None:
            return
        if self.stalled_until > self.world.now:
            if len(self._inbox) < INBOX_MAX:
                self._inbox.append(event)
            return
        self.take(event)

    def asked(self, model: str, epoch: Epoch) -> None:
        """A request came for a shard that is not loaded here."""
        self.soon(0.0, lambda mind, now: self.core.on_asked(model, epoch, now))

    def soon(self, delay_s: float, event: Event) -> None:
        """An event of this very life, in `delay_s` seconds."""
        boot = self.boot

        def happen() -> None:
            if self.boot == boot:
                self.post(event)

        self.world.later(delay_s, happen)

    def take(self, event: Event) -> None:
        """Let the machines take an event in, and do what they ask for."""
        assert self.mind is not None
        self._perform(event(self.mind, self.world.now))
        self._arm()
        self.watcher.on_event(self)

    def work(self, deed: Callable[[], None]) -> None:
        """Something for the data plane alone: the core changes nothing by it."""
        if self.stalled_until > self.world.now:
            self.post(lambda mind, now: self._worked(deed))
        elif self.mind is not None:
            self._worked(deed)

    def _worked(self, deed: Callable[[], None]) -> list[Effect]:
        deed()
        self.watcher.on_work(self)
        return []

    def work_soon(self, delay_s: float, deed: Callable[[], None]) -> None:
        """Work of this very life's data plane, in `delay_s` seconds."""
        boot = self.boot

        def happen() -> None:
            if self.boot == boot:
                self.work(deed)

        self.world.later(delay_s, happen)

    def _arm(self) -> None:
        mind = self.mind
        deadline = None if mind is None else mind.deadline
        if deadline == self._timer or mind is None:
            return
        self._timer = deadline
        if deadline is not None:
            self.world.later(max(0.0, deadline - self.world.now), lambda: self._fire(mind, deadline))

    def _fire(self, mind: Mind, deadline: float) -> None:
        if self.mind is not mind or self._timer != deadline or self.stalled_until > self.world.now:
            return
        self._timer = None
        self.take(lambda one, now: one.on_deadline(max(now, deadline)))

    def hear_datagram(self, source: DeviceId, boot: BootId, message: msgspec.Struct) -> None:
        """A datagram came."""
        self.world.note(f"{type(message).__name__} {source}>{self.index}")
        self.post(lambda mind, now: mind.on_datagram(source, boot, message, now))

    def hear_message(self, source: DeviceId, message: object) -> None:
        """Something came over a link: for the data plane, or for the core."""
        self.world.note(f"{type(message).__name__} {source}>>{self.index}")
        plane = self.plane
        if plane is not None and plane.wants(message):
            self.work(lambda: plane.hear(source, message))
        elif isinstance(message, msgspec.Struct):
            self.post(lambda mind, now: mind.on_message(source, message, now))

    def linked(self, other: Station) -> None:
        """A link is up."""
        self.world.note(f"link {self.index} {other.id}")
        device, boot, address, plane = other.id, other.boot_id, other.address, self.plane

        def happen(mind: Mind, now: float) -> list[Effect]:
            effects = mind.on_linked(device, boot, device[:4], address, 8000, now)
            if plane is not None:
                plane.on_linked(device, boot)
            return effects

        self.post(happen)

    def unlinked(self, device: DeviceId, evidence: str) -> None:
        """This end of a link is gone: the data plane hears it first, as in a node."""
        self.world.note(f"unlink {self.index} {device} {evidence}")
        plane = self.plane

        def happen(mind: Mind, now: float) -> list[Effect]:
            if plane is not None:
                plane.on_evidence(device)
            return mind.on_unlinked(device, evidence, now)

        self.post(happen)

    def unreachable(self, address: Address, evidence: str) -> None:
        """A dial came to nothing."""
        self.post(lambda mind, now: mind.on_unreachable(address, evidence, now))

    # -- deeds --

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.watcher.on_effect(self, effect)
            match effect:
                case SendDatagram(to, _, message):
                    self.network.datagram(self, to, message)
                case Send(to, message):
                    self.network.send(self.id, to, message)
                case SendStream(to, message, address):
                    self._stream(to, message, address)
                case Dial(address):
                    self.network.dial(self, address)
                case PlansChanged() if self.plane is not None:
                    self.plane.on_plans()
                case PersistTerm(term, vote):
                    self._persist_term(term, vote)
                case _:
                    self._keep(effect)

    def _keep(self, effect: Effect) -> None:
        """What the disk has to do with; the rest is the runtime's."""
        match effect:
            case PersistIncarnation(incarnation):
                self.disk.sync(partial(setattr, self.disk, "incarnation", incarnation))
            case SaveNames(records):
                self.disk.sync(partial(setattr, self.disk, "names", records))
            case DropFile("model", key):
                self.disk.models.pop(key, None)
            case _:
                self.runtime.begin_work(effect)

    def _stream(self, to: DeviceId, message: msgspec.Struct, address: Address) -> None:
        """A node keeps links to all; a bare machine dials, and says it again by itself where it matters."""
        if self.network.send(self.id, to, message) or not self._bare:
            return
        self.network.dial(self, address)
        boot = self.boot
        self.world.later(0.3, lambda: self._again(boot, to, message))

    def _persist_term(self, term: int, vote: DeviceId | None) -> None:
        def write() -> None:
            self.disk.term, self.disk.vote = term, vote

        boot = self.boot

        def done() -> None:
            if self.boot == boot:
                self.post(lambda mind, now: mind.on_persisted(term, now))

        self.disk.sync(write, done)

    def _again(self, boot: int, to: DeviceId, message: msgspec.Struct) -> None:
        if self.boot == boot and self.running:
            self.network.send(self.id, to, message)
