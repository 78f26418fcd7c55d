"""The ledger: one directed test per rule, and the promise of one end per request under random events."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn.cluster.member import DeviceId
from meshnn.errors import BusyError
from meshnn.node.doubts import LedgerLimits
from meshnn.node.ledger import Ledger
from meshnn.node.request import Answer, CancelAttempt, Dispatch, Effect, Fail, GoAround
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Shard, Stage
from tests.node.shelf import A, B, C, D, E, Shelf, boot, life, pipeline

MAIN = pipeline([B, C, D])
WITHOUT_C = pipeline([B, D], epoch=MAIN.epoch.without(C))
WITHOUT_D = pipeline([B, C], epoch=MAIN.epoch.without(D))
SET = PlanSet(MAIN, (WITHOUT_C, WITHOUT_D))


def ledger(shelf: Shelf | None = None, **limits: float) -> Ledger:
    """The ledger of device A."""
    return Ledger(A, life(A), shelf or Shelf(SET), LedgerLimits(**limits))  # type: ignore[arg-type]


def accepted(machine: Ledger, name: str = "r1", now: float = 0.0, deadline: float = 30.0) -> Dispatch:
    """A request that goes at once."""
    (effect,) = machine.accept(name, "cat", 10, deadline, now)
    assert isinstance(effect, Dispatch)
    return effect


def only(effects: list[Effect], kind: type[Effect]) -> list[Effect]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def epochs(effects: list[Effect]) -> list[tuple[str, int, Epoch]]:
    """What was dispatched: request, attempt, epoch."""
    return [(e.request, e.attempt, e.plan.epoch) for e in effects if isinstance(e, Dispatch)]


def next_dispatch(machine: Ledger) -> tuple[float, list[tuple[str, int, Epoch]]]:
    """Let time pass until something is dispatched: when, and what."""
    while machine.deadline < math.inf:
        now = machine.deadline
        if sent := epochs(machine.on_deadline(now)):
            return now, sent
    raise AssertionError("nothing is ever dispatched")


def test_accepted_request_goes_to_the_active_plan() -> None:
    """With room in the plan the first attempt starts at once, through all devices of the lane."""
    effect = accepted(ledger())
    assert (effect.attempt, effect.plan, effect.lane, effect.groups) == (1, MAIN, 0, (0, 0, 0))
    assert effect.devices == (B, C, D)
    assert effect.deadline == 30.0


def test_output_answers_once_and_duplicates_are_dropped() -> None:
    """The first whole result answers; the same again does nothing."""
    machine = ledger()
    accepted(machine)
    assert machine.on_output("r1", 1, MAIN.epoch, 0.5) == [Answer("r1", 1, MAIN, 1, 0.5)]
    assert machine.on_output("r1", 1, MAIN.epoch, 0.6) == []
    assert (machine.open, machine.in_flight(MAIN.epoch), machine.deadline) == (0, 0, math.inf)


def test_output_of_another_epoch_is_no_answer() -> None:
    """A result counts only under the epoch that its attempt was sent with."""
    machine = ledger()
    accepted(machine)
    assert machine.on_output("r1", 1, WITHOUT_C.epoch, 0.5) == []
    assert machine.on_output("r1", 2, MAIN.epoch, 0.5) == []
    assert machine.open == 1


def test_share_is_never_exceeded_and_the_queue_is_in_order() -> None:
    """Beyond the origin's share requests wait, and go in the order of acceptance as answers make room."""
    machine = ledger(Shelf(PlanSet(pipeline([B, C, D], share=2))))
    for name in ("r1", "r2"):
        accepted(machine, name)
    assert machine.accept("r3", "cat", 10, 30.0, 0.0) == []
    assert machine.accept("r4", "cat", 10, 30.0, 0.0) == []
    assert (machine.queued, machine.in_flight(MAIN.epoch)) == (2, 2)
    assert epochs(machine.on_output("r2", 1, MAIN.epoch, 1.0)) == [("r3", 1, MAIN.epoch)]
    assert epochs(machine.on_output("r1", 1, MAIN.epoch, 1.0)) == [("r4", 1, MAIN.epoch)]


def test_full_queue_is_busy_at_once() -> None:
    """One request more than the queue holds is refused, and nothing of it stays."""
    machine = ledger(Shelf(), queue=2)
    for name in ("r1", "r2"):
        machine.accept(name, "cat", 10, 30.0, 0.0)
    with pytest.raises(BusyError):
        machine.accept("r3", "cat", 10, 30.0, 0.0)
    assert machine.open == 2


def test_queue_is_bounded_in_bytes_but_takes_one_of_any_size() -> None:
    """Inputs kept for retries are bounded together; a single request is never too large for the queue."""
    machine = ledger(queue_bytes=100)
    machine.accept("r1", "cat", 1000, 30.0, 0.0)
    with pytest.raises(BusyError):
        machine.accept("r2", "cat", 10, 30.0, 0.0)
    machine.on_output("r1", 1, MAIN.epoch, 1.0)
    assert machine.accept("r2", "cat", 10, 30.0, 1.0)


