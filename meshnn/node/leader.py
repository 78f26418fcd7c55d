"""The leader's work: solve, cut, prepare, activate, for every model of the mesh. A pure machine.

It runs on every node and does nothing until its node leads. One job a model at a time, one phase after the other:

    SOLVING -> CUTTING -> PREPARING -> (active)

Whatever breaks a job (a death, a refusal, its deadline) ends it; the next review starts another.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshnn.cluster.member import BootId, DeviceId, Member
from meshnn.graph.card import Card
from meshnn.node.catalogue import Catalogue
from meshnn.node.effects import Changed, Effect, Send, Solve, note
from meshnn.node.messages import NameRecord
from meshnn.node.plans import PlanBook
from meshnn.node.problem import Problem, better
from meshnn.plan.messages import Activate, Cut, CutDone, CutFailed, Fetch, Prepare, Ready, Refused, Retire, Unplanned
from meshnn.plan.plan import Epoch, Plan, PlanSet, Recipe
from meshnn.plan.ranges import memory_bytes

# A device must have been here so long before a working plan is changed for it, in seconds.
STABLE_S = 3.0
# At most one voluntary change of a model's plan in so many seconds.
VOLUNTARY_S = 20.0
# How long each phase may take, in seconds; fetching adds its bytes at the slowest link we plan for.
SOLVE_S = 60.0
CUT_S = 60.0
PREPARE_S = 20.0
PREPARE_BYTES_PER_S = 1e6
# After a failure the next attempt waits, unless the devices or the model change.
BACKOFF_S = 2.0
# A device that refused a plan of a model is planned without for so long.
REFUSED_S = 30.0


class Phase(enum.Enum):
    """What a job waits for."""

    SOLVING = "solving"
    CUTTING = "cutting"
    PREPARING = "preparing"


@dataclass(slots=True)
class _Job:
    phase: Phase
    epoch: Epoch
    digest: str
    lives: dict[DeviceId, BootId]
    voluntary: bool
    deadline: float
    holder: DeviceId = ""  # type: ignore[assignment]
    plans: PlanSet | None = None
    loaded: dict[DeviceId, frozenset[Epoch]] = field(default_factory=dict)


@dataclass(slots=True)
class _Served:
    """What this leader knows of an active plan: who has loaded what, who was told what."""

    plans: PlanSet
    loaded: dict[DeviceId, frozenset[Epoch]] = field(default_factory=dict)
    told: dict[DeviceId, tuple[BootId, tuple[Epoch, ...]]] = field(default_factory=dict)
    considered: frozenset[tuple[DeviceId, BootId]] = frozenset()


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why there is no plan, and what must change before it is worth another try at once."""

    reason: str
    signature: tuple[object, ...]
    until: float


