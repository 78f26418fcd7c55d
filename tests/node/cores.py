"""A mesh of real cores on a virtual clock: effects are carried by hand, the slow work is answered by the harness."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.effects import Dial, PersistIncarnation, PersistTerm, SendDatagram, SendStream
from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Member
from meshnn.graph.card import Card
from meshnn.node import problem
from meshnn.node.catalogue import Catalogue
from meshnn.node.core import Core
from meshnn.node.effects import CutShards, DropFile, Effect, Fetch, Load, SaveNames, Send, Solve, Unload
from meshnn.node.messages import NameRecord
from meshnn.node.serving import Serving
from meshnn.node.shards import Shards
from meshnn.plan.messages import CutDone, CutFailed
from meshnn.plan.messages import Fetch as ShardFile
from meshnn.plan.plan import Plan, PlanSet, Recipe
from tests.plan.cards import chain

WIRE_S = 0.002
WORK_S = 0.02
STEPS_AT_ONCE_MAX = 2000
FILE_BYTES = 1000

Event = Callable[[Core, float], list[Effect]]


def device_id(letter: str) -> DeviceId:
    """A device id that is easy to read."""
    return DeviceId(letter * 26)


def model(name: str, digit: str = "1", weights: int = 100_000) -> Card:
    """The card of a chain of eight operators; `digit` makes its digest."""
    made = chain(8, weights=weights)
    return msgspec.structs.replace(made, digest=digit * 64, name=name)


@dataclass
class Device:
    """What lasts of a device (its disk), what lives (its core), and what a test may set against it."""

    letter: str
    memory_bytes: int
    disk_bytes: int = 10**9
    can_cut: bool = True
    boot: int = 0
    term: int = 0
    vote: DeviceId | None = None
    incarnation: int = 0
    names: tuple[NameRecord, ...] = ()
    files: dict[str, Card] = field(default_factory=dict)
    shards: set[str] = field(default_factory=set)
    loaded: dict[int, Recipe] = field(default_factory=dict)
    refuses: bool = False
    core: Core | None = None
    links: dict[DeviceId, int] = field(default_factory=dict)
    ending: set[DeviceId] = field(default_factory=set)

    @property
    def id(self) -> DeviceId:
        """The device's id."""
        return device_id(self.letter)

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(f"10.0.0.{ord(self.letter)}", 7000)

    @property
    def boot_id(self) -> BootId:
        """Its present life."""
        return BootId(f"{ord(self.letter):08x}{self.boot:08x}")