def test_answered_requests_give_their_bytes_back() -> None:
    """What an answered request kept is free for the next one."""
    machine = ledger(queue_bytes=100)
    machine.accept("r1", "cat", 60, 30.0, 0.0)
    machine.accept("r2", "cat", 30, 30.0, 0.0)
    machine.on_output("r1", 1, MAIN.epoch, 1.0)
    assert machine.accept("r3", "cat", 60, 30.0, 1.0)


def test_evidence_retries_at_once_on_the_contingency() -> None:
    """A death seen by this node moves its attempts to the plan without that device, in the same event."""
    machine = ledger()
    accepted(machine)
    effects = machine.on_evidence(C, 0.2)
    assert effects[0] == CancelAttempt("r1", 1, (B, C, D))
    assert epochs(effects) == [("r1", 2, WITHOUT_C.epoch)]
    assert machine.in_flight(MAIN.epoch) == 0


def test_evidence_against_a_device_elsewhere_changes_nothing() -> None:
    """Attempts that do not go through the device go on."""
    machine = ledger()
    accepted(machine)
    assert machine.on_evidence(E, 0.2) == []
    assert machine.on_evidence(A, 0.2) == []


def test_new_requests_avoid_a_device_with_evidence_until_it_is_linked() -> None:
    """Evidence holds for later requests too, and HELLO clears it."""
    machine = ledger()
    machine.on_evidence(C, 0.0)
    assert accepted(machine, "r1").plan == WITHOUT_C
    machine.on_linked(C, life(C), 1.0)
    assert accepted(machine, "r2", 1.0).plan == MAIN


def test_evidence_does_not_hold_for_ever() -> None:
    """Without another word evidence ends by itself, so that no device is avoided for good."""
    machine = ledger(evidence_s=3.0)
    machine.on_evidence(C, 0.0)
    assert accepted(machine, "r1", 2.9).plan == WITHOUT_C
    assert accepted(machine, "r2", 3.1).plan == MAIN


def test_evidence_against_an_earlier_life_does_not_hold_for_the_next() -> None:
    """A plan made for the device's new life is used although the old one is known dead."""
    machine = ledger(Shelf(PlanSet(pipeline([B, C], lives={C: boot(2)}))))
    machine.on_linked(C, life(C), 0.0)
    machine.on_evidence(C, 0.0)
    assert accepted(machine).devices == (B, C)


def test_restarted_device_ends_attempts_of_its_old_life() -> None:
    """HELLO from a new life retries what was sent to the old one, and its plans are avoided."""
    machine = ledger()
    machine.on_linked(C, life(C), 0.0)
    accepted(machine)
    assert epochs(machine.on_linked(C, boot(2), 0.3)) == [("r1", 2, WITHOUT_C.epoch)]
    assert accepted(machine, "r2", 0.4).plan == WITHOUT_C


def test_plan_that_means_an_earlier_life_of_this_device_is_not_used() -> None:
    """A restarted origin does not take part in plans of its former life."""
    shelf = Shelf(PlanSet(pipeline([A, B], lives={A: boot(9)}), (pipeline([B], epoch=MAIN.epoch.without(A)),)))
    assert accepted(ledger(shelf)).devices == (B,)


def test_without_a_plan_the_retry_waits_for_one() -> None:
    """No contingency: the request waits, and goes with the next plan."""
    shelf = Shelf(PlanSet(MAIN))
    machine = ledger(shelf)
    accepted(machine)
    assert epochs(machine.on_evidence(C, 0.2)) == []
    assert machine.queued == 1
    newer = pipeline([B, D], epoch=Epoch(1, A, 2))
    shelf.active["cat"] = PlanSet(newer)
    assert epochs(machine.on_plans(5.0)) == [("r1", 2, newer.epoch)]


def test_retries_go_before_waiting_requests() -> None:
    """A retry was accepted earlier, so it is served earlier."""
    shelf = Shelf(PlanSet(pipeline([B, C, D], share=1)))
    machine = ledger(shelf)
    accepted(machine, "r1")
    machine.accept("r2", "cat", 10, 30.0, 0.0)
    newer = pipeline([B, D], epoch=Epoch(1, A, 2), share=1)
    shelf.active["cat"] = PlanSet(newer)
    assert epochs(machine.on_evidence(C, 0.2)) == [("r1", 2, newer.epoch)]


def test_late_result_of_a_superseded_attempt_answers() -> None:
    """Whichever attempt's result is whole first wins; the live one is cancelled."""
    machine = ledger()
    accepted(machine)
    machine.on_evidence(C, 0.2)
    effects = machine.on_output("r1", 1, MAIN.epoch, 0.4)
    assert effects == [CancelAttempt("r1", 2, (B, D)), Answer("r1", 1, MAIN, 2, 0.4)]
    assert machine.in_flight(WITHOUT_C.epoch) == 0


def test_report_of_a_stage_avoids_the_culprit_for_this_plan() -> None:
    """B cannot reach C although this origin can: the retry goes around C, and so do new requests of the plan."""
    machine = ledger()
    machine.on_linked(C, life(C), 0.0)
    accepted(machine)
    effects = machine.on_failed("r1", 1, B, "peer_error", "reset", C, 0.2)
    assert epochs(effects) == [("r1", 2, WITHOUT_C.epoch)]
    assert accepted(machine, "r2", 0.3).plan == WITHOUT_C


