"""The leader's work: solve, cut, prepare, activate, for every model of the mesh. A pure machine.

It runs on every node and does nothing until its node leads. One job a model at a time, one phase after the other:

    SOLVING -> CUTTING -> PREPARING -> (active)

One model is solved at a time, so that two plans never count on the same memory. Whatever breaks a job (a death, a
refusal, its deadline) ends it; the next review starts another.
"""

from __future__ import annotations

import msgspec

from meshnn.cluster.member import BootId, DeviceId, Member
from meshnn.graph.card import Card
from meshnn.node.catalogue import Catalogue
from meshnn.node.effects import Changed, Effect, Send, Solve, note
from meshnn.node.failures import Failures
from meshnn.node.jobs import GENTLE_S, ActivePlan, Job, Phase, Why, adopted, everywhere, mark_of, memory_taken
from meshnn.node.messages import NameRecord, Pin, PinAnswer, Unpin
from meshnn.node.occasions import look_again
from meshnn.node.pins import Pins, Sight
from meshnn.node.plans import PlanBook
from meshnn.node.problem import Problem, better
from meshnn.node.refusals import Refusals
from meshnn.node.shardfiles import ShardFiles
from meshnn.node.view import View
from meshnn.plan.messages import GOLDEN_FAULT, Cut, CutDone, CutFailed, Ready, Refused, Retire, Unplanned
from meshnn.plan.plan import Epoch, Plan, PlanSet, Recipe

# How long each phase may take, in seconds; fetching adds its bytes at the slowest link we plan for.
SOLVE_S = 60.0
CUT_S = 60.0
PREPARE_S = 20.0
PREPARE_BYTES_PER_S = 1e6


