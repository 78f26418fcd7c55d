"""The plans this node knows: prepared, active, draining. A pure machine; it follows, the leader decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshnn.cluster.member import BootId, DeviceId
from meshnn.graph.card import Card
from meshnn.node.effects import Changed, Effect, PlansChanged, Send, note
from meshnn.node.shards import Level, Shards, State, Wanted
from meshnn.plan.messages import Activate, Fetch, Prepare, Ready, Refused, Retire, Unplanned
from meshnn.plan.plan import Epoch, Plan, PlanSet, Recipe
from meshnn.plan.ranges import memory_bytes

# How long a replaced plan stays servable for the requests inside it, in seconds.
DRAIN_S = 5.0


@dataclass(slots=True)
class _Entry:
    """A plan set as this device holds it."""

    plans: PlanSet
    files: dict[Recipe, Fetch] = field(default_factory=dict)
    ready: frozenset[Epoch] = frozenset()
    reported: Ready | Refused | None = None


class PlanBook:
    """What is prepared, what serves and what drains, by model; the shards follow from it."""

    def __init__(self, me: DeviceId, boot: BootId, shards: Shards, card: Callable[[str], Card | None]) -> None:
        """`card` finds a model's card by its digest."""
        self._me = me
        self._boot = boot
        self._shards = shards
        self._card = card
        self._prepared: dict[str, _Entry] = {}
        self._active: dict[str, _Entry] = {}
        self._draining: dict[Epoch, tuple[_Entry, float]] = {}
        self._leader: DeviceId | None = None
        self._unplanned: dict[str, Unplanned] = {}

    @property
    def deadline(self) -> float | None:
        """When the next replaced plan is dropped, in the caller's clock."""
        return min((until for _, until in self._draining.values()), default=None)

    @property
    def models(self) -> tuple[str, ...]:
        """The models with an active plan, sorted."""
        return tuple(sorted(self._active))

    def active(self, model: str) -> PlanSet | None:
        """The plan set that serves a model."""
        entry = self._active.get(model)
        return None if entry is None else entry.plans

    def ready(self, model: str) -> frozenset[Epoch]:
        """The epochs of the active plan set of which every shard is loaded, as the leader said last."""
        entry = self._active.get(model)
        return frozenset() if entry is None else entry.ready

    def plan(self, model: str, epoch: Epoch) -> Plan | None:
        """The plan of an epoch, be it active, prepared or draining."""
        entries = [self._active.get(model), self._prepared.get(model)]
        entries += [entry for entry, _ in self._draining.values() if entry.plans.main.model == model]
        plans = (plan for entry in entries if entry is not None for plan in entry.plans.plans)
        return next((plan for plan in plans if plan.epoch == epoch), None)

    def newest(self, model: str) -> Epoch | None:
        """The epoch of the active plan."""
        entry = self._active.get(model)
        return None if entry is None else entry.plans.main.epoch

    def choose(self, model: str, avoid: frozenset[DeviceId]) -> Plan | None:
        """The plan to use without the devices in `avoid`: the active one, else a loaded contingency."""
        entry = self._active.get(model)
        if entry is None:
            return None
        usable = [entry.plans.main, *(plan for plan in entry.plans.contingencies if plan.epoch in entry.ready)]
        return next((plan for plan in usable if avoid.isdisjoint(plan.devices())), None)

    def unplanned(self, model: str) -> Unplanned | None:
        """Why a model has no plan, as the leader said last."""
        return self._unplanned.get(model)

    def on_unplanned(self, message: Unplanned) -> list[Effect]:
        """The leader found no plan."""
        self._unplanned[message.model] = message
        return [Changed()]

    def on_leader(self, leader: DeviceId | None) -> list[Effect]:
        """Another leader: it hears anew what is loaded here."""
        self._leader = leader
        for entry in (*self._active.values(), *self._prepared.values()):
            entry.reported = None
        return self._report()

    def on_prepare(self, source: DeviceId, message: Prepare, now: float) -> list[Effect]:
        """Hold these shards, unless a newer plan is known or the plan means another life of this device."""
        main = message.plans.main
        known = max(self._epochs(main.model), default=None)
        if known is not None and main.epoch < known:
            return [Send(source, Refused(main.epoch, "a newer plan is known here", known))]
        lives = {boot for plan in message.plans.plans for device, boot in plan.lives().items() if device == self._me}
        if lives - {self._boot}:
            return [Send(source, Refused(main.epoch, "the plan means an earlier life of this device", known))]
        self._leader = source
        entry = self._prepared.get(main.model)
        if entry is None or entry.plans.main.epoch != main.epoch:
            entry = _Entry(message.plans)
            self._prepared[main.model] = entry
        entry.files = {fetch.recipe: fetch for fetch in message.fetch}
        entry.reported = None
        retried = [effect for recipe in entry.files for effect in self._shards.retry(recipe)]
        return [*retried, *self._arrange(now)]

    def on_activate(self, message: Activate, now: float) -> list[Effect]:
        """From now on this plan set serves its model; what it replaces drains."""
        main = message.plans.main
        self._unplanned.pop(main.model, None)
        current = self._active.get(main.model)
        if current is not None and main.epoch < current.plans.main.epoch:
            return []
        if current is not None and current.plans.main.epoch == main.epoch:
            current.ready = frozenset(message.ready)
            return [PlansChanged()]
        prepared = self._prepared.get(main.model)
        entry = _Entry(message.plans)
        if prepared is not None and prepared.plans.main.epoch <= main.epoch:
            del self._prepared[main.model]
            if prepared.plans.main.epoch == main.epoch:
                entry = prepared
        entry.ready = frozenset(message.ready)
        self._active[main.model] = entry
        if current is not None:
            self._draining[current.plans.main.epoch] = (current, now + DRAIN_S)
        return [note("plan_active", model=main.model, epoch=str(main.epoch)), PlansChanged(), *self._arrange(now)]

    def on_retire(self, message: Retire, now: float) -> list[Effect]:
        """Drop a plan that never served, or serves no longer."""
        prepared = self._prepared.get(message.model)
        if prepared is not None and prepared.plans.main.epoch == message.epoch:
            del self._prepared[message.model]
        self._unplanned.pop(message.model, None)
        active = self._active.get(message.model)
        if active is not None and active.plans.main.epoch == message.epoch:
            del self._active[message.model]
            self._draining[message.epoch] = (active, now + DRAIN_S)
        return [PlansChanged(), *self._arrange(now)]

    def on_shards(self, now: float) -> list[Effect]:
        """A shard was fetched, loaded or refused: tell the leader what that means."""
        del now
        return [PlansChanged(), *self._report()]

    def on_deadline(self, now: float) -> list[Effect]:
        """Drop what has drained long enough."""
        over = [epoch for epoch, (_, until) in self._draining.items() if until <= now]
        for epoch in over:
            del self._draining[epoch]
        return self._arrange(now) if over else []

    def _epochs(self, model: str) -> list[Epoch]:
        entries = (self._active.get(model), self._prepared.get(model))
        return [entry.plans.main.epoch for entry in entries if entry is not None]

    def _arrange(self, now: float) -> list[Effect]:
        """Tell the shards what every plan here wants of this device."""
        del now
        wanted: list[Wanted] = []
        for entry in self._prepared.values():
            wanted += self._wishes(entry, Level.PREPARING, Level.SPARE)
        for entry in self._active.values():
            wanted += self._wishes(entry, Level.ACTIVE, Level.SPARE)
        for entry, _ in self._draining.values():
            wanted += self._wishes(entry, Level.DRAINING, Level.DRAINING)
        return [*self._shards.want(wanted), *self._report()]

    def _wishes(self, entry: _Entry, main: Level, spare: Level) -> list[Wanted]:
        wishes: list[Wanted] = []
        for plan in entry.plans.plans:
            card = self._card(plan.digest)
            if card is None:
                continue
            level = spare if plan.epoch.absent else main
            mine = [recipe for recipe in plan.recipes_of(self._me) if recipe in entry.files]
            wishes += [Wanted(entry.files[r], level, memory_bytes(card, r, plan.window)) for r in mine]
        return wishes

    def _report(self) -> list[Effect]:
        """Say what changed in what is loaded, to the leader that asked."""
        effects: list[Effect] = []
        for entry in (*self._prepared.values(), *self._active.values()):
            said = self._verdict(entry)
            if said is not None and said != entry.reported and self._leader is not None:
                entry.reported = said
                effects.append(Send(self._leader, said))
        return effects

    def _verdict(self, entry: _Entry) -> Ready | Refused | None:
        main = entry.plans.main
        failed = [recipe for recipe in main.recipes_of(self._me) if self._shards.state(recipe) is State.FAILED]
        if failed:
            return Refused(main.epoch, self._shards.reason(failed[0]))
        mine = [plan for plan in entry.plans.plans if plan.recipes_of(self._me)]
        loaded = [
            plan.epoch for plan in mine if all(self._shards.handle(r) is not None for r in plan.recipes_of(self._me))
        ]
        on_disk = [plan.epoch for plan in mine if all(self._shards.has_file(r) for r in plan.recipes_of(self._me))]
        return Ready(main.epoch, tuple(loaded), tuple(on_disk)) if loaded or on_disk else None