def test_report_holds_for_its_plan_alone() -> None:
    """Another plan may use the device: it need not go over the link that was reported."""
    shelf = Shelf(SET)
    machine = ledger(shelf)
    accepted(machine)
    machine.on_failed("r1", 1, B, "peer_error", "reset", C, 0.2)
    newer = pipeline([C, B], epoch=Epoch(1, A, 2))
    shelf.active["cat"] = PlanSet(newer)
    assert accepted(machine, "r2", 0.3).plan == newer


def test_own_link_does_not_clear_a_report() -> None:
    """A pair that cannot reach each other stays so, however well this origin reaches both; after 5 s it is tried."""
    machine = ledger()
    accepted(machine)
    machine.on_failed("r1", 1, B, "peer_error", "reset", C, 0.2)
    machine.on_linked(C, life(C), 0.3)
    assert accepted(machine, "r2", 5.1).plan == WITHOUT_C
    assert accepted(machine, "r3", 5.3).plan == MAIN


def test_report_that_leaves_no_plan_is_overruled_after_a_grace() -> None:
    """With no other plan the request does not wait out the report: it tries the same way again soon."""
    machine = ledger(Shelf(PlanSet(MAIN)))
    accepted(machine)
    assert epochs(machine.on_failed("r1", 1, B, "peer_error", "reset", C, 0.2)) == []
    assert machine.deadline == pytest.approx(0.7)
    assert epochs(machine.on_deadline(0.6)) == []
    assert epochs(machine.on_deadline(0.7)) == [("r1", 2, MAIN.epoch)]


def test_without_a_plan_around_the_reported_device_one_around_the_reporter_is_used() -> None:
    """D cannot reach C and no plan goes without C: the one without D has no use for that path, at once."""
    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_D,))))
    accepted(machine)
    effects = machine.on_failed("r1", 1, D, "peer_error", "reset", C, 0.2)
    assert epochs(effects) == [("r1", 2, WITHOUT_D.epoch)]
    assert epochs(machine.accept("r2", "cat", 10, 30.0, 0.3)) == [("r2", 1, WITHOUT_D.epoch)]


def test_the_reported_device_is_gone_around_before_the_reporter() -> None:
    """Where both ends can be spared it is the blamed one that is."""
    machine = ledger()
    accepted(machine)
    assert epochs(machine.on_failed("r1", 1, D, "peer_error", "reset", C, 0.2)) == [("r1", 2, WITHOUT_C.epoch)]


@pytest.mark.parametrize("loaded", [False, True])
def test_the_plan_around_the_reported_is_waited_for_while_it_is_loaded(loaded: bool) -> None:
    """It refuses three times before one around the reporter is tried, six before one that must be loaded as well is."""
    shelf = Shelf(SET)
    shelf.unloaded = {WITHOUT_C.epoch} if loaded else {WITHOUT_C.epoch, WITHOUT_D.epoch}
    machine = ledger(shelf)
    accepted(machine)
    assert epochs(machine.on_failed("r1", 1, D, "peer_error", "silent", C, 0.2)) == [("r1", 2, WITHOUT_C.epoch)]
    now, attempt = 0.4, 2
    for _ in range(2):
        assert epochs(machine.on_failed("r1", attempt, B, "stale_epoch_error", "not loaded here", "", now)) == []
        (now, ((_, attempt, epoch),)) = next_dispatch(machine)
        assert epoch == WITHOUT_C.epoch
    assert now == pytest.approx(0.4 + 0.05 + 0.1)
    refused = epochs(machine.on_failed("r1", attempt, B, "stale_epoch_error", "not loaded here", "", now))
    assert refused == ([("r1", 5, WITHOUT_D.epoch)] if loaded else [])
    if loaded:
        return
    asked = 3
    while not refused:
        (now, ((_, attempt, epoch),)) = next_dispatch(machine)
        if epoch == MAIN.epoch:
            machine.on_failed("r1", attempt, D, "peer_error", "silent", C, now)
            continue
        asked += 1
        refused = epochs(machine.on_failed("r1", attempt, B, "stale_epoch_error", "not loaded here", "", now))
    assert (asked, refused) == (6, [("r1", attempt + 1, WITHOUT_D.epoch)])


def test_own_evidence_is_not_overruled() -> None:
    """A device that this node itself found gone is not tried again before it is linked."""
    machine = ledger(Shelf(PlanSet(MAIN)))
    accepted(machine)
    machine.on_evidence(C, 0.2)
    for now in (0.7, 1.7, 2.7):
        assert epochs(machine.on_deadline(now)) == []
    assert epochs(machine.on_linked(C, life(C), 3.0)) == [("r1", 2, MAIN.epoch)]


def test_stage_that_cannot_reach_the_origin_is_avoided_itself() -> None:
    """D blames this origin: the link between them is at fault, so D is gone around."""
    machine = ledger()
    accepted(machine)
    assert epochs(machine.on_failed("r1", 1, D, "peer_error", "reset", A, 0.2)) == [("r1", 2, WITHOUT_D.epoch)]


