"""The plans this node knows: prepared, active, draining. A pure machine; it follows, the leader decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshnn.cluster.election import TERM_MAX
from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import NoPlanError, UsageError
from meshnn.graph.card import Card
from meshnn.node.effects import Changed, Effect, PlansChanged, Send, note
from meshnn.node.shards import Level, Shards, State, Wanted
from meshnn.plan.messages import Activate, Fetch, Lack, Outlook, Prepare, Ready, Refused, Retire, Unplanned
from meshnn.plan.plan import Epoch, Plan, PlanSet, Recipe
from meshnn.plan.ranges import shard_memory
from meshnn.plan.verify import check_form

# How long a replaced plan stays servable for the requests inside it, in seconds.
DRAIN_S = 5.0
# How long a prepared plan waits for another word once its leader is gone or the link to it broke, in seconds.
ORPHAN_S = 15.0
# Models of which "no plan" is remembered; the oldest word goes first.
UNPLANNED_MAX = 256
# How long a contingency that a request asked for stays as needed as that, in seconds; a death is official by then.
PRESSING_S = 10.0
# How long no plan is prepared that counts on the device whose death that says, in seconds; its leader knows by then, or
# it was slow or suspected to be.
GONE_S = 3.0
# The time that loading takes is told in steps of so many milliseconds.
LACK_STEP_MS = 50


@dataclass(slots=True)
class _Entry:
    """A plan set as this device holds it."""

    plans: PlanSet
    files: dict[Recipe, Fetch] = field(default_factory=dict)
    ready: frozenset[Epoch] = frozenset()
    outlooks: tuple[Outlook, ...] = ()
    reported: Ready | Refused | None = None
    orphan_until: float | None = None
    judged: bool = False
    gentle: bool = False
    pressing: dict[Epoch, float] = field(default_factory=dict)
    gone: dict[DeviceId, float] = field(default_factory=dict)

    def on_disk(self) -> list[Plan]:
        """The contingencies that are on the disks of their devices without being loaded, as the leader said last."""
        lacking = (self.plans.without(row.device) for row in self.outlooks if row.state == "on disk")
        return [plan for plan in lacking if plan is not None]


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
        """When the next replaced or orphaned plan is dropped, in the caller's clock."""
        times = [until for _, until in self._draining.values()]
        times += [until for e in self._active.values() for until in (*e.pressing.values(), *e.gone.values())]
        times += [entry.orphan_until for entry in self._prepared.values() if entry.orphan_until is not None]
        return min(times, default=None)

    @property
    def models(self) -> tuple[str, ...]:
        """The models with an active plan, sorted."""
        return tuple(sorted(self._active))

    @property
    def known(self) -> tuple[str, ...]:
        """The models with an active or a prepared plan, or a word that there is none, sorted."""
        return tuple(sorted({*self._active, *self._prepared, *self._unplanned}))

    def active(self, model: str) -> PlanSet | None:
        """The plan set that serves a model."""
        entry = self._active.get(model)
        return None if entry is None else entry.plans

    def ready(self, model: str) -> frozenset[Epoch]:
        """The epochs of the active plan set of which every shard is loaded, as the leader said last."""
        entry = self._active.get(model)
        return frozenset() if entry is None else entry.ready

    def outlooks(self, model: str) -> tuple[Outlook, ...]:
        """What the death of each device of the active plan would mean, as the leader said last."""
        entry = self._active.get(model)
        return () if entry is None else entry.outlooks

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

    def choose(self, model: str, avoid: frozenset[DeviceId], *, on_disk: bool = True) -> Plan | None:
        """The plan to use without the devices in `avoid`: the active one, else a loaded contingency.

        Else, where `on_disk` is wanted, one whose files are where they are needed: that it is asked for has its devices
        load it (`on_asked`).
        """
        entry = self._active.get(model)
        if entry is None:
            return None
        loaded = [plan for plan in entry.plans.contingencies if plan.epoch in entry.ready]
        # One for another death may do without these devices too, but last: whoever is asked takes that death for true.
        stored = entry.on_disk() if on_disk else []
        spares = sorted((*loaded, *stored), key=lambda plan: plan.epoch.absent not in avoid)
        return next((plan for plan in (entry.plans.main, *spares) if avoid.isdisjoint(plan.devices())), None)

    def crowded(self, model: str) -> bool:
        """Whether a contingency waits on the disks for its death: to use another meanwhile keeps the room from it."""
        entry = self._active.get(model)
        return entry is not None and bool(entry.on_disk())

    def unplanned(self, model: str) -> Unplanned | None:
        """Why a model has no plan, as the leader said last."""
        return self._unplanned.get(model)

    def on_unplanned(self, message: Unplanned) -> list[Effect]:
        """The leader found no plan."""
        self._unplanned.pop(message.model, None)
        self._unplanned[message.model] = message
        for model in list(self._unplanned)[:-UNPLANNED_MAX]:
            del self._unplanned[model]
        return [Changed()]

    def on_leader(self, leader: DeviceId | None, now: float) -> list[Effect]:
        """Another leader, or another term: it hears what serves here and what is loaded; what was prepared waits."""
        self._leader = leader
        return [] if leader is None else self._introduce(leader, now)

    def on_linked(self, device: DeviceId, now: float) -> list[Effect]:
        """A link is up: who was thought gone is not, and what a leader was told over an earlier one may be lost."""
        back = [entry.gone.pop(device) for entry in self._active.values() if device in entry.gone]
        return [*(self._arrange() if back else []), *(self._introduce(device, now) if device == self._leader else [])]

    def _introduce(self, leader: DeviceId, now: float) -> list[Effect]:
        """Tell the leader the active plans (a former leader may have told them to few), and orphan prepared ones."""
        effects: list[Effect] = []
        for _, entry in sorted(self._active.items()):
            entry.reported = None
            if leader != self._me:
                effects.append(Send(leader, Activate(entry.plans, tuple(sorted(entry.ready)), entry.outlooks)))
        for entry in self._prepared.values():
            entry.reported = None
            entry.orphan_until = now + ORPHAN_S
        return [*effects, *self._report()]

    def on_prepare(self, source: DeviceId, message: Prepare, now: float) -> list[Effect]:
        """Hold these shards, unless a newer plan is known or the plan means another life of this device."""
        main = message.plans.main
        known = max(self._epochs(main.model), default=None)
        if known is not None and main.epoch < known:
            return [Send(source, Refused(main.epoch, "a newer plan is known here", known))]
        lives = {boot for plan in message.plans.plans for device, boot in plan.lives().items() if device == self._me}
        if lives - {self._boot}:
            return [Send(source, Refused(main.epoch, "the plan means an earlier life of this device", known))]
        fault = self._fault(message.plans)
        if fault:
            return [Send(source, Refused(main.epoch, fault, known))]
        self._leader = source
        entry = self._entry(main.model, main.epoch)
        if entry is None:
            entry = self._prepared[main.model] = _Entry(message.plans)
        entry.files = self._known(message.plans) | {fetch.recipe: fetch for fetch in message.fetch}
        entry.reported = None
        entry.orphan_until = None
        entry.gentle = message.gentle
        # What failed is forgotten, so that arranging tries it anew.
        self._shards.forgive(entry.files)
        return self._arrange()

    def _known(self, plans: PlanSet) -> dict[Recipe, Fetch]:
        """The files of a plan set's shards that an earlier plan of its model named to this device."""
        mine = {recipe for plan in plans.plans for recipe in plan.recipes_of(self._me)}
        entries = [entry for entry, _ in self._draining.values()]
        entries += [t[plans.main.model] for t in (self._prepared, self._active) if plans.main.model in t]
        return {recipe: fetch for entry in entries for recipe, fetch in entry.files.items() if recipe in mine}

    def on_card(self) -> list[Effect]:
        """A card arrived: what waits for it can be counted now, and what was taken on trust is looked at."""
        return self._arrange()

    def on_activate(self, source: DeviceId, message: Activate, now: float) -> list[Effect]:
        """From now on this plan set serves its model; what it replaces drains. An older one is answered with ours."""
        main = message.plans.main
        current = self._active.get(main.model)
        if current is not None and main.epoch < current.plans.main.epoch:
            return [Send(source, Activate(current.plans, tuple(sorted(current.ready))))] if source != self._me else []
        fault = self._fault(message.plans)
        if fault:
            return [note("plan_disbelieved", warning=True, model=main.model, source=source, reason=fault)]
        self._unplanned.pop(main.model, None)
        if current is not None and current.plans.main.epoch == main.epoch:
            return self._confirm(source, current, message)
        prepared = self._prepared.get(main.model)
        entry = _Entry(message.plans)
        if prepared is not None and prepared.plans.main.epoch <= main.epoch:
            del self._prepared[main.model]
            if prepared.plans.main.epoch == main.epoch:
                entry = prepared
        entry.ready, entry.outlooks = frozenset(message.ready), message.outlooks
        self._active[main.model] = entry
        if current is not None:
            self._draining[current.plans.main.epoch] = (current, now + DRAIN_S)
        return [note("plan_active", model=main.model, epoch=str(main.epoch)), PlansChanged(), *self._arrange()]

    def _confirm(self, source: DeviceId, current: _Entry, message: Activate) -> list[Effect]:
        """The active plan again: the leader's word on what is loaded holds; a follower's is no news to a leader."""
        news = (frozenset(message.ready), message.outlooks)
        if (self._leader == self._me != source) or (current.ready, current.outlooks) == news:
            return []
        current.ready, current.outlooks = news
        return [PlansChanged()]

    def tell(self, to: DeviceId) -> list[Effect]:
        """The active plans for a device that cannot hear them from the leader."""
        entries = [entry for _, entry in sorted(self._active.items())]
        return [Send(to, Activate(e.plans, tuple(sorted(e.ready)), e.outlooks)) for e in entries]

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
        return [PlansChanged(), *self._arrange()]

    def on_gone(self, model: str, now: float) -> list[Effect]:
        """A model that was removed: nothing of it stays, whatever its leader managed to say."""
        self._unplanned.pop(model, None)
        epochs = [entry.plans.main.epoch for table in (self._active, self._prepared) if (entry := table.get(model))]
        return [effect for epoch in dict.fromkeys(epochs) for effect in self.on_retire(Retire(model, epoch), now)]

    def on_shards(self) -> list[Effect]:
        """A shard was fetched, loaded or refused: tell the leader what that means."""
        return [PlansChanged(), *self._report()]

    def on_asked(self, model: str, epoch: Epoch, now: float) -> list[Effect]:
        """A request came for a contingency: its origin saw the death before anybody else, or goes around a slow device.

        Where it is loaded it stays so, whatever else is to be loaded meanwhile. Where it is not, memory may have been
        taken for a plan in the making a moment ago. If that one counts on the dead device it comes to nothing and gives
        the memory back; one that was made without it is the remedy.
        """
        entry = self._active.get(model)
        if entry is None or all(plan.epoch != epoch for plan in entry.plans.contingencies):
            return []
        known = epoch in entry.pressing
        entry.pressing[epoch] = now + PRESSING_S
        if known:
            return []
        entry.gone[DeviceId(epoch.absent)] = now + GONE_S
        return self._arrange()

    def on_deadline(self, now: float) -> list[Effect]:
        """Drop what has drained long enough, and what nobody activated; what was pressing once is so no more."""
        lapsed = self._lapse(now)
        over = [epoch for epoch, (_, until) in self._draining.items() if until <= now]
        for epoch in over:
            del self._draining[epoch]
        late = [
            m for m, entry in self._prepared.items() if entry.orphan_until is not None and entry.orphan_until <= now
        ]
        for model in late:
            del self._prepared[model]
        if over or late:
            return [PlansChanged(), *self._arrange()]
        return self._arrange() if lapsed else []

    def _doomed(self, entry: _Entry) -> bool:
        """Whether a plan in the making counts on a device that requests went around, and remedies no other death.

        What requests go around last may be but the next device that they found in trouble while that plan was made.
        """
        active = self._active.get(entry.plans.main.model)
        if active is None:
            return False
        devices = frozenset(entry.plans.main.devices())
        remedy = any(epoch.absent not in devices for epoch in active.pressing)
        return not remedy and not devices.isdisjoint(active.gone)

    def _lapse(self, now: float) -> bool:
        """Forget what was asked for long ago; whether there was such."""
        lapsed = False
        for entry in self._active.values():
            before = len(entry.pressing) + len(entry.gone)
            entry.pressing = {epoch: until for epoch, until in entry.pressing.items() if until > now}
            entry.gone = {device: until for device, until in entry.gone.items() if until > now}
            lapsed = lapsed or len(entry.pressing) + len(entry.gone) < before
        return lapsed

    def _fault(self, plans: PlanSet) -> str:
        """Why a plan set means nothing for its model, "" where it may; without a card that cannot be told yet.

        One impossible plan in the book would break every later count of what the devices hold.
        """
        main = plans.main
        if any((plan.model, plan.digest) != (main.model, main.digest) for plan in plans.contingencies):
            return "its contingencies are for another model"
        if main.epoch.term > TERM_MAX:
            return "its term is beyond belief"
        card = self._card(main.digest)
        if card is None:
            return ""
        try:
            for plan in plans.plans:
                check_form(plan, card)
        except (UsageError, NoPlanError) as error:
            return str(error)
        return ""

    def _entry(self, model: str, epoch: Epoch) -> _Entry | None:
        """The active or prepared plan set of this very epoch."""
        entries = (self._active.get(model), self._prepared.get(model))
        return next((entry for entry in entries if entry is not None and entry.plans.main.epoch == epoch), None)

    def _epochs(self, model: str) -> list[Epoch]:
        entries = (self._active.get(model), self._prepared.get(model))
        return [entry.plans.main.epoch for entry in entries if entry is not None]

    def _arrange(self) -> list[Effect]:
        """Tell the shards what every plan here wants of this device."""
        gone = self._judge_late()
        wanted: list[Wanted] = []
        for entry in self._prepared.values():
            waits = entry.gentle or self._doomed(entry)
            wanted += self._wishes(entry, Level.IDLE if waits else Level.PREPARING, Level.IDLE)
        for entry in self._active.values():
            wanted += self._wishes(entry, Level.ACTIVE, Level.SPARE)
        for entry, _ in self._draining.values():
            left = self._wishes(entry, Level.DRAINING, Level.IDLE)
            wanted += [wish for wish in left if self._shards.handle(wish.fetch.recipe) is not None]
        return [*gone, *self._shards.want(wanted), *self._report()]

    def _judge_late(self) -> list[Effect]:
        """Drop the plans that came before their model's card, and turn out to mean nothing for it."""
        faults: dict[str, str] = {}
        for table in (self._prepared, self._active):
            for model, entry in list(table.items()):
                if entry.judged or self._card(entry.plans.main.digest) is None:
                    continue
                entry.judged = True
                if fault := self._fault(entry.plans):
                    faults[model] = fault
                    del table[model]
        drained = [(epoch, entry) for epoch, (entry, _) in self._draining.items() if not entry.judged]
        for epoch in [epoch for epoch, entry in drained if self._fault(entry.plans)]:
            del self._draining[epoch]
        notes = [note("plan_refused", warning=True, model=model, reason=why) for model, why in sorted(faults.items())]
        return [*notes, PlansChanged()] if notes else []

    def _wishes(self, entry: _Entry, main: Level, spare: Level) -> list[Wanted]:
        wishes: list[Wanted] = []
        # Two that were asked for may want the same room: it is for the first, whose death has come.
        order = list(entry.pressing)
        for rank, plan in enumerate(entry.plans.plans):
            card = self._card(plan.digest)
            if card is None:
                continue
            level, asked = spare if plan.epoch.absent else main, plan.epoch in entry.pressing
            place = order.index(plan.epoch) if asked else rank
            costs = shard_memory(card, plan, self._me)
            mine = [recipe for recipe in plan.recipes_of(self._me) if recipe in entry.files]
            wishes += [Wanted(entry.files[recipe], level, costs[recipe], plan.model, place, asked) for recipe in mine]
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

    def _burden(self) -> _Entry | None:
        """Of the active plans the one that takes most of this device, to be given up where memory is short."""
        costs = {
            model: self._shards.cost_of(entry.plans.main.recipes_of(self._me)) for model, entry in self._active.items()
        }
        heaviest = max(sorted(costs), key=lambda model: costs[model], default="")
        return self._active[heaviest] if costs.get(heaviest) else None

    def _verdict(self, entry: _Entry) -> Ready | Refused | None:
        main = entry.plans.main
        failed = [recipe for recipe in main.recipes_of(self._me) if self._shards.state(recipe) is State.FAILED]
        if failed:
            return Refused(main.epoch, self._shards.reason(failed[0]))
        if self._shards.excess_bytes and entry is self._burden():
            return Refused(main.epoch, f"memory is short there: {self._shards.excess_bytes / 1e6:.1f} MB too much")
        mine = [plan for plan in entry.plans.plans if plan.recipes_of(self._me)]
        loaded = [
            plan.epoch for plan in mine if all(self._shards.handle(r) is not None for r in plan.recipes_of(self._me))
        ]
        on_disk = [plan.epoch for plan in mine if all(self._shards.has_file(r) for r in plan.recipes_of(self._me))]
        if not (loaded or on_disk or entry.reported):
            return None
        lacks = tuple(self._lack(entry, plan) for plan in mine if plan.epoch.absent and plan.epoch not in loaded)
        return Ready(main.epoch, tuple(loaded), tuple(on_disk), lacks)

    def _lack(self, entry: _Entry, plan: Plan) -> Lack:
        """What this device still needs for a plan; in steps, so that measures that waver are no news."""
        files = [entry.files[recipe] for recipe in plan.recipes_of(self._me) if recipe in entry.files]
        fetch_bytes, load_ms = self._shards.lacking(files)
        card = self._card(plan.digest)
        room = card is not None and self._shards.has_room(shard_memory(card, plan, self._me))
        return Lack(plan.epoch, fetch_bytes, -(-int(load_ms) // LACK_STEP_MS) * LACK_STEP_MS, room)