class Cores:
    """Several cores, their links, and the events under way between them."""

    def __init__(self, letters: str, memory_bytes: int | Mapping[str, int] = 700_000, seed: int = 1) -> None:
        """Devices named by letters, all started and let to meet."""
        self.now = 100.0
        self.sent: list[tuple[str, str, str]] = []
        self.kill_before: Callable[[str, str, msgspec.Struct], str] = lambda source, to, message: ""
        self.blocked: set[frozenset[str]] = set()
        self.drop: Callable[[str, str, msgspec.Struct], bool] = lambda source, to, message: False
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._deadlines: dict[str, float] = {}
        self._touched: set[str] = set()
        self._handles = 0
        budgets = memory_bytes if isinstance(memory_bytes, Mapping) else dict.fromkeys(letters, memory_bytes)
        self.devices = {letter: Device(letter, budgets[letter]) for letter in letters}

    # -- the script --

    def start(self, letters: str) -> None:
        """Start devices, each as a new life; mDNS shows them to each other."""
        for letter in letters:
            device = self.devices[letter]
            device.boot += 1
            device.loaded.clear()
            device.ending.clear()
            incarnation = max(device.incarnation + 1, int(self.now * 1000))
            capability = Capability(device.memory_bytes, device.disk_bytes, 1.0, 1, "x", device.can_cut)
            me = Member(device.id, device.boot_id, letter, device.address, 8000, incarnation, capability=capability)
            cluster = Cluster(me, (), device.term, device.vote, random.Random(self._random.random()), self.now)
            shards = Shards(device.memory_bytes, partial(_on_disk, device))
            catalogue = Catalogue(device.id, device.names, device.files)
            device.core = Core(cluster, catalogue, shards, device.id, device.boot_id)
            self._now(device, lambda core, now: core.start(now))
        for letter in letters:
            for other in self.devices.values():
                if other.letter != letter and other.core is not None:
                    self._event(other.letter, WIRE_S, _seen(self.devices[letter].address))
                    self._event(letter, WIRE_S, _seen(other.address))

    def add(self, letter: str, card: Card, *, replace: bool = False) -> None:
        """Give a device a model's file and name it."""
        device = self.devices[letter]
        device.files[card.digest] = card
        self._now(device, lambda core, now: core.add_model(card.name, card, now, replace=replace))

    def remove(self, letter: str, name: str) -> None:
        """Remove a model's name."""
        self._now(self.devices[letter], lambda core, now: core.remove_model(name, now))

    def hear(self, letter: str, source: str, message: msgspec.Struct) -> None:
        """A device hears a message that another sent."""
        self._now(self.devices[letter], lambda core, now: core.on_message(device_id(source), message, now))

    def kill(self, letter: str) -> None:
        """SIGKILL: the host resets every link."""
        device = self.devices[letter]
        device.core = None
        self._set_timer(device)
        for peer in sorted(device.links):
            self._cut_link(peer[0], letter, "reset")
        device.links.clear()

    def unlink(self, one: str, other: str, evidence: str = "closed") -> None:
        """Break a link; both ends live on."""
        for near, far in ((one, other), (other, one)):
            self._cut_link(near, far, evidence)

    def sever(self, one: str, other: str) -> None:
        """A link carries nothing any more, and neither end has noticed."""
        for near, far in ((one, other), (other, one)):
            self.devices[near].links.pop(device_id(far), None)

    def notice(self, one: str, other: str) -> None:
        """Both ends of a severed link notice."""
        for near, far in ((one, other), (other, one)):
            self._event(near, WIRE_S, partial(_unlinked, self.devices[near], device_id(far), "silent"))

    def part(self, one: str, other: str) -> None:
        """Two devices cannot reach each other any more, and notice; everybody else reaches both."""
        self.blocked.add(frozenset((one, other)))
        self.unlink(one, other, "silent")

    def hold(self, letter: str, card: Card) -> None:
        """Put a model's whole file on a device, as a copy that arrived."""
        self.devices[letter].files[card.digest] = card
        self._now(self.devices[letter], lambda core, now: core.on_model_fetched(card.digest, "", now))

    def run(self, duration_s: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let virtual time pass; True as soon as `until` holds."""
        end, steps = self.now + duration_s, 0
        while not until():
            when = self._next()
            if when is None or when > end:
                self.now = end
                return until()
            steps = steps + 1 if when <= self.now else 0
            assert steps < STEPS_AT_ONCE_MAX, "time stands still: a deadline that is never met"
            self.now = max(self.now, when)
            self._step()
            self._check()
        return True

    # -- what is seen --

    def core(self, letter: str) -> Core:
        """The core of a device that lives."""
        found = self.devices[letter].core
        assert found is not None, f"{letter} is dead"
        return found

    def happens(self, letter: str, event: Event) -> None:
        """Let an event of the outside happen to a device that lives."""
        self._now(self.devices[letter], event)

    @property
    def living(self) -> str:
        """The letters of the devices that live."""
        return "".join(letter for letter, device in self.devices.items() if device.core is not None)

    def leader(self) -> str:
        """The one leader all that live agree on; empty while they do not."""
        said = {self.core(letter).cluster.leader for letter in self.living}
        (one, *more) = said
        return one[0] if one is not None and not more and one[0] in self.living else ""

    def settled(self, name: str, digest: str | None = None) -> bool:
        """Whether all agree on a leader and a plan whose devices live in the life it names, their shards loaded."""
        plans = [self.core(letter).book.active(name) for letter in self.living]
        first = plans[0]
        if not self.leader() or first is None or any(p is None or p.main != first.main for p in plans):
            return False
        lives = {self.devices[letter].id: self.devices[letter].boot_id for letter in self.living}
        here = all(lives.get(device) == boot for device, boot in first.main.lives().items())
        return here and self.is_loaded(first.main) and digest in (None, first.main.digest)

    def covered(self, name: str) -> bool:
        """Whether all that live know every contingency of the active plan as loaded, and it is."""
        plans = self.plans(name)
        ready = [self.core(letter).book.ready(name) for letter in self.living]
        epochs = {plan.epoch for plan in plans.plans}
        return all(epochs == said for said in ready) and all(self.is_loaded(plan) for plan in plans.plans)

    def plans(self, name: str) -> PlanSet:
        """The active plan set, as the first living device knows it."""
        found = self.core(self.living[0]).book.active(name)
        assert found is not None, f"no plan for {name}"
        return found

    def choose(self, letter: str, name: str, avoid: Iterable[str] = ()) -> Plan | None:
        """The plan a device would use now."""
        return Serving(self.core(letter), lambda model, epoch: None).choose(
            name, frozenset(device_id(other) for other in avoid)
        )

    def is_loaded(self, plan: Plan) -> bool:
        """Whether every shard of a plan is really loaded where it should be, in the life the plan names."""
        return all(
            recipe in self.devices[shard.device[0]].loaded.values()
            and self.devices[shard.device[0]].core is not None
            and self.devices[shard.device[0]].boot_id == shard.boot
            for recipe, shard in plan.placements()
        )

    # -- inside --

    def _check(self) -> None:
        """What must hold after every step: memory within budget, handles as the core believes."""
        touched, self._touched = self._touched, set()
        for letter in touched.intersection(self.living):
            device, core = self.devices[letter], self.core(letter)
            assert core.shards.used_bytes <= device.memory_bytes, f"{letter} is over its budget"
            assert set(core.shards.loaded()) == set(device.loaded.values()), f"{letter} has lost count of its shards"

    def _next(self) -> float | None:
        times = [self._heap[0][0]] if self._heap else []
        return min([*times, *self._deadlines.values()], default=None)

    def _step(self) -> None:
        if self._heap and self._heap[0][0] <= self.now:
            heapq.heappop(self._heap)[2]()
            return
        letter = min(self._deadlines, key=lambda one: (self._deadlines[one], one))
        self._now(self.devices[letter], lambda core, now: core.on_deadline(now))

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._serial, action))

    def _event(self, letter: str, delay_s: float, event: Event) -> None:
        """An event of a device's present life."""
        device, boot = self.devices[letter], self.devices[letter].boot

        def happen() -> None:
            if device.core is not None and device.boot == boot:
                self._now(device, event)

        self._later(delay_s, happen)

    def _now(self, device: Device, event: Event) -> None:
        assert device.core is not None
        self._perform(device, event(device.core, self.now))
        self._touched.add(device.letter)
        self._set_timer(device)

    def _set_timer(self, device: Device) -> None:
        self._deadlines.pop(device.letter, None)
        deadline = None if device.core is None else device.core.deadline
        if deadline is not None:
            self._deadlines[device.letter] = deadline

    def _perform(self, device: Device, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._send(device, to[0], message)
                case SendStream(to, message, address):
                    if to in device.links:
                        self._send(device, to[0], message)
                    else:
                        self._dial(device, address)
                case SendDatagram(to, _, message):
                    self._datagram(device, to, message)
                case Dial(address):
                    self._dial(device, address)
                case PersistTerm(term, vote):
                    device.term, device.vote = term, vote
                    self._event(device.letter, WIRE_S, _persisted(term))
                case PersistIncarnation(incarnation):
                    device.incarnation = incarnation
                case SaveNames(records):
                    device.names = records
                case _:
                    self._work(device, effect)

    def _datagram(self, device: Device, to: DeviceId, message: msgspec.Struct) -> None:
        """One datagram, unless the two cannot reach each other."""
        if {device.letter, to[0]} not in self.blocked:
            self._event(to[0], WIRE_S, _datagram(device.id, device.boot_id, message))

    def _work(self, device: Device, effect: Effect) -> None:
        """The deeds that take time."""
        match effect:
            case Fetch():
                self._fetch(device, effect)
            case Load(recipe):
                self._later(WORK_S, partial(self._load, device, device.boot, recipe))
            case Unload(_, handle):
                del device.loaded[handle]
            case CutShards():
                self._event(device.letter, WORK_S, partial(_answer_cut, device, effect))
            case Solve(name, task):
                self._event(device.letter, WORK_S, _solved(name, task))
            case DropFile("model", key):
                device.files.pop(key, None)
            case _:
                return

    def _send(self, device: Device, to: str, message: msgspec.Struct) -> None:
        """Over the link, in order; lost with the link."""
        link = device.links.get(device_id(to))
        if link is None or self.drop(device.letter, to, message):
            return
        boots = (device.boot, self.devices[to].boot)

        def arrive() -> None:
            target = self.devices[to]
            victim = self.kill_before(device.letter, to, message)
            if victim and self.devices[victim].core is not None:
                self.kill(victim)
            alive = target.core is not None and (device.boot, target.boot) == boots
            if alive and target.links.get(device.id) == link:
                self.sent.append((device.letter, to, type(message).__name__))
                self._now(target, lambda core, now: core.on_message(device.id, message, now))

        self._later(WIRE_S, arrive)

    def _dial(self, device: Device, address: Address) -> None:
        boot = device.boot
        self._later(WIRE_S, lambda: self._connect(device, boot, address))

    def _connect(self, device: Device, boot: int, address: Address) -> None:
        target = next(other for other in self.devices.values() if other.address == address)
        if device.core is None or device.boot != boot or target.id in device.links or target is device:
            return
        if {device.letter, target.letter} in self.blocked:
            return
        if target.core is None:
            self._now(device, lambda core, now: core.on_unreachable(address, "refused", now))
            return
        if target.id in device.ending or device.id in target.ending:
            self._dial(device, address)
            return
        self._serial += 1
        for near, far in ((device, target), (target, device)):
            near.links[far.id] = self._serial
        for near, far in ((device, target), (target, device)):
            self._now(near, _linked(far))

    def _cut_link(self, near: str, far: str, evidence: str) -> None:
        device = self.devices[near]
        if device.links.pop(device_id(far), None) is not None:
            device.ending.add(device_id(far))
            self._event(near, WIRE_S, partial(_unlinked, device, device_id(far), evidence))

    def _fetch(self, device: Device, wanted: Fetch) -> None:
        """Any holder that lives gives the file; a shard is cut again by whoever has the model."""

        def arrive(core: Core, now: float) -> list[Effect]:
            sources = [self.devices[holder[0]] for holder in wanted.holders]
            sources = [one for one in sources if one.core is not None and (one is device or one.id in device.links)]
            if wanted.recipe is not None:
                digest = wanted.recipe.digest
                found = any(digest in one.files or wanted.key in one.shards for one in sources)
                if found:
                    device.shards.add(wanted.key)
                return core.on_shard_fetched(wanted.recipe, "" if found else "no holder gave it", now)
            card = next((one.files[wanted.key] for one in sources if wanted.key in one.files), None)
            if wanted.kind == "card":
                return core.on_card_fetched(wanted.key, card, now)
            if card is not None and wanted.size_bytes <= device.disk_bytes:
                device.files[wanted.key] = card
                return core.on_model_fetched(wanted.key, "", now)
            return core.on_model_fetched(wanted.key, "no holder gave it", now)

        self._event(device.letter, WORK_S, arrive)

    def _load(self, device: Device, boot: int, recipe: Recipe) -> None:
        if device.core is None or device.boot != boot:
            return
        if device.refuses:
            self._now(device, lambda core, now: core.on_load_failed(recipe, "the runtime does not like it", now))
            return
        self._handles += 1
        handle = self._handles
        device.loaded[handle] = recipe
        self._now(device, lambda core, now: core.on_loaded(recipe, handle, now))


def meet(letters: str, memory_bytes: int | Mapping[str, int] = 700_000, seed: int = 1) -> Cores:
    """A mesh whose devices have met, are linked and have a leader."""
    mesh = Cores(letters, memory_bytes, seed)
    mesh.start(letters)
    assert mesh.run(30, lambda: bool(mesh.leader()) and all_linked(mesh)), "they did not meet"
    mesh.run(5)
    return mesh


def all_linked(mesh: Cores) -> bool:
    """Whether all that live are linked with each other and know it."""
    return all(len(mesh.core(letter).planned(mesh.now)) == len(mesh.living) for letter in mesh.living)


def _on_disk(device: Device, recipe: Recipe) -> bool:
    return recipe.key in device.shards


def _answer_cut(device: Device, order: CutShards, core: Core, now: float) -> list[Effect]:
    """Cut what is held here, or say why not."""
    missing = [recipe for recipe in order.recipes if recipe.digest not in device.files]
    if missing:
        return core.answer(order.to, CutFailed(order.epoch, "the model is not here"), now)
    device.shards |= {recipe.key for recipe in order.recipes}
    files = tuple(ShardFile(recipe, "0" * 64, FILE_BYTES, (device.id,)) for recipe in order.recipes)
    return core.answer(order.to, CutDone(order.epoch, files), now)


def _seen(address: Address) -> Event:
    return lambda core, now: core.on_seen(address, now)


def _persisted(term: int) -> Event:
    return lambda core, now: core.on_persisted(term, now)


def _datagram(source: DeviceId, boot: BootId, message: msgspec.Struct) -> Event:
    return lambda core, now: core.on_datagram(source, boot, message, now)


def _solved(name: str, task: problem.Problem) -> Event:
    result = problem.solve(task)
    return lambda core, now: core.on_solved(name, task, result, now)


def _unlinked(device: Device, far: DeviceId, evidence: str, core: Core, now: float) -> list[Effect]:
    device.ending.discard(far)
    return core.on_unlinked(far, evidence, now)


def _linked(far: Device) -> Event:
    return lambda core, now: core.on_linked(far.id, far.boot_id, far.letter, far.address, 8000, now)