def test_failed_from_a_device_outside_the_attempt_is_ignored() -> None:
    """Only the attempt's own devices (and this node) may end it."""
    machine = ledger()
    accepted(machine)
    assert machine.on_failed("r1", 1, E, "peer_error", "reset", C, 0.2) == []
    assert machine.on_failed("r9", 1, B, "peer_error", "reset", C, 0.2) == []
    assert accepted(machine, "r2", 0.3).plan == MAIN


def test_stale_epoch_waits_for_another_plan_and_accuses_nobody() -> None:
    """A retired plan is not tried again at once; the newer one is, as soon as it is known."""
    shelf = Shelf(PlanSet(MAIN))
    machine = ledger(shelf)
    accepted(machine)
    effects = machine.on_failed("r1", 1, C, "stale_epoch_error", "not served", "", 0.2)
    assert effects == [CancelAttempt("r1", 1, (B, C, D))]
    newer = pipeline([B, C, D], epoch=Epoch(1, A, 2))
    shelf.active["cat"] = PlanSet(newer)
    assert epochs(machine.on_plans(0.21)) == [("r1", 2, newer.epoch)]


def test_stale_epoch_is_tried_again_with_growing_pauses() -> None:
    """A stage may lag behind: the same plan is tried again, but never in a tight loop."""
    machine = ledger(Shelf(PlanSet(MAIN)), backoff_s=0.1)
    accepted(machine)
    now, pauses = 0.0, []
    for attempt in range(1, 5):
        machine.on_failed("r1", attempt, C, "stale_epoch_error", "not served", "", now)
        due, sent = next_dispatch(machine)
        assert sent == [("r1", attempt + 1, MAIN.epoch)]
        pauses.append(round(due - now, 3))
        now = due
    assert pauses == [0.1, 0.2, 0.4, 0.8]


def test_waking_up_for_something_else_is_not_impatience() -> None:
    """A pause that is over after the request has gone already does not end the attempt that lives."""
    shelf = Shelf(PlanSet(MAIN))
    machine = ledger(shelf)
    accepted(machine)
    machine.on_failed("r1", 1, C, "stale_epoch_error", "not served", "", 0.2)
    shelf.active["cat"] = PlanSet(pipeline([B, C, D], epoch=Epoch(1, A, 2)))
    assert len(epochs(machine.on_plans(0.21))) == 1
    assert machine.deadline < 0.3
    assert machine.on_deadline(0.3) == []
    assert machine.attempt("r1", 2).live  # type: ignore[union-attr]


def test_busy_stage_is_tried_again_after_a_pause() -> None:
    """A device with no room is not to blame: the retry waits a little."""
    machine = ledger(Shelf(PlanSet(MAIN)), backoff_s=0.1)
    accepted(machine)
    assert epochs(machine.on_failed("r1", 1, C, "busy_error", "no room", "", 1.0)) == []
    assert epochs(machine.on_plans(1.05)) == []
    assert epochs(machine.on_deadline(1.1)) == [("r1", 2, MAIN.epoch)]


def test_model_error_tries_one_other_device_then_fails() -> None:
    """One device may fail at what another can do; a second failure is the model's."""
    machine = ledger()
    accepted(machine)
    effects = machine.on_failed("r1", 1, C, "model_error", "no kernel", "", 0.2)
    assert epochs(effects) == [("r1", 2, WITHOUT_C.epoch)]
    # C could be tried again by now; that would not help.
    effects = machine.on_failed("r1", 2, D, "model_error", "no kernel", "", 6.0)
    assert only(effects, Fail) == [Fail("r1", "model_error", "no kernel")]


def test_model_error_without_another_plan_fails_at_once() -> None:
    """Where nobody else could run it the caller hears why, without waiting."""
    machine = ledger(Shelf(PlanSet(MAIN)))
    accepted(machine)
    effects = machine.on_failed("r1", 1, C, "model_error", "no kernel", "", 0.2)
    assert only(effects, Fail) == [Fail("r1", "model_error", "no kernel")]


def test_refused_inputs_fail_the_request() -> None:
    """What this node itself cannot send ends with its error."""
    machine = ledger()
    accepted(machine)
    effects = machine.on_refused("r1", "input_error", "wrong shape", 0.1)
    assert effects == [CancelAttempt("r1", 1, (B, C, D)), Fail("r1", "input_error", "wrong shape")]
    assert machine.in_flight(MAIN.epoch) == 0


def test_deadline_fails_with_what_went_wrong() -> None:
    """At the deadline the attempt is cancelled and the caller gets a named error, once."""
    machine = ledger()
    accepted(machine, deadline=0.9)
    effects = machine.on_deadline(0.9)
    assert effects[0] == CancelAttempt("r1", 1, (B, C, D))
    assert isinstance(effects[1], Fail)
    assert (effects[1].request, effects[1].code) == ("r1", "deadline_error")
    assert machine.on_deadline(2.0) == []
    assert machine.on_output("r1", 1, MAIN.epoch, 2.0) == []