class Leader:
    """The jobs of a leading node; `review` looks at everything and is called after every change."""

    def __init__(self, me: DeviceId, catalogue: Catalogue, book: PlanBook) -> None:
        """The machines it reads; it changes neither."""
        self._me = me
        self._catalogue = catalogue
        self._book = book
        self._term: int | None = None
        self._number = 0
        self._alive: dict[DeviceId, Member] = {}
        self._since: dict[tuple[DeviceId, BootId], float] = {}
        self._jobs: dict[str, _Job] = {}
        self._served: dict[str, _Served] = {}
        self._failures: dict[str, _Failure] = {}
        self._refused: dict[tuple[str, DeviceId], float] = {}
        self._changed_at: dict[str, float] = {}
        self._files: dict[Recipe, Fetch] = {}
        self._wake: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `review` must run again although nothing happened, in the caller's clock."""
        return self._wake if self._term is not None else None

    @property
    def leading(self) -> bool:
        """Whether this node leads."""
        return self._term is not None

    def on_role(self, term: int | None, now: float) -> list[Effect]:
        """This node leads in `term`, or (None) no longer."""
        if term == self._term:
            return []
        self._term = term
        self._jobs.clear()
        self._served.clear()
        self._failures.clear()
        self._refused.clear()
        return self.review(self._alive, now)

    def review(self, alive: Mapping[DeviceId, Member], now: float) -> list[Effect]:
        """Look at every model: what must start, what must end, who must be told."""
        self._alive = dict(alive)
        lives = {(member.device_id, member.boot_id) for member in alive.values()}
        self._since = {life: self._since.get(life, now) for life in lives}
        if self._term is None:
            return []
        self._wake = None
        self._refused = {key: until for key, until in self._refused.items() if until > now}
        names = {record.name for record in self._catalogue.records}
        effects: list[Effect] = []
        for model in sorted((set(self._book.models) | set(self._jobs) | set(self._served)) - names):
            effects += self._forget(model)
        for record in self._catalogue.records:
            effects += self._review_job(record, now)
            effects += self._review_plan(record, now)
            effects += self._tell(record.name)
        return effects

    def on_solved(self, model: str, problem: Problem, result: PlanSet | str, now: float) -> list[Effect]:
        """The search ended: with plans, or with the reason why there is none."""
        job = self._jobs.get(model)
        if job is None or job.phase is not Phase.SOLVING or job.epoch != problem.epoch:
            return []
        if isinstance(result, str):
            return self._fail(model, result, now, hopeless=True)
        served = self._served.get(model)
        if job.voluntary and served is not None and not better(result, served.plans, problem):
            served.considered = frozenset(job.lives.items())
            del self._jobs[model]
            return self.review(self._alive, now)
        job.plans = result
        return self._cut(model, job, now)

    def on_cut_done(self, message: CutDone, now: float) -> list[Effect]:
        """The files of the plan are there to be fetched."""
        for fetch in message.files:
            self._files[fetch.recipe] = fetch
        model, job = self._job_of(message.epoch)
        if job is None or job.phase is not Phase.CUTTING:
            return []
        return self._cut(model, job, now)

    def on_cut_failed(self, message: CutFailed, now: float) -> list[Effect]:
        """The holder could not cut."""
        model, job = self._job_of(message.epoch)
        return [] if job is None else self._fail(model, message.reason, now)

    def on_ready(self, source: DeviceId, message: Ready, now: float) -> list[Effect]:
        """A device has loaded its shards of some plans."""
        for served in self._served.values():
            if served.plans.main.epoch == message.epoch:
                served.loaded[source] = frozenset(message.loaded)
                return self._tell(served.plans.main.model)
        model, job = self._job_of(message.epoch)
        if job is None or job.plans is None:
            return []
        job.loaded[source] = frozenset(message.loaded)
        main = job.plans.main
        if any(main.epoch not in job.loaded.get(device, ()) for device in main.devices()):
            return []
        del self._jobs[model]
        self._failures.pop(model, None)
        self._changed_at[model] = now
        self._served[model] = _Served(job.plans, job.loaded, {}, frozenset(job.lives.items()))
        return [*self._tell(model), Changed(), *self.review(self._alive, now)]

    def on_refused(self, source: DeviceId, message: Refused, now: float) -> list[Effect]:
        """A device cannot prepare: the next plan does without it for a while."""
        if message.promised is not None and self._term is not None:
            self._number = max(self._number, message.promised.number)
        model, job = self._job_of(message.epoch)
        if job is None:
            model = next((name for name, s in self._served.items() if s.plans.main.epoch == message.epoch), "")
        if not model:
            return []
        self._refused[model, source] = now + REFUSED_S
        return self._fail(model, f"{self._name(source)} refused: {message.reason}", now)

    def on_linked(self, device: DeviceId) -> list[Effect]:
        """A link is up again: what was said meanwhile may be lost, so it is said anew."""
        effects: list[Effect] = []
        for model, job in sorted(self._jobs.items()):
            if job.phase is Phase.PREPARING and job.plans is not None:
                effects += [effect for effect in self._prepares(job) if effect.to == device]
            elif job.phase is Phase.CUTTING and job.holder == device:
                effects += self._abort(model)
        for model, served in sorted(self._served.items()):
            served.told.pop(device, None)
            effects += self._tell(model)
        return effects

    def _review_job(self, record: NameRecord, now: float) -> list[Effect]:
        """End a job that has lost a device, its model or its time."""
        job = self._jobs.get(record.name)
        if job is None:
            return []
        needed = job.plans.main.lives() if job.plans is not None else job.lives
        lost = [device for device, boot in needed.items() if self._boot(device) != boot]
        if job.phase is Phase.CUTTING and self._boot(job.holder) is None:
            lost.append(job.holder)
        if lost or job.digest != record.digest:
            return self._abort(record.name)
        if job.deadline <= now:
            return self._fail(record.name, f"{job.phase.value} took too long", now)
        self._wake_at(job.deadline)
        return []

    def _review_plan(self, record: NameRecord, now: float) -> list[Effect]:
        """Start a job where the model has no plan, a broken one, or devices it has not considered."""
        model = record.name
        card = self._catalogue.card(record.digest)
        if model in self._jobs or card is None:
            return []
        served = self._adopt(record)
        lives = self._usable(model)
        if served is None:
            return self._retry(record, card, lives, now)
        fresh = frozenset(lives.items()) - served.considered
        gone = {device for device, _ in served.considered if device not in lives}
        if not fresh and not gone:
            return []
        steady = max((self._since[life] for life in fresh if life in self._since), default=now - STABLE_S) + STABLE_S
        due = max(steady, self._changed_at.get(model, -VOLUNTARY_S) + VOLUNTARY_S) if fresh else now
        if due > now:
            self._wake_at(due)
            return []
        return self._solve(record, card, lives, now, voluntary=True)

    def _retry(self, record: NameRecord, card: Card, lives: dict[DeviceId, BootId], now: float) -> list[Effect]:
        """Solve for a model without a plan, unless that failed just now and nothing has changed since."""
        failure = self._failures.get(record.name)
        signature = self._signature(record, lives)
        if failure is not None and failure.signature == signature and failure.until > now:
            self._wake_at(failure.until)
            return []
        return self._solve(record, card, lives, now, voluntary=False)

    def _adopt(self, record: NameRecord) -> _Served | None:
        """The plan that serves this model, this leader's or an earlier one's; None where it is broken."""
        active = self._book.active(record.name)
        served = self._served.get(record.name)
        if served is None and active is not None:
            loaded = {device: self._book.ready(record.name) for device in active.main.devices()}
            served = self._served[record.name] = _Served(active, loaded)
        if served is None:
            return None
        main = served.plans.main
        whole = all(self._boot(device) == boot for device, boot in main.lives().items())
        if main.digest == record.digest and whole:
            return served
        return None

    def _solve(
        self, record: NameRecord, card: Card, lives: dict[DeviceId, BootId], now: float, *, voluntary: bool
    ) -> list[Effect]:
        assert self._term is not None
        self._number += 1
        epoch = Epoch(self._term, self._me, self._number)
        self._jobs[record.name] = _Job(Phase.SOLVING, epoch, record.digest, lives, voluntary, now + SOLVE_S)
        self._wake_at(now + SOLVE_S)
        members = tuple(self._alive[device] for device in sorted(lives))
        problem = Problem(record.name, card, members, epoch, self._used_elsewhere(record.name), len(self._alive))
        return [Solve(record.name, problem)]

    def _cut(self, model: str, job: _Job, now: float) -> list[Effect]:
        """Have the recipes cut whose files are not known; then prepare."""
        assert job.plans is not None
        wanted = sorted({recipe for plan in job.plans.plans for recipe, _ in plan.placements()})
        missing = tuple(recipe for recipe in wanted if recipe not in self._files)
        if not missing:
            return self._prepare(model, job, now)
        if job.phase is Phase.CUTTING:
            return self._fail(model, "the holder did not cut every shard", now)
        cutters = [
            device
            for device in self._catalogue.holders(job.digest)
            if device in self._alive and self._alive[device].capability.can_cut
        ]
        if not cutters:
            return self._fail(model, "no device that holds the file can cut it (ai-edge-litert cuts)", now)
        job.phase, job.deadline = Phase.CUTTING, now + CUT_S
        job.holder = self._me if self._me in cutters else cutters[0]
        self._wake_at(job.deadline)
        return [Send(job.holder, Cut(job.epoch, model, missing))]

    def _prepare(self, model: str, job: _Job, now: float) -> list[Effect]:
        assert job.plans is not None
        prepares = self._prepares(job)
        size_bytes = sum(fetch.size_bytes for sent in prepares for fetch in sent.message.fetch)
        job.phase, job.deadline = Phase.PREPARING, now + PREPARE_S + size_bytes / PREPARE_BYTES_PER_S
        self._wake_at(job.deadline)
        placed = {self._name(device): len(job.plans.main.recipes_of(device)) for device in job.plans.main.devices()}
        return [*prepares, note("plan_preparing", model=model, epoch=str(job.epoch), shards=placed)]

    def _prepares(self, job: _Job) -> list[Send[Prepare]]:
        """What each device of a plan set must hold, as messages."""
        assert job.plans is not None
        sends: list[Send[Prepare]] = []
        for device in sorted({device for plan in job.plans.plans for device in plan.devices()}):
            recipes = sorted({recipe for plan in job.plans.plans for recipe in plan.recipes_of(device)})
            files = tuple(self._with_holders(self._files[recipe]) for recipe in recipes)
            sends.append(Send(device, Prepare(job.plans, files)))
        return sends

    def _with_holders(self, fetch: Fetch) -> Fetch:
        """The file with whoever can serve it today: its cutter, and every holder that can cut it again."""
        recipe = fetch.recipe
        cutters = [d for d in self._catalogue.holders(recipe.digest) if d in self._alive]
        first = [device for device in fetch.holders if device in self._alive]
        return Fetch(recipe, fetch.sha256, fetch.size_bytes, tuple(dict.fromkeys([*first, *cutters])))

    def _tell(self, model: str) -> list[Effect]:
        """Give the active plan to every alive device that has not heard of it in this form."""
        served = self._served.get(model)
        if served is None or self._term is None:
            return []
        ready = tuple(plan.epoch for plan in served.plans.plans if _loaded(plan, served.loaded))
        effects: list[Effect] = []
        for device, member in sorted(self._alive.items()):
            said = (member.boot_id, ready)
            if served.told.get(device) != said:
                served.told[device] = said
                effects.append(Send(device, Activate(served.plans, ready)))
        return effects

    def _forget(self, model: str) -> list[Effect]:
        """A model that has no name any more."""
        effects = self._abort(model)
        self._served.pop(model, None)
        self._failures.pop(model, None)
        active = self._book.active(model)
        if active is not None:
            effects += [Send(device, Retire(model, active.main.epoch)) for device in sorted(self._alive)]
        return effects

    def _abort(self, model: str) -> list[Effect]:
        """End a job; whoever prepared for it may drop it."""
        job = self._jobs.pop(model, None)
        if job is None or job.phase is not Phase.PREPARING or job.plans is None:
            return []
        devices = {device for plan in job.plans.plans for device in plan.devices()}
        return [Send(device, Retire(model, job.epoch)) for device in sorted(devices) if device in self._alive]

    def _fail(self, model: str, reason: str, now: float, *, hopeless: bool = False) -> list[Effect]:
        """End a job; the next try waits for a change of the devices, or a moment."""
        effects = self._abort(model)
        record = next((record for record in self._catalogue.records if record.name == model), None)
        if record is not None:
            signature = self._signature(record, self._usable(model))
            self._failures[model] = _Failure(reason, signature, now + BACKOFF_S)
            self._wake_at(now + BACKOFF_S)
            word = Unplanned(model, record.digest, reason, hopeless)
            effects += [Send(device, word) for device in sorted(self._alive)]
        served = self._served.get(model)
        if served is not None:
            served.considered = frozenset((d, m.boot_id) for d, m in self._alive.items())
        return [*effects, note("no_plan", warning=True, model=model, reason=reason), Changed()]

    def _used_elsewhere(self, model: str) -> dict[DeviceId, int]:
        """Bytes that the active plans of the other models take on each device; their contingencies give way."""
        used: dict[DeviceId, int] = {}
        for name in self._book.models:
            plans = self._book.active(name)
            card = None if plans is None else self._catalogue.card(plans.main.digest)
            if name == model or plans is None or card is None:
                continue
            for recipe, shard in plans.main.placements():
                cost = memory_bytes(card, recipe, plans.main.window)
                used[shard.device] = used.get(shard.device, 0) + cost
        return used

    def _usable(self, model: str) -> dict[DeviceId, BootId]:
        """The alive devices that have not refused this model of late, with their boots."""
        return {d: m.boot_id for d, m in sorted(self._alive.items()) if (model, d) not in self._refused}

    def _signature(self, record: NameRecord, lives: dict[DeviceId, BootId]) -> tuple[object, ...]:
        holders = tuple(device for device in self._catalogue.holders(record.digest) if device in self._alive)
        budgets = tuple(self._alive[device].capability.memory_bytes for device in sorted(lives))
        return (record.digest, tuple(sorted(lives.items())), budgets, holders)

    def _job_of(self, epoch: Epoch) -> tuple[str, _Job | None]:
        return next(((model, job) for model, job in self._jobs.items() if job.epoch == epoch), ("", None))

    def _boot(self, device: DeviceId) -> BootId | None:
        member = self._alive.get(device)
        return None if member is None else member.boot_id

    def _name(self, device: DeviceId) -> str:
        member = self._alive.get(device)
        return device if member is None else member.name

    def _wake_at(self, when: float) -> None:
        self._wake = when if self._wake is None else min(self._wake, when)


def _loaded(plan: Plan, loaded: Mapping[DeviceId, frozenset[Epoch]]) -> bool:
    """Whether every device of a plan has loaded its shards of it."""
    return all(plan.epoch in loaded.get(device, ()) for device in plan.devices())