class Leader:
    """The jobs of a leading node; `review` looks at everything and is called after every change."""

    def __init__(self, me: DeviceId, catalogue: Catalogue, book: PlanBook) -> None:
        """The machines it reads; it changes neither."""
        self._me = me
        self._catalogue = catalogue
        self._book = book
        self._term: int | None = None
        self._number = 0
        self._view = View()
        self._since: dict[tuple[DeviceId, BootId], float] = {}
        self._jobs: dict[str, Job] = {}
        self._served: dict[str, ActivePlan] = {}
        self._failures = Failures()
        self._refused = Refusals()
        self._changed_at: dict[str, float] = {}
        self._files = ShardFiles(catalogue.holders)
        self._pins = Pins()
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
        for table in (self._jobs, self._served, self._changed_at, self._failures, self._refused, self._pins):
            table.clear()
        return self.review(self._view, now)

    def review(self, view: View, now: float) -> list[Effect]:
        """Look at every model: what must start, what must end, who must be told."""
        self._view = view
        lives = {(member.device_id, member.boot_id) for member in view.alive.values()}
        self._since = {life: self._since.get(life, now) for life in lives}
        if self._term is None:
            return []
        self._wake = None
        lapse_at = self._refused.lapse(now)
        if lapse_at is not None:
            self._wake_at(lapse_at)
        effects: list[Effect] = []
        records = self._catalogue.records
        for model in sorted({*self._jobs, *self._served, *self._failures.models} - {record.name for record in records}):
            effects += self._forget(model)
        for record in records:
            effects += self._review_job(record, now)
        for record in records:
            effects += self._review_plan(record, now)
            effects += self._tell(record.name)
        return effects

    def on_solved(self, model: str, problem: Problem, result: PlanSet | str, now: float) -> list[Effect]:
        """The search ended: with plans, or with the reason why there is none."""
        job = self._jobs.get(model)
        if job is None or job.phase is not Phase.SOLVING or job.epoch != problem.epoch:
            return []
        served = self._served.get(model)
        effects: list[Effect] = []
        if isinstance(result, str):
            refusals = self._refused.reasons(model)
            effects = self._fail(model, "; ".join([result, *refusals]), now, hopeless=not refusals)
        elif job.voluntary and served is not None and not better(result, served.plans, problem):
            served.considered, served.severed, served.kept = job.marks, job.view.firm, job.why is Why.COVER
            served.beside = job.beside
            del self._jobs[model]
        else:
            job.plans = result
            effects = self._cut(model, job, now)
        return [*effects, *self.review(self._view, now)]

    def on_cut_done(self, message: CutDone, now: float) -> list[Effect]:
        """The files of the plan are there to be fetched."""
        if self._term is None:
            return []
        named = {record.digest for record in self._catalogue.records}
        self._files.learn(message.files, named, self._recipes_at_hand)
        model, job = self._job_of(message.epoch)
        if job is None or job.phase is not Phase.CUTTING:
            return []
        return self._cut(model, job, now)

    def on_cut_failed(self, message: CutFailed, now: float) -> list[Effect]:
        """The holder could not cut: another one does next time."""
        model, job = self._job_of(message.epoch)
        return [] if job is None else self._fail(model, message.reason, now)

    def on_ready(self, source: DeviceId, message: Ready, now: float) -> list[Effect]:
        """A device has loaded its shards of some plans."""
        rows: list[ActivePlan | Job] = [*self._served.values(), *self._jobs.values()]
        for row in rows:
            if row.plans is not None and row.plans.main.epoch == message.epoch:
                row.hear(source, message)
                return self.review(self._view, now)
        return []

    def on_refused(self, source: DeviceId, message: Refused, now: float) -> list[Effect]:
        """A device cannot prepare, or not serve any more: the next plan does without it for a while."""
        model, job = self._job_of(message.epoch)
        served = next((row for row in self._served.values() if row.plans.main.epoch == message.epoch), None)
        plans = job.plans if job is not None else None if served is None else served.plans
        if plans is None:
            return []
        reason = f"{self._name(source)} refused: {message.reason}"
        if message.promised is not None and message.promised > message.epoch:
            # Nothing is wrong with the device: our plan is too old for it.
            self._number = max(self._number, message.promised.number)
            return [] if job is None else self._fail(model, reason, now)
        model = plans.main.model
        self._blame(model, source, reason, plans.main.recipes_of(source), now)
        effects = self._abort(model, reason) if job is not None else []
        if job is None and served is not None:
            served.broken = True
        return [*effects, note("plan_refused", warning=True, model=model, reason=reason), Changed()]

    def _blame(self, model: str, source: DeviceId, reason: str, recipes: tuple[Recipe, ...], now: float) -> None:
        """Plan, and cut, without a device for a while in its present life; where two dispute one cutter, without it."""
        device = source
        if GOLDEN_FAULT in reason:
            device = self._files.dispute(source, recipes) or source
        if device != source:
            # Nobody is refused any more for what the cutter's word alone said.
            self._refused.forgive(GOLDEN_FAULT)
        if device in self._view.alive:
            self._refused.add(model, self._view.alive[device], reason, now)

    def on_pin(self, source: DeviceId, message: Pin | Unpin, now: float) -> list[Effect]:
        """Somebody wants a model to run exactly one plan, or gives it back to the planner."""
        if self._term is None:
            return [Send(source, PinAnswer(message.ask, "another device leads by now: ask again"))]
        if all(record.name != message.model for record in self._catalogue.records):
            return [Send(source, PinAnswer(message.ask, f"no model is called {message.model}"))]
        effects = [*self._pins.ask(source, message), *self._abort(message.model, keep_wish=True)]
        return [*effects, *self.review(self._view, now)]

    def on_linked(self, device: DeviceId, boot: BootId) -> list[Effect]:
        """A link is up again: what was said meanwhile may be lost, so it is said anew to this life of the device."""
        effects: list[Effect] = []
        preparing: list[tuple[PlanSet, bool]] = []
        for model, job in sorted(self._jobs.items()):
            if job.phase is Phase.PREPARING and job.plans is not None:
                preparing.append((job.plans, job.gentle))
            elif job.phase is Phase.CUTTING and job.holder == device:
                effects += self._abort(model)
        for _, served in sorted(self._served.items()):
            served.told.pop(device, None)
            preparing.append((served.plans, False))
        for plans, gentle in preparing:
            if all(plan.lives().get(device, boot) == boot for plan in plans.plans):
                sends = self._files.prepares(plans, self._view.alive, gentle=gentle)
                effects += [send for send in sends if send.to == device]
        return effects

    def _review_job(self, record: NameRecord, now: float) -> list[Effect]:
        """End a job that has lost a device, its model or its time."""
        job = self._jobs.get(record.name)
        if job is None:
            return []
        lives = self._view.lives
        lost = [device for device, boot in job.lives().items() if lives.get(device) != boot]
        if job.phase is Phase.CUTTING and job.holder not in lives:
            lost.append(record.device)
        if lost or job.digest != record.digest:
            return self._abort(record.name)
        if job.phase is Phase.PREPARING:
            return self._review_preparing(record.name, job, now)
        if job.deadline <= now:
            return self._fail(record.name, f"{job.phase.value} took too long", now)
        self._wake_at(job.deadline)
        return []

    def _review_preparing(self, model: str, job: Job, now: float) -> list[Effect]:
        """Have a plan serve that is loaded; hurry where gentleness has brought nothing, or nothing is left to spare."""
        served = self._served.get(model)
        whole = served is not None and served.whole(self._runs)
        if job.complete(served, self._runs):
            del self._jobs[model]
            self._failures.forget(model)
            if job.voluntary and job.why is not Why.COVER:
                self._changed_at[model] = now
            self._served[model] = job.activated()
            return [Changed(), *self._tell(model), *self._pins.answer(model)]
        if whole and job.doubtful(self._view.alive):
            return self._fail(model, "a device of it is suspected", now)
        if job.gentle:
            job.settle(now)
            intact = served is not None and whole and everywhere(served.plans.main, served.loaded)
            if not intact or job.deadline <= now:
                job.gentle = False
                return self._prepare(model, job, now)
        if job.deadline <= now:
            return self._fail(model, f"{job.phase.value} took too long", now)
        self._wake_at(job.deadline)
        return []

    def _review_plan(self, record: NameRecord, now: float) -> list[Effect]:
        """Start a job where the model has no plan, a broken one, or devices it has not considered."""
        model = record.name
        card = self._catalogue.card(record.digest)
        solving = any(job.phase is Phase.SOLVING for job in self._jobs.values())
        if model in self._jobs or card is None or solving:
            return []
        served = self._adopt(record)
        whole = served is not None and served.whole(self._runs)
        if self._pins.wish(model) is not None or (served is not None and served.plans.main.pinned):
            return self._review_pin(record, card, served, now, whole=whole)
        failed = self._failures.stands(model, self._signature(record), needed=not whole)
        if served is not None and not whole and not failed:
            effects = self._inherit(record, served, now)
            if effects:
                return effects
        due, why = now, Why.NEED
        if served is not None and whole:
            due, why = look_again(
                served,
                self._usable(model),
                self._used_elsewhere(model),
                self._view,
                self._since,
                self._changed_at.get(model),
                now,
            )
        if failed:
            due = max(due, self._failures.until(model))
        if due > now:
            self._wake_at(due)
            return []
        return self._solve(record, card, served, now, why)

    def _inherit(self, record: NameRecord, served: ActivePlan, now: float) -> list[Effect]:
        """After a loss: go on with the plan that was made for it; what it can be made better by comes after."""
        usable = {member.device_id for member in self._usable(record.name)}
        heir = served.heir(lambda plan: usable.issuperset(plan.devices()) and self._runs(plan))
        if heir is None:
            return []
        plan, held = heir
        epoch, view = self._next_epoch(), self._view
        members = tuple(member for _, member in sorted(view.alive.items()))
        job = Job(Phase.SOLVING, epoch, record.digest, members, Why.HEIR, now + SOLVE_S, view)
        job.held = held
        job.plans = PlanSet(msgspec.structs.replace(plan, epoch=epoch))
        self._jobs[record.name] = job
        return self._cut(record.name, job, now)

    def _review_pin(
        self, record: NameRecord, card: Card, served: ActivePlan | None, now: float, *, whole: bool
    ) -> list[Effect]:
        """Begin what was asked; keep a pinned plan, and let it wait for its devices."""
        troubles = self._refused.reasons(record.name)
        if self._failures.until(record.name) > now:
            troubles.append("the next try to prepare it")
        members = tuple(member for _, member in sorted(self._view.alive.items()))
        active = None if served is None else served.plans.main
        sight = Sight(record, card, members, active, whole, self._used_elsewhere(record.name), tuple(troubles))
        verdict = self._pins.review(sight, self._next_epoch)
        if verdict.tell_again and served is not None:
            served.told.clear()
        if verdict.search:
            return self._solve(record, card, None, now, Why.NEED)
        if verdict.plan is None:
            return list(verdict.effects)
        why = Why.PIN if whole else Why.NEED
        job = Job(Phase.SOLVING, verdict.plan.epoch, record.digest, members, why, now + SOLVE_S, self._view)
        job.plans, self._jobs[record.name] = PlanSet(verdict.plan), job
        return self._cut(record.name, job, now)

    def _next_epoch(self) -> Epoch:
        assert self._term is not None
        self._number += 1
        return Epoch(self._term, self._me, self._number)

    def _adopt(self, record: NameRecord) -> ActivePlan | None:
        """The row of the plan that serves this model: this leader's, or one that another made and this node learnt."""
        active = self._book.active(record.name)
        served = self._served.get(record.name)
        if active is not None and (served is None or served.plans.main.epoch < active.main.epoch):
            served = self._served[record.name] = adopted(active, self._book.ready(record.name))
        return served if served is not None and served.plans.main.digest == record.digest else None

    def _solve(self, record: NameRecord, card: Card, served: ActivePlan | None, now: float, why: Why) -> list[Effect]:
        epoch, view, model = self._next_epoch(), self._view, record.name
        members = self._usable(model)
        job = Job(Phase.SOLVING, epoch, record.digest, members, why, now + SOLVE_S, view)
        job.signature = self._signature(record)
        self._jobs[model] = job
        self._wake_at(job.deadline)
        # What is loaded already goes on at once, unless another plan is much better.
        usable = {member.device_id for member in members}
        current = None
        if served is not None:
            current = served.usable(lambda plan: usable.issuperset(plan.devices()) and self._runs(plan))
        used, spared = self._used_elsewhere(model), self._used_elsewhere(model, spares=True)
        job.beside = used
        facts = (card, members, epoch, used, len(view.alive), current, why is Why.COVER)
        return [Solve(model, Problem(model, *facts, view.links(), view.held, view.risk(), spared))]

    def _cut(self, model: str, job: Job, now: float) -> list[Effect]:
        """Have the recipes cut whose files are not known; then prepare."""
        assert job.plans is not None
        missing = self._files.missing(job.plans)
        if not missing or job.held:
            return self._prepare(model, job, now)
        if job.phase is Phase.CUTTING:
            return self._fail(model, "the holder did not cut every shard", now)
        usable = {member.device_id: member for member in self._usable(model)}
        holders = [device for device in self._catalogue.holders(job.digest) if device in usable]
        cutters = [device for device in holders if usable[device].capability.can_cut]
        if not cutters:
            return self._fail(model, "no device that holds the file can cut it (ai-edge-litert cuts)", now)
        cutters.sort(key=lambda device: (device != self._me, device))
        job.phase, job.deadline = Phase.CUTTING, now + CUT_S
        job.holder = cutters[self._failures.tries(model) % len(cutters)]
        self._wake_at(job.deadline)
        return [Send(job.holder, Cut(job.epoch, model, missing))]

    def _prepare(self, model: str, job: Job, now: float) -> list[Effect]:
        assert job.plans is not None
        prepares = self._files.prepares(job.plans, self._view.alive, held=job.held, gentle=job.gentle)
        size_bytes = sum(fetch.size_bytes for sent in prepares for fetch in sent.message.fetch)
        wait_s = (GENTLE_S if job.gentle else PREPARE_S) + size_bytes / PREPARE_BYTES_PER_S
        job.phase, job.deadline = Phase.PREPARING, now + wait_s
        self._wake_at(job.deadline)
        placed = {self._name(device): len(job.plans.main.recipes_of(device)) for device in job.plans.main.devices()}
        return [*prepares, note("plan_preparing", model=model, epoch=str(job.epoch), shards=placed, why=job.how)]

    def _recipes_at_hand(self) -> set[Recipe]:
        """The recipes of the plans that serve or are in the making."""
        sets = [*(job.plans for job in self._jobs.values()), *(served.plans for served in self._served.values())]
        return {recipe for plans in sets if plans for plan in plans.plans for recipe, _ in plan.placements()}

    def _tell(self, model: str) -> list[Effect]:
        """Give the active plan to every alive device that has not heard of it in this form."""
        served = self._served.get(model)
        return [] if served is None or self._term is None else [*served.tell(self._view.lives, self._me)]

    def _forget(self, model: str) -> list[Effect]:
        """A model that has no name any more; every node drops its plans by itself."""
        self._failures.forget(model)
        for table in (self._served, self._changed_at):
            table.pop(model, None)
        return self._abort(model)

    def _abort(self, model: str, reason: str = "its devices changed", *, keep_wish: bool = False) -> list[Effect]:
        """End a job; whoever prepared for it may drop it, and whoever asked for its plan hears why."""
        job = self._jobs.pop(model, None)
        if job is None:
            return []
        answers = [] if keep_wish else self._pins.answer(model, reason)
        if job.phase is not Phase.PREPARING or job.plans is None:
            return answers
        devices = {device for plan in job.plans.plans for device in plan.devices()}
        retire = [Send(device, Retire(model, job.epoch)) for device in sorted(devices) if device in self._view.alive]
        return [*retire, *answers]

    def _fail(self, model: str, reason: str, now: float, *, hopeless: bool = False) -> list[Effect]:
        """End a job; the next try waits for a change of the devices, or a while."""
        job = self._jobs.get(model)
        effects = self._abort(model, reason)
        for record in (record for record in self._catalogue.records if record.name == model):
            # What came while it was worked on may mend it: only what it was made for counts as tried.
            signature = (None if job is None else job.signature) or self._signature(record)
            by_choice = job is not None and job.by_choice
            self._wake_at(self._failures.add(model, signature, now, hopeless=hopeless, by_choice=by_choice))
            if job is None or not job.voluntary:
                word = Unplanned(model, record.digest, reason, hopeless)
                effects += [Send(device, word) for device in sorted(self._view.alive)]
        what = "plan_stays" if job is not None and job.voluntary else "no_plan"
        return [*effects, note(what, warning=True, model=model, reason=reason), Changed()]

    def _used_elsewhere(self, model: str, *, spares: bool = False) -> dict[DeviceId, int]:
        """Bytes that the plans of the other models take on each device, or will; with `spares` their contingencies."""
        names = sorted({*self._book.models, *self._jobs} - {model})
        jobs = {name: self._jobs[name].plans for name in names if name in self._jobs}
        sets = [(self._book.active(name), jobs.get(name)) for name in names]
        return memory_taken(sets, self._catalogue.card, spares=spares)

    def _usable(self, model: str) -> tuple[Member, ...]:
        """The alive devices that have not refused this model of late, sorted by id."""
        return self._refused.usable(model, self._view.alive)

    def _signature(self, record: NameRecord) -> tuple[object, ...]:
        """What a failure depends on: the model, the devices, who holds the file, what other models take."""
        holders = tuple(device for device in self._catalogue.holders(record.digest) if device in self._view.alive)
        marks = tuple(mark_of(member, self._view.held) for member in self._usable(record.name))
        return (record.digest, marks, holders, tuple(sorted(self._used_elsewhere(record.name).items())))

    def _job_of(self, epoch: Epoch) -> tuple[str, Job | None]:
        return next(((model, job) for model, job in self._jobs.items() if job.epoch == epoch), ("", None))

    def _runs(self, plan: Plan) -> bool:
        """Whether a plan can run on the devices as they live now."""
        return self._view.runs(plan, self._catalogue.card(plan.digest))

    def _name(self, device: DeviceId) -> str:
        return self._view.alive[device].name if device in self._view.alive else device

    def _wake_at(self, when: float) -> None:
        self._wake = when if self._wake is None else min(self._wake, when)