def test_waiting_request_meets_its_deadline_too() -> None:
    """With no plan at all a request fails at its deadline and says so."""
    machine = ledger(Shelf())
    assert machine.accept("r1", "cat", 10, 3.0, 0.0) == []
    fails: list[Effect] = []
    while machine.deadline <= 3.0:
        fails += machine.on_deadline(machine.deadline)
    assert [effect.code for effect in fails if isinstance(effect, Fail)] == ["deadline_error"]
    assert "no plan for cat" in str(fails)


def test_patience_is_a_second_and_a_half_for_a_fast_plan() -> None:
    """Neither answer nor evidence for a second: a plan known to be fast is tried again."""
    machine = ledger()
    accepted(machine, "r0")
    machine.on_output("r0", 1, MAIN.epoch, 0.1)
    accepted(machine, "r1", 10.0)
    assert epochs(machine.on_deadline(11.49)) == []
    assert epochs(machine.on_deadline(11.5)) == [("r1", 2, MAIN.epoch)]


def test_patience_follows_the_predicted_and_the_observed_latency() -> None:
    """Twelve times what was predicted, then four times what lately was observed (95 of 100)."""
    machine = ledger(Shelf(SET, predicted_s=0.5))
    accepted(machine, "r0")
    assert machine.attempt("r0", 1).patience_at == pytest.approx(6.0)  # type: ignore[union-attr]
    machine.on_output("r0", 1, MAIN.epoch, 0.75)
    accepted(machine, "r1", 10.0)
    assert machine.attempt("r1", 1).patience_at == pytest.approx(13.0)  # type: ignore[union-attr]


def test_patience_doubles_with_every_retry_for_lack_of_it() -> None:
    """A mesh that is merely slow is given more time with every attempt."""
    machine = ledger(Shelf(SET, predicted_s=0.1))
    accepted(machine)
    now, waits = 0.0, []
    for attempt in range(2, 5):
        due, sent = next_dispatch(machine)
        assert sent == [("r1", attempt, MAIN.epoch)]
        waits.append(due - now)
        now = due
    assert waits == pytest.approx([2.0, 4.0, 8.0])


def test_impatience_has_a_budget_and_evidence_has_none() -> None:
    """In a brown-out attempts are left alone once the budget is spent; deaths are retried all the same."""
    machine = ledger(Shelf(SET, predicted_s=0.1), budget=1.0, budget_per_request=0.0, budget_per_s=0.0)
    accepted(machine, "r1")
    accepted(machine, "r2")
    effects = machine.on_deadline(2.0)
    assert epochs(effects) == [("r1", 2, MAIN.epoch)]
    assert machine.attempt("r2", 1).live  # type: ignore[union-attr]
    assert len(epochs(machine.on_evidence(C, 2.1))) == 2


def test_retired_plan_starts_its_attempts_again() -> None:
    """When this node no longer serves a plan, what was sent with it goes with the next."""
    shelf = Shelf(SET)
    machine = ledger(shelf)
    accepted(machine)
    newer = pipeline([B, D], epoch=Epoch(2, B, 1))
    shelf.active["cat"] = PlanSet(newer)
    assert epochs(machine.on_plans(0.2)) == [("r1", 2, newer.epoch)]


def test_draining_plan_keeps_its_attempts() -> None:
    """A replaced plan that is still served finishes what is inside; new requests take the new one."""
    shelf = Shelf(SET)
    machine = ledger(shelf)
    accepted(machine)
    newer = pipeline([B, D], epoch=Epoch(2, B, 1))
    shelf.active["cat"], shelf.others = PlanSet(newer), [MAIN]
    assert machine.on_plans(0.2) == []
    assert accepted(machine, "r2", 0.3).plan == newer
    assert len(only(machine.on_output("r1", 1, MAIN.epoch, 0.4), Answer)) == 1


def test_unwanted_request_is_cancelled_and_answered_by_nobody() -> None:
    """Whoever asked went away: slots are freed, later results dropped."""
    machine = ledger()
    accepted(machine)
    assert machine.on_unwanted("r1", 0.2) == [CancelAttempt("r1", 1, (B, C, D))]
    assert machine.on_output("r1", 1, MAIN.epoch, 0.3) == []
    assert machine.in_flight(MAIN.epoch) == 0


def test_models_do_not_wait_for_each_other() -> None:
    """A model without a plan holds up nobody else's requests."""
    machine = ledger()
    assert machine.accept("r1", "dog", 10, 30.0, 0.0) == []
    assert accepted(machine, "r2").plan == MAIN


def lanes() -> Plan:
    """Two lanes of weights 2 and 1; the second has two groups for its stage."""

    def group(one: DeviceId) -> Group:
        return Group((Shard(one, life(one)),))

    first = Lane((Stage(0, 3, (group(B),)),), weight=2)
    second = Lane((Stage(0, 3, (group(C), group(D))),), weight=1)
    return Plan(Epoch(1, A, 1), "cat", "d" * 64, (first, second), window=12, share=12)


