"""The leader's rules, one by one: what starts a job, what ends it, what it waits for, who is told."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Member, MemberState
from meshnn.graph.card import Card
from meshnn.node import problem
from meshnn.node.catalogue import Catalogue
from meshnn.node.effects import Effect, Send, Solve
from meshnn.node.failures import BACKOFF_MAX_S, BACKOFF_S
from meshnn.node.jobs import GENTLE_S, ActivePlan, Why
from meshnn.node.leader import (
    CUT_S,
    PREPARE_S,
    SOLVE_S,
    Leader,
)
from meshnn.node.messages import Holdings
from meshnn.node.occasions import STABLE_S, VOLUNTARY_S
from meshnn.node.plans import PlanBook
from meshnn.node.refusals import REFUSED_S
from meshnn.node.shards import Shards
from meshnn.node.view import View
from meshnn.plan.messages import (
    GOLDEN_FAULT,
    Activate,
    Cut,
    CutDone,
    CutFailed,
    Fetch,
    Lack,
    Prepare,
    Ready,
    Refused,
    Retire,
    Unplanned,
)
from meshnn.plan.plan import Epoch, PlanSet
from tests.node.cores import device_id, model

A, B, C, D = (device_id(letter) for letter in "abcd")
LIFE = BootId("0" * 16)
CAT, LYNX, DOG = model("cat", "1"), model("cat", "2"), model("dog", "3", weights=10_000)


def member(letter: str, boot: BootId = LIFE, memory_bytes: int = 1_000_000, speed: float = 1.0) -> Member:
    """A member of the mesh; every one can cut."""
    capability = Capability(memory_bytes, 10**9, speed, 1, "x", True)
    return Member(device_id(letter), boot, letter, Address("h", ord(letter)), 0, 1, capability=capability)


class Bench:
    """A leads B and C; A and B hold the cat. Work is answered only where a test says so."""

    def __init__(self, letters: str = "abc", *, name: bool = True) -> None:
        """Leading since t = 0, with everybody here for a while."""
        self.now = 0.0
        self.catalogue = Catalogue(A, (), {})
        for device in (B, C, D):
            self.catalogue.on_linked(device)
        self.catalogue.on_holdings(B, Holdings(1, (CAT.digest, LYNX.digest, DOG.digest), ()))
        self.book = PlanBook(A, LIFE, Shards(10**6, lambda recipe: True), self.catalogue.card)
        self.leader = Leader(A, self.catalogue, self.book)
        self.alive = {device_id(letter): member(letter) for letter in letters}
        self.leader.review(View(self.alive), -100.0)
        self.leader.on_role(1, 0.0)
        if name:
            self.catalogue.bind("cat", CAT, replace=False)

    def review(self, at: float | None = None, /, **changes: Member | None) -> list[Effect]:
        """Look again at a time, after these members came, changed or went."""
        self.now = self.now if at is None else at
        for letter, row in changes.items():
            self.alive.pop(device_id(letter), None)
            if row is not None:
                self.alive[device_id(letter)] = row
        return self.leader.review(View(self.alive), self.now)

    def solved(self, effects: Iterable[Effect]) -> list[Effect]:
        """Answer the one search among the effects."""
        (task,) = solves(effects)
        return self.leader.on_solved(task.model, task, problem.solve(task), self.now)

    def cut(self, effects: Iterable[Effect]) -> list[Effect]:
        """Answer the one order to cut."""
        ((to, order),) = said(effects, Cut)
        assert isinstance(order, Cut)
        return self.leader.on_cut_done(
            CutDone(order.epoch, tuple(Fetch(r, "0" * 64, 9, (to,)) for r in order.recipes)), 0
        )

    def ready(self, effects: Iterable[Effect]) -> list[Effect]:
        """Every device loads everything it is asked to."""
        out: list[Effect] = []
        for to, prepare in said(effects, Prepare):
            assert isinstance(prepare, Prepare)
            plans = prepare.plans
            epochs = tuple(plan.epoch for plan in plans.plans if to in plan.devices())
            out += self.leader.on_ready(to, Ready(plans.main.epoch, epochs), self.now)
        return out

    def stored(self, plans: PlanSet) -> list[Effect]:
        """Every device has loaded the plan itself, and has all contingencies on disk."""
        out: list[Effect] = []
        main = plans.main.epoch
        for device in sorted({device for plan in plans.plans for device in plan.devices()}):
            epochs = tuple(plan.epoch for plan in plans.plans if device in plan.devices())
            out += self.leader.on_ready(device, Ready(main, tuple({main} & {*epochs}), epochs), self.now)
        return out

    def served(self) -> ActivePlan:
        """The row of the cat's plan."""
        return self.leader._served["cat"]

    def settle(self, at: float, **changes: Member | None) -> PlanSet:
        """Whatever follows from a change, until nothing more is at work; the plan that serves then."""
        effects = self.review(at, **changes)
        for _ in range(9):
            if found := solves(effects):
                effects = self.leader.on_solved("cat", found[0], problem.solve(found[0]), self.now)
            elif said(effects, Cut):
                effects = self.cut(effects)
            elif said(effects, Prepare):
                effects = self.ready(effects)
        told = [message for to, message in said(effects, Activate) if to == A]
        if told and isinstance(told[-1], Activate):
            self.book.on_activate(A, told[-1], self.now)
        return self.served().plans

    def serve(self, *, loaded: bool = True) -> PlanSet:
        """The whole way to an active plan, which A's own book knows too; its contingencies `loaded` or on disk."""
        effects = self.cut(self.solved(self.review()))
        if loaded:
            effects = self.ready(effects)
        else:
            ((_, prepare), *_) = said(effects, Prepare)
            assert isinstance(prepare, Prepare)
            effects = self.stored(prepare.plans)
        (activate, *_) = [message for to, message in said(effects, Activate) if to == A][::-1]
        assert isinstance(activate, Activate)
        self.book.on_activate(A, activate, self.now)
        self.review()
        return activate.plans


