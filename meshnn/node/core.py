"""The core: every event of a node goes through here, every decision comes out as effects. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeVar, cast, get_args

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.effects import Dial, Evidence, LeaderChanged, MemberChanged
from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Load, Member, MemberState
from meshnn.cluster.messages import Message
from meshnn.cluster.timing import earliest
from meshnn.errors import ModelError
from meshnn.graph.card import Card
from meshnn.node.catalogue import Catalogue
from meshnn.node.contacts import Contacts
from meshnn.node.copies import Copies
from meshnn.node.effects import Changed, CutShards, Effect, Fetch, PlansChanged, Send, note
from meshnn.node.flaps import Flaps
from meshnn.node.health import Health
from meshnn.node.leader import Leader
from meshnn.node.messages import Copy, CopyFailed, CutOff, Holdings, Names, Pin, PinAnswer, TellPlans, Unpin
from meshnn.node.paces import Paces
from meshnn.node.plans import PlanBook
from meshnn.node.problem import Problem
from meshnn.node.readings import Readings
from meshnn.node.severed import Severed
from meshnn.node.shards import Shards
from meshnn.node.thrift import Memory, Thrift
from meshnn.node.view import View, firm, slowed
from meshnn.plan.messages import Activate, Cut, CutDone, CutFailed, Prepare, Ready, Refused, Retire, Unplanned
from meshnn.plan.plan import Epoch, PlanSet, Recipe

T = TypeVar("T")
# Messages a node may send itself within one event before it must be a loop in our logic.
LOCAL_MAX = 10_000
CARD_RETRY_S = 3.0
PIN_ANSWERS_MAX = 64
# A leader looks at what the devices tell of their load so often: no event comes of it.
LOOK_EVERY_S = 2.0
# A node without a link to a leader asks another one which plans serve, so often.
TELL_PLANS_S = 3.0


class Core:
    """The machines of a node and the routes between them; one task owns it."""

    def __init__(self, cluster: Cluster, catalogue: Catalogue, shards: Shards, me: DeviceId, boot: BootId) -> None:
        """The machines that hold state from disk come ready made."""
        self.cluster = cluster
        self.catalogue = catalogue
        self.shards = shards
        self.book = PlanBook(me, boot, shards, catalogue.card)
        self.leader = Leader(me, catalogue, self.book)
        self.copies = Copies()
        self.contacts = Contacts(me)
        self.flaps = Flaps()
        self.paces = Paces()
        self.severed = Severed(me)
        self._readings = Readings(self.book, catalogue.card)
        self.health = Health()
        self.thrift = Thrift(shards.budget_bytes)
        # The last look at the real memory of this device, if ever there was one.
        self.memory: Memory | None = None
        # The leader's answers to `Pin` and `Unpin`, by ask: why not, or "" for yes.
        self.pinned: dict[str, str] = {}
        self._me = me
        self._copying: dict[str, DeviceId] = {}
        self._cards_due: float | None = None
        self._look_due = 0.0
        self._plans_due: float | None = None
        self._led: tuple[DeviceId | None, int] = (None, 0)
        self._looked_at: Mapping[DeviceId, Member] | None = None

    @property
    def deadline(self) -> float | None:
        """When `on_deadline` is due, in the caller's clock."""
        own = (self._cards_due, self._copies_due, self._view_due, self._plans_due)
        return earliest((*own, self.cluster.deadline, self.book.deadline, self.leader.deadline, self.contacts.deadline))

    @property
    def _copies_due(self) -> float | None:
        return self.copies.deadline if self.leader.leading else None

    @property
    def _view_due(self) -> float | None:
        """When something that is held against a device lapses: only a leader needs to know at once."""
        if not self.leader.leading:
            return None
        times = (self.flaps.deadline, self.paces.deadline, self._look_due if self.book.models else None)
        return min((when for when in times if when is not None), default=None)

    def planned(self, now: float) -> dict[DeviceId, Member]:
        """The members that plans may use now."""
        members = self.cluster.members
        states = {MemberState.ALIVE, MemberState.SUSPECT}
        return {
            device: member
            for device, member in members.items()
            if member.state in states and self.contacts.reachable(member, now)
        }

    def start(self, now: float) -> list[Effect]:
        """The node begins."""
        return self._settle(list(self.cluster.start(now)), now)

    def leave(self, now: float) -> list[Effect]:
        """The node says goodbye."""
        return list(self.cluster.leave(now))

    def on_datagram(self, source: DeviceId, boot: BootId, message: msgspec.Struct, now: float) -> list[Effect]:
        """A datagram of membership or election."""
        spoken = cast("Message", message)  # the codec knows the closed union
        return self._settle(list(self.cluster.on_datagram(source, boot, spoken, now)), now)

    def on_seen(self, address: Address, now: float) -> list[Effect]:
        """An address that may be a peer: mDNS, --peer, or remembered."""
        return self._settle(list(self.cluster.on_seen(address, now)), now)

    def on_interfaces(self, address: Address, now: float) -> list[Effect]:
        """The network of this device changed; `address` is where it listens now."""
        self.contacts.on_network()
        return self._settle([*self.cluster.on_interfaces(address, now), Changed()], now)

    def on_linked(
        self, device: DeviceId, boot: BootId, name: str, address: Address, http_port: int, now: float
    ) -> list[Effect]:
        """A link is up."""
        self.contacts.on_linked(device, boot)
        self.copies.on_linked(device)
        self.severed.on_linked(device)
        effects: list[Effect] = list(self.cluster.on_linked(device, boot, name, address, http_port, now))
        effects += self.catalogue.on_linked(device)
        effects += self.leader.on_linked(device, boot)
        effects += self.book.on_linked(device, now)
        return self._settle([*effects, Changed()], now)

    def on_unlinked(self, device: DeviceId, evidence: str, now: float) -> list[Effect]:
        """A link is gone, or could not be made; `evidence` says how."""
        self.contacts.on_unlinked(device, evidence, now)
        known: Evidence = "silent" if evidence not in get_args(Evidence) else cast("Evidence", evidence)
        effects: list[Effect] = list(self.cluster.on_unlinked(device, known, now))
        return self._settle([*effects, *self.catalogue.on_unlinked(device)], now)

    def on_unreachable(self, address: Address, evidence: str, now: float) -> list[Effect]:
        """A dial came to nothing: a refusal by the host is evidence about the member that lived there."""
        if evidence != "refused":
            return []
        there = [m.device_id for m in self._dialable() if m.address == address and m.device_id != self._me]
        effects: list[Effect] = []
        for device in there:
            if device not in self.contacts.linked:
                effects += self.cluster.on_unlinked(device, "refused", now)
        return self._settle(effects, now)

    def on_message(self, source: DeviceId, message: msgspec.Struct, now: float) -> list[Effect]:
        """A control message of a linked peer."""
        return self._settle(self._take(source, message, now), now)

    def on_deadline(self, now: float) -> list[Effect]:
        """Time has come for some machine."""
        effects: list[Effect] = []
        if self.cluster.deadline is not None and self.cluster.deadline <= now:
            effects += self.cluster.on_deadline(now)
        effects += self.book.on_deadline(now)
        if self._cards_due is not None and self._cards_due <= now:
            self._cards_due = None
            effects += self.catalogue.retry_cards()
        due = [self.leader.deadline, self._copies_due, self._view_due, self.contacts.deadline]
        if any(when is not None and when <= now for when in due):
            effects.append(Changed())
        return self._settle(effects, now)

    def on_persisted(self, term: int, now: float) -> list[Effect]:
        """The term and vote are on disk."""
        return self._settle(list(self.cluster.on_persisted(term, now)), now)

    def on_unpersisted(self, term: int, now: float) -> list[Effect]:
        """The disk refused the term and vote."""
        return self._settle(list(self.cluster.on_unpersisted(term, now)), now)

    def on_trouble(self, subject: str, reason: str, now: float) -> list[Effect]:
        """Something is wrong with this device, or (without a reason) is well again."""
        told = self.health.tell(subject, reason)
        capability = msgspec.structs.replace(self.cluster.me.capability, degraded=self.health.degraded)
        return self._settle([*told, *self.cluster.set_capability(capability, now)], now) if told else []

    def on_memory(self, memory: Memory, now: float) -> list[Effect]:
        """A look at the real memory: where the budget cannot be kept to, shards go and the leader hears of it."""
        self.memory = memory
        if not self.thrift.on_look(memory, self.shards.used_bytes, now):
            return []
        budget, configured = self.thrift.budget_bytes, self.thrift.configured_bytes
        effects = [*self.shards.set_budget(budget), *self.book.on_shards()]
        capability = msgspec.structs.replace(self.cluster.me.capability, memory_bytes=budget)
        effects += self.cluster.set_capability(capability, now)
        reason = (
            ""
            if budget == configured
            else (
                f"{budget / 1e6:.0f} of {configured / 1e6:.0f} MB for shards: {memory.room_bytes / 1e6:.0f} MB of "
                f"{memory.limit_bytes / 1e6:.0f} MB are free; end other programs, or lower --memory"
            )
        )
        return [*self._settle(effects, now), *self.on_trouble("memory", reason, now)]

    def on_solved(self, model: str, problem: Problem, result: PlanSet | str, now: float) -> list[Effect]:
        """The search for plans ended."""
        return self._settle(self.leader.on_solved(model, problem, result, now), now)

    def on_loaded(self, recipe: Recipe, handle: int, now: float, took_ms: float = 0.0) -> list[Effect]:
        """A shard is loaded, checks included."""
        return self._settle([*self.shards.on_loaded(recipe, handle, took_ms), *self.book.on_shards()], now)

    def on_load_failed(self, recipe: Recipe, reason: str, now: float) -> list[Effect]:
        """A shard cannot be loaded."""
        return self._settle([*self.shards.on_load_failed(recipe, reason), *self.book.on_shards()], now)

    def on_shard_fetched(self, recipe: Recipe, reason: str, now: float, took_ms: float = 0.0) -> list[Effect]:
        """A shard's file has arrived, or (with a reason) has not."""
        shards = self.shards
        effects = shards.on_fetch_failed(recipe, reason) if reason else shards.on_fetched(recipe, took_ms)
        return self._settle([*effects, *self.book.on_shards()], now)

    def on_model_fetched(self, digest: str, reason: str, now: float) -> list[Effect]:
        """A whole model has arrived, or (with a reason) has not."""
        asker = self._copying.pop(digest, None)
        if not reason:
            return self._settle(self.catalogue.on_held(digest), now)
        effects: list[Effect] = [] if asker is None else [Send(asker, CopyFailed(digest, reason))]
        return self._settle(effects, now)

    def on_asked(self, model: str, epoch: Epoch, now: float) -> list[Effect]:
        """A request came for a shard of this plan that is not loaded here, or is a contingency's."""
        return self._settle(self.book.on_asked(model, epoch, now), now)

    def on_card_fetched(self, digest: str, card: Card | None, now: float) -> list[Effect]:
        """A card has arrived, or (None) has not."""
        if card is not None:
            return self._settle([*self.catalogue.on_card(digest, card), *self.book.on_card()], now)
        self._cards_due = now + CARD_RETRY_S
        return self._settle(self.catalogue.on_card_failed(digest), now)

    def answer(self, to: DeviceId, message: msgspec.Struct, now: float) -> list[Effect]:
        """Send a message that some finished work made, to a peer or to this node itself."""
        return self._settle([Send(to, message)], now)

    def add_model(self, name: str, card: Card, now: float, *, replace: bool) -> list[Effect]:
        """Name a model whose file is in the store; ModelConflictError, ModelError."""
        return self._settle(self.catalogue.bind(name, card, replace=replace), now)

    def remove_model(self, name: str, now: float) -> list[Effect]:
        """Forget a name in the whole mesh; UnknownModelError."""
        return self._settle(self.catalogue.remove(name), now)

    def set_capability(self, capability: Capability, now: float) -> list[Effect]:
        """This device was measured; its health and what is left of its memory are this core's to tell."""
        capability = msgspec.structs.replace(
            capability, memory_bytes=self.shards.budget_bytes, degraded=self.health.degraded
        )
        return self._settle([*self.cluster.set_capability(capability, now), Changed()], now)

    def set_load(self, load: Load, now: float) -> list[Effect]:
        """How busy this device is."""
        return self._settle(list(self.cluster.set_load(load, now)), now)

    def _take(self, source: DeviceId, message: msgspec.Struct, now: float) -> list[Effect]:
        """Give a control message to the machine it is for."""
        handlers: dict[type, Callable[[], list[Effect]]] = {
            Names: lambda: self.catalogue.on_names(source, _as(Names, message)),
            Holdings: lambda: self.catalogue.on_holdings(source, _as(Holdings, message)),
            Prepare: lambda: self.book.on_prepare(source, _as(Prepare, message), now),
            Activate: lambda: self.book.on_activate(source, _as(Activate, message), now),
            Retire: lambda: self.book.on_retire(_as(Retire, message), now),
            Ready: lambda: self.leader.on_ready(source, _as(Ready, message), now),
            Refused: lambda: self.leader.on_refused(source, _as(Refused, message), now),
            CutDone: lambda: self.leader.on_cut_done(_as(CutDone, message), now),
            CutFailed: lambda: self.leader.on_cut_failed(_as(CutFailed, message), now),
            Unplanned: lambda: self.book.on_unplanned(_as(Unplanned, message)),
            Cut: lambda: self._cut(source, _as(Cut, message)),
            Copy: lambda: self._copy(source, _as(Copy, message)),
            CopyFailed: lambda: self._copy_failed(source, _as(CopyFailed, message), now),
            Pin: lambda: self.leader.on_pin(source, _as(Pin, message), now),
            Unpin: lambda: self.leader.on_pin(source, _as(Unpin, message), now),
            PinAnswer: lambda: self._pin_answered(_as(PinAnswer, message)),
            CutOff: lambda: self._cut_off(source, _as(CutOff, message)),
            TellPlans: lambda: self.book.tell(source),
        }
        handler = handlers.get(type(message))
        if handler is not None:
            return handler()
        if not isinstance(message, get_args(Message)):
            return []  # what travels only as a header, or is meant for another part of a node
        return list(self.cluster.on_stream_message(source, cast("Message", message), now))

    def _cut(self, source: DeviceId, message: Cut) -> list[Effect]:
        return [CutShards(source, message.epoch, message.model, message.recipes)]

    def _copy(self, source: DeviceId, message: Copy) -> list[Effect]:
        """Hold a second copy of a model, as the leader asks."""
        if message.digest in self.catalogue.held:
            return []
        under_way = message.digest in self._copying
        self._copying[message.digest] = source
        if under_way:
            return []
        return [Fetch("model", message.digest, message.size_bytes, message.digest, message.holders)]

    def _pin_answered(self, message: PinAnswer) -> list[Effect]:
        """The leader's word on a wish of this node's."""
        self.pinned[message.ask] = message.reason
        for ask in list(self.pinned)[:-PIN_ANSWERS_MAX]:
            del self.pinned[ask]
        return [Changed()]

    def _cut_off(self, source: DeviceId, message: CutOff) -> list[Effect]:
        self.severed.on_cut_off(source, message)
        return [Changed()]

    def _copy_failed(self, source: DeviceId, message: CopyFailed, now: float) -> list[Effect]:
        if not self.leader.leading:
            return []
        return [*self.copies.on_refused(source, message.digest, message.reason, now), Changed()]

    def _settle(self, effects: list[Effect], now: float) -> list[Effect]:
        """Follow what an event set off inside the node, until nothing changes any more, and hand the rest out."""
        out: list[Effect] = []
        pending = deque([*effects, *self._follow_leader(now)])
        changed = False
        for _ in range(LOCAL_MAX):
            if pending:
                effect = pending.popleft()
                if isinstance(effect, Send) and effect.to == self._me:
                    pending.extend(self._take(self._me, effect.message, now))
                else:
                    out.append(effect)
                    changed = changed or isinstance(effect, (Changed, MemberChanged, LeaderChanged, PlansChanged))
            elif changed:
                changed = False
                pending.extend(self._review(now))
            else:
                return [*out, *self._redial(now), *self._tell_cut_off(), *self._ask_for_plans(now)]
        raise AssertionError("a node talks to itself without end")

    def _tell_cut_off(self) -> list[Effect]:
        """Tell the leader whom this device cannot reach; a leader cannot use whom it cannot reach itself."""
        leader = self.cluster.leader
        return [] if leader == self._me else self.severed.review(leader, self.contacts.cut_off)

    def _ask_for_plans(self, now: float) -> list[Effect]:
        """Whom no leader can reach hears of new plans from others, each in turn; what it runs would be stale else."""
        leader, linked = self.cluster.leader, sorted(self.contacts.linked)
        if leader == self._me or leader in self.contacts.linked or not linked:
            self._plans_due = None
        elif self._plans_due is None:
            self._plans_due = now + TELL_PLANS_S
        elif self._plans_due <= now:
            self._plans_due = now + TELL_PLANS_S
            return [Send(linked[int(now / TELL_PLANS_S) % len(linked)], TellPlans())]
        return []

    def _follow_leader(self, now: float) -> list[Effect]:
        """Take up or lay down the leader's work as the election says."""
        led = (self.cluster.leader, self.cluster.term)
        if led == self._led:
            return []
        self._led = led
        mine = led[0] == self._me
        if not mine:
            self.copies.reset()
        return [
            *self.leader.on_role(led[1] if mine else None, now),
            *self.book.on_leader(led[0], now),
            note("leader", leader=str(led[0]), term=led[1]),
            Changed(),
        ]

    def _review(self, now: float) -> list[Effect]:
        """Look at everything that follows from who is here and what is known."""
        gone = [model for model in self.book.known if self.catalogue.gone(model)]
        effects = [effect for model in gone for effect in self.book.on_gone(model, now)]
        effects += self._outbid(now)
        planned = self.planned(now)
        effects += self.leader.review(self._view(planned, now), now)
        if self.leader.leading:
            disks = {device: member.capability.disk_bytes for device, member in planned.items()}
            effects += self.copies.review(self.catalogue, disks, now)
        return effects

    def _outbid(self, now: float) -> list[Effect]:
        """Two leaders of one term, and the dead one's plan ranks higher: nothing of ours would be taken before it."""
        if not self.leader.leading:
            return []
        epochs = [epoch for model in self.book.models if (epoch := self.book.newest(model)) is not None]
        higher = [e.term for e in epochs if (e.term, e.leader) > (self.cluster.term, self._me)]
        return list(self.cluster.outbid(max(higher), now)) if higher else []

    def _redial(self, now: float) -> list[Dial]:
        """Dial whoever is due; the same members need no second look before that."""
        members = self.cluster.members
        if members is self._looked_at and not self.contacts.due(now):
            return []
        self._looked_at = members
        return self.contacts.review(self._dialable(), now)

    def _view(self, planned: dict[DeviceId, Member], now: float) -> View:
        """The devices as a leader plans with them: slow ones as slow as they are, flappers and severed used last."""
        if not self.cluster.isolated:
            self.flaps.on_members({device: member.boot_id for device, member in planned.items()}, now)
        if not self.leader.leading:
            return View(planned)
        self._look_due = now + LOOK_EVERY_S
        self.paces.on_readings(self._readings.of(planned), now)
        alive = {d: slowed(member, self.paces.factor(d, member.boot_id)) for d, member in planned.items()}
        departures = {device: self.flaps.departures(device, now) for device in planned}
        severed = self.severed.pairs(planned)
        return View(alive, self.flaps.held(now).union(*firm(severed, planned)), severed, departures)

    def _dialable(self) -> list[Member]:
        states = {MemberState.ALIVE, MemberState.SUSPECT}
        return [member for member in self.cluster.members.values() if member.state in states]


def _as(kind: type[T], message: object) -> T:
    """The message as its own type, which the caller has looked at."""
    if not isinstance(message, kind):
        raise ModelError(f"a {type(message).__name__} where a {kind.__name__} was meant")
    return message