def test_lanes_and_groups_are_dealt_by_weight() -> None:
    """Six requests: four to the heavier lane, two to the other, one to each of its groups."""
    machine = ledger(Shelf(PlanSet(lanes())))
    taken = [accepted(machine, f"r{number}").devices for number in range(6)]
    assert sorted(taken) == [(B,), (B,), (B,), (B,), (C,), (D,)]


def test_turns_go_on_where_plans_change_between_requests() -> None:
    """One request at a time, and news of plans between them: the turn is not begun anew while the plan is served."""
    machine = ledger(Shelf(PlanSet(lanes())))
    dealt = []
    for number in range(6):
        effect = accepted(machine, f"r{number}", float(number))
        dealt.append((effect.lane, effect.groups))
        machine.on_output(effect.request, 1, effect.plan.epoch, number + 0.5)
        machine.on_plans(number + 0.6)
    assert sorted(dealt) == [(0, (0,))] * 4 + [(1, (0,)), (1, (1,))]


def test_dead_device_closes_only_its_lane() -> None:
    """A plan with another way through is not given up for one device."""
    machine = ledger(Shelf(PlanSet(lanes())))
    machine.on_evidence(B, 0.0)
    taken = [accepted(machine, f"r{number}").devices for number in range(4)]
    assert sorted(taken) == [(C,), (C,), (D,), (D,)]


def practised(machine: Ledger, count: int = 64, took_s: float = 0.1) -> float:
    """Requests that were answered one after the other, each as fast: when the last was."""
    now = 0.0
    for number in range(count):
        name = f"before{number}"
        accepted(machine, name, now, now + 30.0)
        now += took_s
        machine.on_output(name, 1, MAIN.epoch, now)
    return now


def slowed(machine: Ledger, now: float) -> tuple[list[Effect], float]:
    """A request is late and answered, a second one is late: what then happens, and when. Usual are 0.1 s."""
    accepted(machine, "r1", now, now + 30.0)
    assert machine.on_deadline(now + 0.21) == []
    machine.on_output("r1", 1, MAIN.epoch, now + 0.4)
    accepted(machine, "r2", now + 1.1, now + 30.0)
    assert machine.on_deadline(now + 1.29) == []
    return machine.on_deadline(now + 1.31), now + 1.31


def test_late_attempts_go_around_a_device_by_what_is_loaded() -> None:
    """After two late ones in a row the second starts again without a suspect, and what comes goes there at once."""
    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))))
    effects, now = slowed(machine, practised(machine))
    # Nothing goes without B; C is next.
    assert only(effects, GoAround) == [GoAround(C, MAIN.epoch)]
    assert only(effects, CancelAttempt) == [CancelAttempt("r2", 1, (B, C, D))]
    assert epochs(effects) == [("r2", 2, WITHOUT_C.epoch)]
    assert accepted(machine, "r3", now, now + 30.0).plan == WITHOUT_C
    # The answer of the late attempt may still win.
    assert only(machine.on_output("r2", 1, MAIN.epoch, now + 0.1), Answer)
    assert accepted(machine, "r4", now + 10.1, now + 30.0).plan == MAIN


def test_without_a_way_in_memory_late_attempts_stay_where_they_are() -> None:
    """A contingency that lies on disks, or that stands for the death of another device, is no way around."""
    shelf = Shelf(SET)
    shelf.unloaded = {WITHOUT_C.epoch, WITHOUT_D.epoch}
    machine = ledger(shelf)
    assert slowed(machine, practised(machine))[0] == []

    # In use it would keep the room from the one on the disks, which the death of D would have loaded.
    shelf = Shelf(SET)
    shelf.unloaded = {WITHOUT_D.epoch}
    machine = ledger(shelf)
    assert slowed(machine, practised(machine))[0] == []

    elsewhere = pipeline([A, E], epoch=MAIN.epoch.without(E))
    machine = ledger(Shelf(PlanSet(MAIN, (elsewhere,))))
    effects, now = slowed(machine, practised(machine))
    assert effects == []
    assert accepted(machine, "r3", now, now + 30.0).plan == MAIN


def test_late_attempts_start_again_within_budget_and_room() -> None:
    """Else they stay where they are, and only what comes next goes around."""
    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))), budget=0.0)
    effects, now = slowed(machine, practised(machine))
    assert effects == [GoAround(C, MAIN.epoch)]
    assert accepted(machine, "r3", now, now + 30.0).plan == WITHOUT_C

    narrow = pipeline([B, D], epoch=MAIN.epoch.without(C), share=0)
    machine = ledger(Shelf(PlanSet(MAIN, (narrow,))))
    assert slowed(machine, practised(machine))[0] == [GoAround(C, MAIN.epoch)]


def test_with_the_second_late_attempt_every_late_one_starts_again() -> None:
    """Those of a device that is gone around have nothing better to wait for; each has its place there."""
    narrow = pipeline([B, D], epoch=MAIN.epoch.without(C), share=2)
    machine = ledger(Shelf(PlanSet(MAIN, (narrow,))))
    now = crowded(machine, 3)
    for name in ("r1", "r2", "r3"):
        accepted(machine, name, now, now + 30.0)
    machine.on_deadline(now + 0.21)
    accepted(machine, "r4", now + 1.0, now + 30.0)
    effects = machine.on_deadline(now + 1.3)
    assert only(effects, GoAround) == [GoAround(C, MAIN.epoch)]
    assert epochs(effects) == [("r1", 2, narrow.epoch), ("r2", 2, narrow.epoch)]
    assert len(only(effects, CancelAttempt)) == 2
    assert machine.queued == 0