def said(effects: Iterable[Effect], kind: type[msgspec.Struct]) -> list[tuple[DeviceId, msgspec.Struct]]:
    """The messages of one kind, with whom they are for."""
    return [(e.to, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def solves(effects: Iterable[Effect]) -> list[problem.Problem]:
    """The searches that start."""
    return [effect.problem for effect in effects if isinstance(effect, Solve)]


def test_nobody_plans_who_does_not_lead() -> None:
    """Without a term nothing starts and nothing is due; a term lost ends every job."""
    bench = Bench()
    bench.leader.on_role(None, 0.0)
    assert (bench.review(), bench.leader.deadline) == ([], None)
    assert solves(bench.leader.on_role(2, 0.0))


def test_a_plan_is_activated_when_its_last_device_is_ready() -> None:
    """Not one device of the main plan may be missing; then everybody alive is told."""
    bench = Bench()
    prepares = said(bench.cut(bench.solved(bench.review())), Prepare)
    (_, first), *_ = prepares
    assert isinstance(first, Prepare)
    main = first.plans.main
    *early, last = main.devices()
    for device in early:
        assert said(bench.leader.on_ready(device, Ready(main.epoch, (main.epoch,)), 0.0), Activate) == []
    told = said(bench.leader.on_ready(last, Ready(main.epoch, (main.epoch,)), 0.0), Activate)
    assert [to for to, _ in told] == [A, B, C]


def test_every_device_of_the_contingencies_prepares_too() -> None:
    """A device that is only in a contingency gets its Prepare with the others'."""
    bench = Bench()
    (first, *_) = prepares = said(bench.cut(bench.solved(bench.review())), Prepare)
    assert isinstance(first[1], Prepare)
    assert {to for to, _ in prepares} == {device for plan in first[1].plans.plans for device in plan.devices()}


@pytest.mark.parametrize("phase", ["solving", "cutting", "preparing"])
@pytest.mark.parametrize("fate", [None, member("c", BootId("1" * 16))])
def test_a_death_or_a_restart_ends_the_job_and_starts_the_next(phase: str, fate: Member | None) -> None:
    """In whatever phase: a device of the plan that died, or lives anew, costs the job; the next one starts at once."""
    bench = Bench("abcd")
    small = {device_id(letter): member(letter, memory_bytes=1000) for letter in "ab"}
    bench.alive.update(small)
    effects = bench.review()
    if phase != "solving":
        effects = bench.solved(effects)
    if phase == "preparing":
        assert {to for to, _ in said(bench.cut(effects), Prepare)} == {C, D}
    again = bench.review(c=fate)
    (task,) = solves(again)
    assert (C in {row.device_id for row in task.members}) == (fate is not None)
    told = [D] if fate is None else [C, D]
    assert [to for to, _ in said(again, Retire)] == (told if phase == "preparing" else [])


def test_the_death_of_a_device_outside_the_plan_does_not_stop_it() -> None:
    """While preparing, only the main plan's devices matter."""
    bench = Bench("abcd")
    prepares = said(bench.cut(bench.solved(bench.review())), Prepare)
    assert isinstance(prepares[0][1], Prepare)
    outside = {A, B, C, D} - set(prepares[0][1].plans.main.devices())
    assert solves(bench.review(**{min(outside)[0]: None})) == []


@pytest.mark.parametrize("phase", ["solving", "cutting", "preparing"])
def test_no_job_lasts_for_ever(phase: str) -> None:
    """Each phase has its deadline; after it everybody hears why, and a next try comes."""
    bench, limits = Bench(), {"solving": SOLVE_S, "cutting": CUT_S, "preparing": PREPARE_S + 1}
    effects = bench.review()
    if phase != "solving":
        effects = bench.solved(effects)
    if phase == "preparing":
        bench.cut(effects)
    assert bench.leader.deadline is not None
    assert bench.leader.deadline <= limits[phase]
    ended = bench.review(limits[phase])
    (word, *_) = said(ended, Unplanned)
    assert isinstance(word[1], Unplanned)
    assert (word[1].reason, word[1].hopeless) == (f"{phase} took too long", False)
    assert solves(bench.review(limits[phase] + BACKOFF_S))


def test_failures_back_off_and_a_change_ends_the_wait() -> None:
    """The waits double to their bound while nothing changes; a newcomer is worth a try at once."""
    bench, waits = Bench(), []
    for _ in range(6):
        ((_, order),) = said(bench.solved(bench.review()), Cut)
        assert isinstance(order, Cut)
        bench.leader.on_cut_failed(CutFailed(order.epoch, "disk full"), bench.now)
        assert bench.review() == []
        assert bench.leader.deadline is not None
        waits.append(bench.leader.deadline - bench.now)
        bench.now = bench.leader.deadline
    assert waits == [BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S, 8 * BACKOFF_S, BACKOFF_MAX_S, BACKOFF_MAX_S]
    bench.now -= 1
    assert solves(bench.review(d=member("d")))


def test_who_comes_during_a_search_that_fails_is_worth_another_at_once() -> None:
    """The search was made without the newcomer: its failure says nothing of the mesh as it is now."""
    bench = Bench()
    (search,) = solves(bench.review())
    assert not solves(bench.review(d=member("d")))
    effects = bench.leader.on_solved("cat", search, "no plan for cat: too little memory", bench.now)
    (again,) = solves(effects)
    assert again.members[-1].device_id == device_id("d")
    effects = bench.leader.on_solved("cat", again, "no plan for cat: still too little", bench.now)
    assert not solves(effects)
    assert not solves(bench.review())


def test_another_holder_cuts_after_a_failure() -> None:
    """A holder whose file is bad does not stop the plan where there is another."""
    bench, cutters = Bench(), []
    for _ in range(2):
        ((to, order),) = said(bench.solved(bench.review()), Cut)
        assert isinstance(order, Cut)
        cutters.append(to)
        bench.leader.on_cut_failed(CutFailed(order.epoch, "bad file"), bench.now)
        bench.review()
        bench.now += BACKOFF_S
    assert cutters == [A, B]


def test_a_hopeless_model_is_said_to_be_so() -> None:
    """Where nothing fits everybody hears it at once; a new device makes it worth a try."""
    bench = Bench("a")
    told = said(bench.solved(bench.review()), Unplanned)
    assert [(to, getattr(word, "hopeless", None)) for to, word in told] == [(A, True)]
    assert solves(bench.review(1.0)) == []
    assert solves(bench.review(b=member("b")))


def test_a_refusing_device_is_planned_without_and_asked_again_later() -> None:
    """Its refusal ends the job, and counts for its present life and a while only."""
    bench = Bench()
    ((to, prepare), *_) = said(bench.cut(bench.solved(bench.review())), Prepare)
    assert isinstance(prepare, Prepare)
    effects = bench.leader.on_refused(to, Refused(prepare.plans.main.epoch, "bad file"), 0.0)
    assert said(effects, Retire)
    (task,) = solves(bench.review())
    assert to not in {row.device_id for row in task.members}
    bench.leader.on_solved(task.model, task, "no plan", 0.0)
    assert bench.leader.deadline is not None
    assert bench.leader.deadline <= REFUSED_S
    (task,) = solves(bench.review(**{to[0]: member(to[0], BootId("2" * 16))}))
    assert to in {row.device_id for row in task.members}


def test_a_cutter_whose_golden_vectors_two_devices_dispute_is_itself_refused() -> None:
    """One that disagrees is planned without; a second one turns it round: another holder cuts, and both serve again."""
    bench = Bench("abcd")
    bench.alive |= {device_id(letter): member(letter, memory_bytes=800_000) for letter in "abcd"}
    effects = bench.cut(bench.solved(bench.review()))
    for number in range(2):
        ((_, prepare), *_) = said(effects, Prepare)
        assert isinstance(prepare, Prepare)
        main = prepare.plans.main
        doubter = next(device for device in main.devices() if device != A)
        bench.leader.on_refused(doubter, Refused(main.epoch, f"{GOLDEN_FAULT}: other bytes"), 0.0)
        effects = bench.review()
        (task,) = solves(effects)
        used = {row.device_id for row in task.members}
        assert (doubter in used, A in used) == ((False, True) if number == 0 else (True, False))
        effects = bench.solved(effects)
        if said(effects, Cut) and number == 0:
            effects = bench.cut(effects)
    assert [to for to, _ in said(effects, Cut)] == [B]


def test_a_device_that_knows_a_newer_plan_is_not_held_to_blame() -> None:
    """The job fails, the number goes past the newer plan, and the device stays in the next plan."""
    bench = Bench()
    ((to, prepare), *_) = said(bench.cut(bench.solved(bench.review())), Prepare)
    assert isinstance(prepare, Prepare)
    newer = Epoch(1, A, 40)
    bench.leader.on_refused(to, Refused(prepare.plans.main.epoch, "a newer plan", newer), 0.0)
    bench.review()
    (task,) = solves(bench.review(BACKOFF_S))
    assert to in {row.device_id for row in task.members}
    assert task.epoch > newer


def test_a_served_plan_that_a_device_gives_up_is_replaced_without_it() -> None:
    """A device that cannot serve its active shard any more: a new plan without it starts at once."""
    bench = Bench()
    plans = bench.serve()
    victim = plans.main.devices()[-1]
    bench.leader.on_refused(victim, Refused(plans.main.epoch, "out of memory"), 0.0)
    (task,) = solves(bench.review())
    assert victim not in {row.device_id for row in task.members}


def test_a_newcomer_is_told_the_plan_at_once_and_planned_for_when_steady() -> None:
    """Activate goes to it in the same review; a voluntary change waits until it has been here for a while."""
    bench = Bench()
    bench.serve()
    effects = bench.review(1.0, d=member("d"))
    assert [to for to, _ in said(effects, Activate)] == [D]
    assert solves(bench.review(0.9 + STABLE_S)) == []
    assert bench.leader.deadline == 1.0 + STABLE_S
    (task,) = solves(bench.review(1.0 + STABLE_S))
    assert not task.keep


def moved() -> Bench:
    """A mesh whose plan was moved by choice at t = 50: a newcomer is much faster."""
    bench = Bench()
    bench.serve()
    bench.review(40.0, d=member("d", speed=50.0))
    plans = bench.settle(50.0)
    assert D in plans.main.devices()
    return bench


def test_what_serves_is_moved_by_choice_once_a_minute_at_most() -> None:
    """Within a minute a newcomer may take part in contingencies only; after it the plan itself is looked at."""
    bench = moved()
    bench.review(60.0, c=member("c", BootId("2" * 16), speed=500.0))
    assert solves(bench.review(59.9 + STABLE_S)) == []
    (task,) = solves(bench.review(60.0 + STABLE_S))
    assert task.keep
    result = problem.solve(task)
    assert isinstance(result, PlanSet)
    assert task.current is not None
    assert result.main.lanes == task.current.lanes
    effects = bench.leader.on_solved("cat", task, result, bench.now)
    bench.ready(bench.cut(effects) if said(effects, Cut) else effects)
    assert solves(bench.review(49.9 + VOLUNTARY_S)) == []
    (task,) = solves(bench.review(50.0 + VOLUNTARY_S))
    assert not task.keep


def moving() -> tuple[Bench, PlanSet, list[Effect]]:
    """A mesh that prepares a move by choice at t = 50, beside a plan that covers every death of its own."""
    bench = Bench()
    old = bench.serve()
    assert not bench.served().uncovered
    bench.review(40.0, d=member("d", speed=50.0))
    effects = bench.solved(bench.review(50.0))
    effects = bench.cut(effects) if said(effects, Cut) else effects
    return bench, old, effects


def gentleness(effects: Iterable[Effect]) -> set[bool]:
    """Whether what is to be prepared must fit beside all that serves."""
    return {message.gentle for _, message in said(effects, Prepare) if isinstance(message, Prepare)}


def plans_of(effects: Iterable[Effect]) -> PlanSet:
    """The plans that are to be prepared."""
    ((_, message), *_) = said(effects, Prepare)
    assert isinstance(message, Prepare)
    return message.plans


def test_a_move_by_choice_waits_for_what_covers_it() -> None:
    """It is prepared beside what serves and takes over when the deaths that did no harm before do none any more."""
    bench, _, effects = moving()
    plans = plans_of(effects)
    assert (gentleness(effects), len(plans.contingencies) > 0) == ({True}, True)
    assert said(bench.stored(plans), Activate) == []
    assert bench.served().plans is not plans
    assert said(bench.ready(effects), Activate)
    assert bench.served().plans is plans


def test_a_move_by_choice_does_not_wait_to_cover_what_was_not_covered() -> None:
    """Only the death of whom the old plan did without must do no harm afterwards either."""
    bench, old, effects = moving()
    for device in old.main.devices():
        bench.leader.on_ready(device, Ready(old.main.epoch, (old.main.epoch,)), bench.now)
    plans, was = plans_of(effects), set(old.main.devices())
    wanted = tuple(plan.epoch for plan in plans.plans if plan.epoch.absent not in was)
    assert set(plans.main.devices()) - was
    for device in sorted({device for plan in plans.plans for device in plan.devices()}):
        bench.leader.on_ready(device, Ready(plans.main.epoch, wanted), bench.now)
    assert bench.served().plans is plans


def test_a_move_that_does_not_fit_beside_what_serves_takes_its_place() -> None:
    """After some seconds it is prepared as what is needed, and covers deaths only afterwards."""
    bench, _, effects = moving()
    plans = plans_of(effects)
    assert bench.leader.deadline is not None
    assert bench.leader.deadline < 50.1 + GENTLE_S
    again = bench.review(bench.leader.deadline)
    assert (gentleness(again), plans_of(again)) == ({False}, plans)
    assert said(bench.stored(plans), Activate)
    assert bench.served().plans is plans


def test_a_new_link_hears_of_a_move_by_choice_as_gently() -> None:
    """What is said anew over a link that came up is what was said before."""
    bench, old, effects = moving()
    plans = plans_of(effects)
    device = next(iter(set(plans.main.devices()) & set(old.main.devices())))
    said_again = said(bench.leader.on_linked(device, LIFE), Prepare)
    gentle = {message.plans.main.epoch: message.gentle for _, message in said_again if isinstance(message, Prepare)}
    assert gentle == {plans.main.epoch: True, old.main.epoch: False}


def test_a_death_makes_a_move_by_choice_urgent() -> None:
    """What was to be better is the remedy, where it does without the dead device."""
    bench, old, effects = moving()
    plans = plans_of(effects)
    victim = next(iter(set(old.main.devices()) - set(plans.main.devices())))
    again = bench.review(50.5, **{victim[0]: None})
    assert (gentleness(again), plans_of(again)) == ({False}, plans)


def test_a_plan_that_covers_less_serves_only_when_gentleness_is_over() -> None:
    """It has no contingency for a death that did no harm: it is loaded whole and waits all the same, for a while."""
    bench, _, effects = moving()
    job = bench.leader._jobs["cat"]
    plans = plans_of(effects)
    job.plans = PlanSet(plans.main)
    ready = Ready(plans.main.epoch, (plans.main.epoch,))
    for device in plans.main.devices():
        assert said(bench.leader.on_ready(device, ready, 50.1), Activate) == []
    assert gentleness(bench.review(50.2 + GENTLE_S)) == {False}
    assert said(bench.review(50.3 + GENTLE_S), Activate)


def test_gentleness_ends_soon_after_the_files_are_there() -> None:
    """However many bytes the plan has: what does not fit once it is on all disks will not fit later."""
    bench, _, effects = moving()
    job, plans = bench.leader._jobs["cat"], plans_of(effects)
    job.deadline = 50.0 + 400.0
    assert gentleness(bench.review(50.0 + 3 * GENTLE_S)) == set()
    bench.now = 100.0
    bench.stored(plans)
    assert bench.leader.deadline is not None
    assert bench.leader.deadline <= 100.0 + GENTLE_S
    assert gentleness(bench.review(100.0 + GENTLE_S)) == {False}


def test_a_move_away_from_a_slow_device_does_not_wait_for_files_of_contingencies() -> None:
    """Its own files are there: whatever its contingencies lack, some seconds later it takes what room it needs."""
    bench = moved()
    effects = bench.solved(bench.review(52.0, d=member("d", speed=0.1)))
    effects = bench.cut(effects) if said(effects, Cut) else effects
    plans = plans_of(effects)
    job = bench.leader._jobs["cat"]
    assert (gentleness(effects), job.why) == ({True}, Why.AILING)
    job.deadline = 400.0
    for device in plans.main.devices():
        bench.leader.on_ready(device, Ready(plans.main.epoch, (), (plans.main.epoch,)), 53.0)
    assert gentleness(bench.review(52.9 + GENTLE_S)) == set()
    assert gentleness(bench.review(53.0 + GENTLE_S)) == {False}


def test_what_no_longer_serves_is_not_spared() -> None:
    """A device that knows no gentleness made room for the new plan at once: nothing waits for cover then."""
    bench, old, effects = moving()
    plans = plans_of(effects)
    device = next(iter(set(old.main.devices()) & set(plans.main.devices())))
    again = bench.leader.on_ready(device, Ready(old.main.epoch, ()), 50.1)
    assert gentleness(again) == {False}
    assert said(bench.stored(plans), Activate)


def test_a_choice_that_failed_delays_nothing_needed() -> None:
    """What serves breaks while the choice before waits to be made anew: a plan is sought at once."""
    bench, _, _ = moving()
    bench.review(50.5, d=msgspec.structs.replace(bench.alive[D], state=MemberState.SUSPECT))
    assert "cat" not in bench.leader._jobs
    bench.served().broken = True
    assert solves(bench.review(50.6))


def test_nothing_is_moved_by_choice_to_who_may_be_dead() -> None:
    """A device of the new plan falls silent: what serves goes on, and the choice is made anew later."""
    bench, old, effects = moving()
    plans = plans_of(effects)
    silent = msgspec.structs.replace(bench.alive[D], state=MemberState.SUSPECT)
    assert D in plans.main.devices()
    effects = bench.review(50.5, d=silent)
    assert {message.epoch for _, message in said(effects, Retire)} == {plans.main.epoch}  # type: ignore[attr-defined]
    assert (bench.served().plans, solves(effects)) == (old, [])
    bench.review(50.6, d=member("d", speed=50.0))
    assert solves(bench.review(50.5 + BACKOFF_S))


def test_a_loss_is_no_choice() -> None:
    """A death within the minute is acted on at once, and the minute goes on as before."""
    bench = moved()
    effects = bench.review(51.0, d=None)
    assert solves(effects) or said(effects, Prepare)


def test_an_uncovered_death_is_answered_with_the_plan_that_lies_ready() -> None:
    """No search, no cutting: what its devices have on disk is prepared at once, then more deaths are covered."""
    bench = Bench()
    plans = bench.serve(loaded=False)
    victim = next(device for device in plans.main.devices() if device != A)
    effects = bench.review(50.0, **{victim[0]: None})
    assert solves(effects) == []
    (first, *_) = prepares = said(effects, Prepare)
    heir = plans.without(victim)
    assert heir is not None
    assert isinstance(first[1], Prepare)
    assert first[1].plans.main.lanes == heir.lanes
    assert (first[1].plans.main.epoch > plans.main.epoch, first[1].plans.main.epoch.absent) == (True, "")
    assert {to for to, _ in prepares} == set(heir.devices())
    (task,) = solves(bench.ready(effects))
    assert (task.current, task.keep) == (first[1].plans.main, False)


def test_a_new_leader_needs_no_files_for_a_plan_that_lies_on_every_disk() -> None:
    """It never cut anything: the devices said that they have what the contingency takes."""
    bench = Bench()
    plans = bench.serve(loaded=False)
    bench.leader = Leader(A, bench.catalogue, bench.book)
    bench.leader.review(View(bench.alive), 60.0)
    bench.leader.on_role(9, 60.0)
    bench.stored(plans)
    victim = next(device for device in plans.main.devices() if device != A)
    effects = bench.review(61.0, **{victim[0]: None})
    assert (said(effects, Cut), len(said(effects, Prepare)) > 0) == ([], True)


def test_an_heir_that_cannot_be_prepared_gives_way_to_a_search() -> None:
    """What lay ready and fails is not tried again before another plan was sought."""
    bench = Bench("abcd")
    plans = bench.serve(loaded=False)
    victim = next(device for device in plans.main.devices() if device != A)
    effects = bench.review(50.0, **{victim[0]: None})
    ((to, prepare), *_) = said(effects, Prepare)
    assert isinstance(prepare, Prepare)
    refused = Refused(prepare.plans.main.epoch, "a newer plan", Epoch(1, A, 90))
    bench.leader.on_refused(to, refused, bench.now)
    assert solves(bench.review(50.0 + BACKOFF_S))


def test_a_plan_that_moved_by_a_loss_may_be_bettered_at_once() -> None:
    """The minute is between choices: what was loaded after a loss is not the last word."""
    bench = Bench("abcd")
    plans = bench.serve()
    victim = next(device for device in plans.main.devices() if device != A)
    bench.settle(50.0, **{victim[0]: None})
    (task,) = solves(bench.review(51.0, **{victim[0]: member(victim[0], BootId("5" * 16))})) or solves(
        bench.review(51.0 + STABLE_S)
    )
    assert not task.keep


def test_a_device_that_became_much_slower_is_a_loss() -> None:
    """No waiting for steadiness, nor for the minute; a device outside the plan that slows down is no news so urgent."""
    bench = moved()
    (task,) = solves(bench.review(52.0, d=member("d", speed=5.0)))
    assert not task.keep
    other = moved()
    idle = min({A, B, C, D} - set(other.book.active("cat").main.devices()))  # type: ignore[union-attr]
    (task,) = solves(other.review(52.0, **{idle[0]: member(idle[0], speed=0.1)}))
    assert task.keep


def test_a_pair_that_cannot_reach_each_other_is_planned_apart() -> None:
    """Where the plan hands on between them it is planned anew at once, and the links say why."""
    bench = Bench("abcd")
    plans = bench.serve(loaded=False)
    pair = sorted(plans.main.devices()[:2])
    bench.now = 9.0
    effects = bench.leader.review(View(bench.alive, severed=frozenset({(pair[0], pair[1])})), 9.0)
    again = solves(effects)
    if again:
        assert again[0].links.hop_ms(pair[0], pair[1]) > 1000
        result = problem.solve(again[0])
        assert isinstance(result, PlanSet)
        found = result.main
    else:
        ((_, prepare), *_) = said(effects, Prepare)
        assert isinstance(prepare, Prepare)
        found = prepare.plans.main
    assert not set(pair) <= set(found.devices())


def test_nothing_is_moved_for_a_pair_of_which_one_may_be_dead() -> None:
    """A pair that no plan hands across is planned for when both are known to live, and not before."""
    bench = Bench("abcd")
    plans = bench.serve()
    idle = min({A, B, C, D} - set(plans.main.devices()))
    used = plans.main.devices()[0]
    pair = (min(used, idle), max(used, idle))
    silent = msgspec.structs.replace(bench.alive[idle], state=MemberState.SUSPECT)
    view = View(bench.alive | {idle: silent}, severed=frozenset({pair}))
    assert solves(bench.leader.review(view, 9.0)) == []
    assert solves(bench.leader.review(View(bench.alive, severed=frozenset({pair})), 9.0))


def test_a_flapper_is_used_last_and_not_waited_for() -> None:
    """A held device starts no search, is avoided by the next one, and is looked at anew when its hold is over."""
    bench = Bench()
    bench.serve()
    bench.alive[D] = member("d", speed=50.0)
    assert solves(bench.leader.review(View(bench.alive, held=frozenset({D})), 20.0)) == []
    assert solves(bench.leader.review(View(bench.alive, held=frozenset({D})), 90.0)) == []
    (task,) = solves(bench.leader.review(View(bench.alive, held=frozenset()), 95.0))
    assert task.avoid == frozenset()
    held = Bench("abcd")
    (task,) = solves(held.leader.review(View(held.alive, held=frozenset({B})), 1.0))
    assert task.avoid == {B}
    result = problem.solve(task)
    assert isinstance(result, PlanSet)
    assert B not in result.main.devices()


def test_a_flapper_may_be_all_there_is_to_cover_a_death() -> None:
    """Where a death is uncovered it is looked at once it is steady; what serves stays as it is."""
    bench = Bench()
    plans = bench.serve()
    bench.leader.on_ready(C, Ready(plans.main.epoch, ()), 1.0)
    assert bench.served().uncovered
    bench.alive[D] = member("d", speed=50.0)
    held = View(bench.alive, held=frozenset({D}))
    assert solves(bench.leader.review(held, 20.0)) == []
    (task,) = solves(bench.leader.review(held, 20.0 + STABLE_S))
    assert task.keep
    assert task.avoid == {D}


def test_room_that_another_model_took_is_sought_elsewhere() -> None:
    """A plan left uncovered is looked at again whenever what the others take has changed, and not else."""
    bench = Bench()
    plans = bench.serve()
    bench.leader.on_ready(C, Ready(plans.main.epoch, (plans.main.epoch,)), 1.0)
    assert bench.served().uncovered
    assert not solves(bench.review(20.0))
    bench.catalogue.bind("dog", DOG, replace=False)
    effects = bench.solved(bench.review())
    (again,) = solves(effects)
    assert (again.model, again.keep) == ("cat", True)
    assert sum(again.used.values()) > 0
    bench.leader.on_solved("cat", again, plans, bench.now)
    assert not solves(bench.ready(bench.cut(effects)))
    assert not solves(bench.review(30.0))


def test_the_outlook_of_every_death_is_told() -> None:
    """Prepared, on disk, to be fetched, or none: with the time until answers come again, an election included."""
    bench = Bench("abcd")
    plans = bench.serve()
    assert {row.state for row in bench.served().outlooks(A)} == {"prepared"}
    victim = next(device for device in plans.main.devices() if device != A)
    plan = plans.without(victim)
    assert plan is not None
    taker = plan.devices()[-1]
    lack = Lack(plan.epoch, 0, 400)
    effects = bench.leader.on_ready(taker, Ready(plans.main.epoch, (plans.main.epoch,), (plan.epoch,), (lack,)), 1.0)
    (row,) = [row for row in bench.served().outlooks(A) if row.device == victim]
    assert (row.state, row.reroute_ms) == ("on disk", 2600)
    assert all(isinstance(word, Activate) and row in word.outlooks for _, word in said(effects, Activate))
    handy = Lack(plan.epoch, 0, 400, room=True)
    bench.leader.on_ready(taker, Ready(plans.main.epoch, (plans.main.epoch,), (plan.epoch,), (handy,)), 1.0)
    (row,) = [row for row in bench.served().outlooks(victim) if row.device == victim]
    assert (row.state, row.reroute_ms) == ("on disk", 1300)
    others = [device for device in plan.devices() if device != taker]
    for device in others:
        del bench.served().loaded[device], bench.served().lacks[device]
    (row,) = [row for row in bench.served().outlooks(A) if row.device == victim]
    assert (others == []) == (row.reroute_ms == 1300)
    lack = Lack(plan.epoch, 5000, 900)
    bench.leader.on_ready(taker, Ready(plans.main.epoch, (plans.main.epoch,), (), (lack,)), 1.0)
    (row,) = [row for row in bench.served().outlooks(A) if row.device == victim]
    assert (row.state, row.fetch_bytes, row.reroute_ms) == ("fetch", 5000, 3100)
    (late,) = [row for row in bench.served().outlooks(victim) if row.device == victim]
    assert late.reroute_ms == 7600


def test_nothing_much_better_changes_nothing() -> None:
    """The search keeps the plan: it stays, and is not looked at again for the same devices."""
    bench = Bench()
    bench.serve()
    (task,) = solves(bench.review(100.0, d=member("d", memory_bytes=10))) or solves(bench.review(110.0))
    effects = bench.leader.on_solved("cat", task, problem.solve(task), bench.now)
    assert (said(effects, Cut), said(effects, Prepare)) == ([], [])
    assert solves(bench.review(500.0)) == []


def test_room_for_a_second_copy_is_worth_a_new_plan() -> None:
    """Two of three devices work and only one death can be covered in memory; with a fourth device both can."""
    bench = Bench()
    plans = bench.serve()
    assert len(plans.main.devices()) == len(plans.contingencies) == 2
    bench.review(100.0, d=member("d"))
    (task,) = solves(bench.review(110.0))
    found = problem.solve(task)
    assert isinstance(found, PlanSet)
    assert found.main.lanes == plans.main.lanes
    assert said(bench.leader.on_solved("cat", task, found, bench.now), Prepare)
    assert not problem.better(found, found, task)


def test_a_measured_speed_is_worth_another_look() -> None:
    """A plan made before a device measured itself is reconsidered with what it measured."""
    bench = Bench()
    bench.serve()
    assert solves(bench.review(100.0)) == []
    assert solves(bench.review(100.0, c=member("c", speed=5.0)))


def test_the_death_of_a_spare_device_renews_the_coverage() -> None:
    """A device only contingencies use is gone: the set is solved anew, with the running plan preferred."""
    bench = Bench("abcd")
    plans = bench.serve()
    spare = min({A, B, C, D} - set(plans.main.devices()))
    (task,) = solves(bench.review(50.0, **{spare[0]: None}))
    assert task.current == plans.main


def test_a_loaded_contingency_goes_on_as_the_plan() -> None:
    """After a death the search is given the contingency that is loaded, so that it is official at once."""
    bench = Bench("abcd")
    plans = bench.serve()
    victim = next(device for device in plans.main.devices() if device != A)
    (task,) = solves(bench.review(50.0, **{victim[0]: None}))
    assert task.current == plans.without(victim)


def test_one_model_is_solved_at_a_time_and_the_next_counts_its_memory() -> None:
    """Two models: the second search starts when the first has ended, with what the first will take."""
    bench = Bench()
    bench.catalogue.bind("dog", DOG, replace=False)
    effects = bench.review()
    assert [task.model for task in solves(effects)] == ["cat"]
    (task,) = solves(bench.solved(effects))
    assert task.model == "dog"
    assert sum(task.used.values()) > CAT.size_bytes


def test_a_replaced_digest_ends_the_job_and_plans_the_new_file() -> None:
    """The job for the old file is dropped in the same review; so is an active plan's claim to serve the name."""
    bench = Bench()
    bench.review()
    bench.catalogue.bind("cat", LYNX, replace=True)
    (task,) = solves(bench.review())
    assert task.card.digest == LYNX.digest
    served = Bench()
    served.serve()
    served.catalogue.bind("cat", LYNX, replace=True)
    (task,) = solves(served.review())
    assert (task.card.digest, task.current) == (LYNX.digest, None)


def test_a_removed_model_ends_its_job() -> None:
    """Whoever prepared hears it; nothing is due any more."""
    bench = Bench()
    bench.cut(bench.solved(bench.review()))
    bench.catalogue.remove("cat")
    assert said(bench.review(), Retire)
    assert bench.leader.deadline is None


def test_an_earlier_leaders_plan_goes_on() -> None:
    """A new leader adopts the active plan with what was loaded, tells everybody, and makes no new one in its place."""
    bench = Bench()
    plans = bench.serve()
    ready = bench.book.ready("cat")
    effects = bench.leader.on_role(7, 1.0)
    assert {to for to, _ in said(effects, Activate)} == {A, B, C}
    assert all(isinstance(word, Activate) and set(word.ready) == ready for _, word in said(effects, Activate))
    for task in solves(effects):
        effects = bench.leader.on_solved("cat", task, problem.solve(task), 1.0)
    assert said(effects, Prepare) == []
    assert bench.book.newest("cat") == plans.main.epoch


def test_a_newer_plan_that_the_leader_learns_of_is_taken_up() -> None:
    """A former leader activated it at some devices only: the new one completes the activation."""
    bench = Bench()
    plans = bench.serve()
    newer = PlanSet(msgspec.structs.replace(plans.main, epoch=Epoch(1, B, 9)))
    bench.book.on_activate(B, Activate(newer, (newer.main.epoch,)), 1.0)
    assert {to for to, word in said(bench.review(), Activate) if getattr(word, "plans", None) == newer} == {A, B, C}


def test_a_new_link_hears_everything_again() -> None:
    """Prepare while preparing; Prepare and Activate of what serves; not for a plan that names its earlier life."""
    bench = Bench()
    prepares = said(bench.cut(bench.solved(bench.review())), Prepare)
    to = prepares[-1][0]
    assert said(bench.leader.on_linked(to, LIFE), Prepare) == [prepares[-1]]
    assert said(bench.leader.on_linked(to, BootId("3" * 16)), Prepare) == []
    served = Bench()
    served.serve()
    assert said(served.leader.on_linked(C, LIFE), Prepare)
    assert [to for to, _ in said(served.review(), Activate)] == [C]


def test_a_new_link_to_the_cutter_ends_the_wait_for_it() -> None:
    """The order to cut may be lost: the job starts over."""
    bench = Bench()
    ((to, _),) = said(bench.solved(bench.review()), Cut)
    bench.leader.on_linked(to, LIFE)
    assert solves(bench.review())


def test_readiness_is_told_as_it_changes() -> None:
    """A contingency that is loaded later, or lost, is told to everybody once."""
    bench = Bench()
    plans = bench.serve()
    device = plans.contingencies[0].devices()[0]
    effects = bench.leader.on_ready(device, Ready(plans.main.epoch, ()), 1.0)
    assert [to for to, _ in said(effects, Activate)] == [A, B, C]
    assert bench.leader.on_ready(device, Ready(plans.main.epoch, ()), 1.0) == []


def test_answers_to_old_questions_are_ignored() -> None:
    """A search, a cut or a report of an epoch that is not at work changes nothing."""
    bench = Bench()
    (task,) = solves(bench.review())
    old = Epoch(1, A, 0)
    stale = problem.Problem("cat", CAT, task.members, old, {}, 3)
    assert bench.leader.on_solved("cat", stale, problem.solve(stale), 0.0) == []
    assert bench.leader.on_cut_failed(CutFailed(old, "late"), 0.0) == []
    assert bench.leader.on_ready(B, Ready(old, (old,)), 0.0) == []
    assert bench.leader.on_refused(B, Refused(old, "late"), 0.0) == []


def test_without_its_card_a_model_waits() -> None:
    """No search starts before the card is here."""
    bench = Bench(name=False)
    other = Catalogue(B, (), {})
    other.bind("cat", CAT, replace=False)
    bench.catalogue._put(other.record("cat"))
    assert solves(bench.review()) == []
    bench.catalogue.on_card(CAT.digest, card_of(CAT))
    assert solves(bench.review())


def card_of(card: Card) -> Card:
    """The card as it comes over the wire: an equal copy."""
    return msgspec.json.decode(msgspec.json.encode(card), type=Card)