def crowded(machine: Ledger, beside: int) -> float:
    """Answers to requests that were always so many at once; with too few beside it none says what is usual."""
    now = 0.0
    for number in range(64):
        for one in range(beside + 1):
            accepted(machine, f"before{number}.{one}", now, now + 30.0)
        now += 0.1
        for one in range(beside + 1):
            machine.on_output(f"before{number}.{one}", 1, MAIN.epoch, now)
    return now


def test_more_at_once_may_take_as_many_times_as_long() -> None:
    """Where nothing is known of so many beside an attempt; a queue before a slow device is late all the same."""
    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))))
    now = practised(machine)
    accepted(machine, "r1", now, now + 30.0)
    accepted(machine, "r2", now, now + 30.0)
    assert machine.deadline == pytest.approx(now + 0.2)
    machine.on_output("r1", 1, MAIN.epoch, now + 0.1)
    assert machine.deadline == pytest.approx(now + 0.35)

    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))))
    now = practised(machine)
    accepted(machine, "r1", now, now + 30.0)
    assert machine.on_deadline(now + 0.21) == []
    accepted(machine, "r2", now + 1.0, now + 30.0)
    assert only(machine.on_deadline(now + 1.36), GoAround) == [GoAround(C, MAIN.epoch)]


def test_a_request_that_was_refused_takes_the_ordinary_ways() -> None:
    """The way around may be what refuses it; the slow one answers."""
    for code in ("busy_error", "stale_epoch_error", "model_error"):
        machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))))
        effects, now = slowed(machine, practised(machine))
        assert epochs(effects) == [("r2", 2, WITHOUT_C.epoch)]
        effects = machine.on_failed("r2", 2, B, code, "told", "", now + 0.01)
        assert only(effects, Fail) == []
        if not (sent := epochs(effects)):
            now, sent = next_dispatch(machine)
        assert sent == [("r2", 3, MAIN.epoch)]
        assert only(machine.on_deadline(now + 0.9), Dispatch) == []


def test_late_attempts_go_by_another_lane_of_a_full_plan() -> None:
    """The place that an attempt gives up there is its own."""
    plan = Plan(MAIN.epoch, "cat", "d" * 64, (pipeline([B]).lanes[0], pipeline([C]).lanes[0]), 1, 1)
    machine = ledger(Shelf(PlanSet(plan)))
    now = practised(machine)
    for _ in range(2):
        taken = accepted(machine, "r1", now, now + 30.0)
        effects = machine.on_deadline(now + 0.21)
        if taken.devices == (B,):
            break
        machine.on_output("r1", 1, MAIN.epoch, now + 0.3)
        now += 1.0
    machine.on_output("r1", 1, MAIN.epoch, now + 0.3)
    between = accepted(machine, "r2", now + 0.3, now + 30.0)
    machine.on_output("r2", 1, MAIN.epoch, now + 0.35)
    assert (between.devices, effects) == ((C,), [])
    assert accepted(machine, "r3", now + 1.1, now + 30.0).devices == (B,)
    effects = machine.on_deadline(now + 1.31)
    assert only(effects, GoAround) == [GoAround(B, MAIN.epoch)]
    (again,) = only(effects, Dispatch)
    assert isinstance(again, Dispatch)
    assert (again.request, again.devices) == ("r3", (C,))


def test_one_without_answer_for_longer_than_anybody_waits_goes_around_a_suspect() -> None:
    """Where all of a program's requests hang in a plan there is no second late one: patience is ground enough."""
    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))))
    now = practised(machine)
    accepted(machine, "r1", now, now + 30.0)
    assert machine.on_deadline(now + 1.4) == []
    effects = machine.on_deadline(now + 1.51)
    assert only(effects, GoAround) == [GoAround(C, MAIN.epoch)]
    assert epochs(effects) == [("r1", 2, WITHOUT_C.epoch)]


def test_where_the_way_around_is_full_requests_wait_there_for_a_moment() -> None:
    """Then they go the slow way: it has room."""
    narrow = pipeline([B, D], epoch=MAIN.epoch.without(C), share=1)
    machine = ledger(Shelf(PlanSet(MAIN, (narrow,))))
    _, now = slowed(machine, practised(machine))
    assert machine.in_flight(narrow.epoch) == 1
    assert machine.accept("r3", "cat", 10, now + 30.0, now) == []
    machine.on_deadline(now + 0.1)
    assert machine.queued == 1
    at, sent = next_dispatch(machine)
    assert (at - now, sent) == (0.5, [("r3", 1, MAIN.epoch)])


def test_too_little_known_is_no_ground_to_be_late() -> None:
    """With fewer answers than that nobody knows what is usual; patience alone counts."""
    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))))
    now = practised(machine, 63)
    accepted(machine, "r1", now, now + 30.0)
    assert machine.on_deadline(now + 0.9) == []
    machine.on_output("r1", 1, MAIN.epoch, now + 0.95)
    accepted(machine, "r2", now + 1.0, now + 30.0)
    assert machine.deadline == pytest.approx(now + 1.0 + 0.2)


def test_a_contingency_is_late_after_half_as_long_again_until_it_is_known_itself() -> None:
    """Its devices have more to do; its own answers count once there are enough."""
    machine = ledger(Shelf(PlanSet(MAIN, (WITHOUT_C,))))
    _, now = slowed(machine, practised(machine))
    machine.on_output("r2", 2, WITHOUT_C.epoch, now + 0.1)
    for number in range(64):
        accepted(machine, f"after{number}", now + 1.0, now + 30.0)
        assert machine.deadline == pytest.approx(now + 1.0 + (0.275 if number < 63 else 0.2))
        machine.on_output(f"after{number}", 1, WITHOUT_C.epoch, now + 1.1)


class Story:
    """A ledger under random events, with the promises checked after each."""

    def __init__(self) -> None:
        """One plan of share 2 with one contingency."""
        self.plans = PlanSet(pipeline([B, C, D], share=2), (WITHOUT_C,))
        self.shelf = Shelf(self.plans)
        self.machine = ledger(self.shelf, late_known=1)
        self.now = 0.0
        self.ends: dict[str, int] = {}
        self.sent: list[Dispatch] = []

    def note(self, effects: list[Effect]) -> None:
        """Nothing is sent for a request that has ended, nothing ends twice, no window is exceeded."""
        for effect in effects:
            if isinstance(effect, Dispatch):
                assert self.ends[effect.request] == 0
                self.sent.append(effect)
            elif isinstance(effect, Answer | Fail):
                self.ends[effect.request] += 1
        assert all(self.machine.in_flight(plan.epoch) <= plan.share for plan in self.plans.plans)
        self.starved()

    def starved(self) -> None:
        """Nothing waits past its grace, and any pause, where a way has room."""
        machine = self.machine
        queued = [entry for table in (machine._retries, machine._fresh) for entry in table.get("cat", {}).values()]
        for entry in queued:
            pauses = [machine._grace_end(entry), entry.not_before, entry.look_at, *entry.refused.values()]
            ways = machine._chooser.ways(entry, self.now, patient=False) if self.now > max(pauses) else []
            assert not any(machine._has_room(way) for way in ways)

    def accept(self, deadline_s: float) -> None:
        """Another request."""
        name = f"r{len(self.ends)}"
        self.ends[name] = 0
        self.note(self.machine.accept(name, "cat", 1, self.now + deadline_s, self.now))

    def output(self, which: float) -> None:
        """A result of any attempt ever sent."""
        if self.sent:
            one = self.sent[int(which) % len(self.sent)]
            self.note(self.machine.on_output(one.request, one.attempt, one.plan.epoch, self.now))

    def failed(self, code: str) -> None:
        """A stage ends the newest attempt."""
        if self.sent:
            one = self.sent[-1]
            self.note(self.machine.on_failed(one.request, one.attempt, B, code, "told", "", self.now))

    def evidence(self, device: str) -> None:
        """A device dies."""
        self.note(self.machine.on_evidence(DeviceId(device), self.now))

    def linked(self, device: str) -> None:
        """A device is back."""
        self.note(self.machine.on_linked(DeviceId(device), life(DeviceId(device)), self.now))

    def plan(self, there: str) -> None:
        """The plans go, or come."""
        self.shelf.active = {"cat": self.plans} if there == "there" else {}
        self.note(self.machine.on_plans(self.now))

    def wait(self, tenths: float) -> None:
        """Time passes."""
        self.now += tenths / 10
        self.note(self.machine.on_deadline(self.now))


CODES = ["peer_error", "stale_epoch_error", "busy_error", "model_error"]
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just(Story.accept), st.floats(1, 20)),
        st.tuples(st.just(Story.output), st.floats(0, 50)),
        st.tuples(st.just(Story.wait), st.floats(0.1, 30)),
        st.tuples(st.just(Story.failed), st.sampled_from(CODES)),
        st.tuples(st.sampled_from([Story.evidence, Story.linked]), st.sampled_from([B, C, D])),
        st.tuples(st.just(Story.plan), st.sampled_from(["there", "gone"])),
    ),
    max_size=60,
)


@given(events=EVENTS)
def test_every_accepted_request_ends_exactly_once(events: list[tuple[Callable[..., None], object]]) -> None:
    """Under any events: one end per request by its deadline, the share kept, no window left occupied."""
    story = Story()
    for event, what in events:
        story.now += 0.01
        event(story, what)
    machine = story.machine
    while machine.deadline < math.inf:
        story.now = max(story.now, machine.deadline)
        story.note(machine.on_deadline(story.now))
    assert set(story.ends.values()) <= {1}
    assert (machine.open, machine.queued, machine.in_flight(MAIN.epoch)) == (0, 0, 0)
