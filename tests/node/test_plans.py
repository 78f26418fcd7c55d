"""The plan book: what is prepared, what serves, what drains, and what the leader hears of it."""

from __future__ import annotations

import msgspec

from meshnn.cluster.election import TERM_MAX
from meshnn.cluster.member import BootId, DeviceId
from meshnn.node.effects import Effect, Load, PlansChanged, Send, Unload
from meshnn.node.plans import DRAIN_S, GONE_S, ORPHAN_S, PRESSING_S, UNPLANNED_MAX, PlanBook
from meshnn.node.shards import Shards
from meshnn.plan.messages import Activate, Fetch, Outlook, Prepare, Ready, Refused, Retire, Unplanned
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Recipe, Shard, Stage
from tests.node.cores import device_id, model

A, B, C, D = (device_id(letter) for letter in "abcd")
BOOT = BootId("0" * 16)
CAT = model("cat", weights=1000)
FIRST, SECOND = Epoch(1, B, 1), Epoch(2, C, 1)


def plan(epoch: Epoch, *devices: DeviceId, boot: BootId = BOOT) -> Plan:
    """Four operators on each of two devices."""
    cuts = ((0, 3), (4, 7))
    stages = tuple(
        Stage(first, last, (Group((Shard(device, boot),)),))
        for (first, last), device in zip(cuts, devices, strict=True)
    )
    return Plan(epoch, "cat", CAT.digest, (Lane(stages),))


def plan_set(epoch: Epoch = FIRST, boot: BootId = BOOT) -> PlanSet:
    """A, then C; without A it is D, then C; without C it is A, then D."""
    main = plan(epoch, A, C, boot=boot)
    return PlanSet(main, (plan(epoch.without(A), D, C, boot=boot), plan(epoch.without(C), D, A, boot=boot)))


def prepare(plans: PlanSet, device: DeviceId = A) -> Prepare:
    """The leader's word to a device."""
    recipes = {recipe for one in plans.plans for recipe in one.recipes_of(device)}
    return Prepare(plans, tuple(Fetch(recipe, "0" * 64, 10, ()) for recipe in sorted(recipes)))


class Bench:
    """A's plan book over its shards; loads are answered at once where a test says so."""

    def __init__(self, budget_bytes: int = 10**6, *, card: bool = True) -> None:
        """The leader is B."""
        self.cards = {CAT.digest: CAT} if card else {}
        self.shards = Shards(budget_bytes, lambda recipe: True)
        self.book = PlanBook(A, BOOT, self.shards, self.cards.get)
        self.book.on_leader(B, 0.0)

    def load(self, effects: list[Effect], *, well: bool = True) -> list[Effect]:
        """Answer every load; returns all effects."""
        out, handle = list(effects), 0
        while found := [effect.recipe for effect in effects if isinstance(effect, Load)]:
            handle += 1
            done = self.shards.on_loaded(found[0], handle) if well else self.shards.on_load_failed(found[0], "bad file")
            effects = [*done, *self.book.on_shards()]
            out += effects
        return out

    def serve(self, plans: PlanSet, ready: tuple[Epoch, ...] = (), now: float = 0.0) -> None:
        """Prepare, load, activate."""
        self.load(self.book.on_prepare(plans.main.epoch.leader, prepare(plans), now))
        self.book.on_activate(plans.main.epoch.leader, Activate(plans, ready or (plans.main.epoch,)), now)


def said(effects: list[Effect], kind: type[msgspec.Struct]) -> list[tuple[DeviceId, msgspec.Struct]]:
    """The messages of one kind, with whom they are for."""
    return [(e.to, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def test_ready_comes_when_every_shard_is_loaded() -> None:
    """The last report names the plan itself and the contingency of which this device holds a part."""
    bench, plans = Bench(), plan_set()
    effects = bench.load(bench.book.on_prepare(B, prepare(plans), 0.0))
    to, last = said(effects, Ready)[-1]
    assert to == B
    assert isinstance(last, Ready)
    assert (last.epoch, last.loaded) == (FIRST, (FIRST, FIRST.without(C)))


def test_prepared_implies_servable() -> None:
    """A prepared plan is found by its epoch before it is activated, but no origin here chooses it."""
    bench, plans = Bench(), plan_set()
    bench.load(bench.book.on_prepare(B, prepare(plans), 0.0))
    assert bench.book.plan("cat", FIRST) == plans.main
    assert bench.book.choose("cat", frozenset()) is None


def test_a_loaded_contingency_covers_a_death_at_once() -> None:
    """The origin chooses the plan itself, else a contingency the leader called loaded, else none."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans, (FIRST, FIRST.without(C)))
    assert bench.book.choose("cat", frozenset()) == plans.main
    assert bench.book.choose("cat", frozenset({C})) == plans.without(C)
    assert bench.book.choose("cat", frozenset({A})) is None
    assert bench.book.choose("cat", frozenset({C, D})) is None


def test_a_contingency_on_disk_is_the_last_resort() -> None:
    """One that the leader called on disk is chosen where none is loaded: asking for it has it loaded."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans)
    outlooks = (Outlook(A, "fetch", 10, 2200), Outlook(C, "on disk", 0, 2200))
    bench.book.on_activate(B, Activate(plans, (FIRST,), outlooks), 0.0)
    assert bench.book.choose("cat", frozenset()) == plans.main
    assert bench.book.choose("cat", frozenset({C})) == plans.without(C)
    assert bench.book.choose("cat", frozenset({A})) is None
    assert (bench.book.crowded("cat"), bench.book.crowded("dog")) == (True, False)
    bench.book.on_activate(B, Activate(plans, (FIRST, FIRST.without(C)), ()), 0.0)
    assert bench.book.choose("cat", frozenset({C})) == plans.without(C)
    assert not bench.book.crowded("cat")


def stages(epoch: Epoch, *parts: tuple[int, int, DeviceId]) -> PlanSet:
    """A plan of these ranges of operators on these devices, without contingencies."""
    lane = Lane(tuple(Stage(first, last, (Group((Shard(device, BOOT),)),)) for first, last, device in parts))
    return PlanSet(Plan(epoch, "cat", CAT.digest, (lane,)))


def test_a_contingency_that_is_asked_for_takes_its_place_back_from_a_plan_that_counts_on_the_dead() -> None:
    """A request for it says that its death has come; some time later it is one of many again."""
    room, plans = Bench(), plan_set()
    room.serve(plans)
    spare = plans.contingencies[1].recipes_of(A)[0]
    bench = Bench(room.shards.used_bytes)
    bench.serve(plans)
    assert bench.shards.handle(spare) is not None
    bench.load(bench.book.on_prepare(C, prepare(stages(SECOND, (0, 6, A), (7, 7, C))), 1.0))
    assert bench.shards.handle(spare) is None
    bench.load(bench.book.on_asked("cat", FIRST.without(C), 2.0))
    assert bench.shards.handle(spare) is not None
    assert bench.book.on_asked("cat", FIRST.without(C), 3.0) == []
    times = [bench.book.deadline]
    assert bench.book.on_deadline(1.9 + GONE_S) == []
    bench.load(bench.book.on_deadline(2.0 + GONE_S))
    assert bench.shards.handle(spare) is None
    times.append(bench.book.deadline)
    bench.book.on_deadline(3.0 + PRESSING_S)
    assert [*times, bench.book.deadline] == [2.0 + GONE_S, 3.0 + PRESSING_S, None]
    assert bench.book.on_asked("cat", FIRST, 20.0) == []
    assert bench.book.on_asked("dog", FIRST.without(C), 20.0) == []


def test_of_two_contingencies_that_are_asked_for_the_first_has_the_room() -> None:
    """While it is loaded requests try another, more valuable beforehand: that one does not get in between."""
    main = stages(FIRST, (0, 3, A), (4, 5, C), (6, 7, D)).main
    spares = [stages(FIRST.without(gone), (0, last, A), (last + 1, 7, B)).main for gone, last in ((C, 5), (D, 6))]
    plans, room, spare = PlanSet(main, tuple(spares)), Bench(), Bench()
    room.serve(PlanSet(main))
    spare.serve(PlanSet(msgspec.structs.replace(spares[1], epoch=FIRST)))
    bench = Bench(room.shards.used_bytes + spare.shards.used_bytes)
    bench.serve(plans)
    other, first = (plan.recipes_of(A)[0] for plan in spares)
    assert other in bench.shards.loaded()
    effects = bench.book.on_asked("cat", FIRST.without(D), 1.0)
    bench.load([*effects, *bench.book.on_asked("cat", FIRST.without(C), 1.1)])
    assert (first in bench.shards.loaded(), other in bench.shards.loaded()) == (True, False)


def test_who_is_back_is_counted_on_again() -> None:
    """A link to the device that requests went around: a plan that counts on it is prepared at once."""
    room, plans = Bench(), plan_set()
    room.serve(plans)
    bench = Bench(room.shards.used_bytes)
    bench.serve(plans)
    bench.load(bench.book.on_asked("cat", FIRST.without(C), 2.0))
    making = stages(SECOND, (0, 6, A), (7, 7, C))
    assert not said(bench.load(bench.book.on_prepare(C, prepare(making), 2.1)), Refused)
    assert making.main.recipes_of(A)[0] not in bench.shards.loaded()
    bench.load(bench.book.on_linked(C, 2.2))
    assert making.main.recipes_of(A)[0] in bench.shards.loaded()


def test_a_plan_that_was_made_without_the_dead_takes_what_room_it_needs() -> None:
    """It is the remedy: it is prepared whatever requests have asked for."""
    room, plans = Bench(), plan_set()
    room.serve(plans)
    bench = Bench(room.shards.used_bytes)
    bench.serve(plans)
    bench.book.on_asked("cat", FIRST.without(C), 2.0)
    whole = stages(SECOND, (0, 7, A))
    told = said(bench.load(bench.book.on_prepare(B, prepare(whole), 3.0)), Ready)
    assert [message.loaded for _, message in told if isinstance(message, Ready)][-1] == (SECOND,)


def test_the_remedy_for_one_death_is_prepared_whatever_else_requests_go_around() -> None:
    """A plan without the dead waits for no request that goes around one of its own devices meanwhile."""
    main = stages(FIRST, (0, 3, A), (4, 5, C), (6, 7, D)).main
    spares = [stages(FIRST.without(gone), (0, 5, A), (6, 7, other)).main for gone, other in ((C, D), (D, C))]
    room, plans = Bench(), PlanSet(main, tuple(spares))
    room.serve(plans)
    bench = Bench(room.shards.used_bytes)
    bench.serve(plans)
    bench.load(bench.book.on_asked("cat", FIRST.without(C), 2.0))
    bench.load(bench.book.on_asked("cat", FIRST.without(D), 2.5))
    remedy = stages(SECOND, (0, 6, A), (7, 7, D))
    bench.load(bench.book.on_prepare(B, prepare(remedy), 2.6))
    assert remedy.main.recipes_of(A)[0] in bench.shards.loaded()


def test_a_gentle_plan_takes_no_room_from_what_serves_or_covers() -> None:
    """It waits beside them, and is no reason to refuse; given again in earnest it takes what it needs."""
    room, plans = Bench(), plan_set()
    room.serve(plans)
    bench = Bench(room.shards.used_bytes)
    bench.serve(plans)
    before = bench.shards.loaded()
    moved = stages(SECOND, (0, 6, A), (7, 7, C))
    gentle = msgspec.structs.replace(prepare(moved), gentle=True)
    effects = bench.load(bench.book.on_prepare(C, gentle, 1.0))
    assert (bench.shards.loaded(), said(effects, Refused)) == (before, [])
    effects = bench.load(bench.book.on_prepare(C, prepare(moved), 2.0))
    assert moved.main.recipes_of(A)[0] in bench.shards.loaded()
    assert [message.loaded for _, message in said(effects, Ready) if isinstance(message, Ready)][-1] == (SECOND,)


def test_a_gentle_plan_is_loaded_where_there_is_room() -> None:
    """With its contingencies, beside everything else."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans)
    before = bench.shards.loaded()
    moved = PlanSet(stages(SECOND, (0, 6, A), (7, 7, C)).main, (stages(SECOND.without(C), (0, 7, A)).main,))
    effects = bench.load(bench.book.on_prepare(C, msgspec.structs.replace(prepare(moved), gentle=True), 1.0))
    told = [message.loaded for _, message in said(effects, Ready) if isinstance(message, Ready)]
    assert (told[-1], set(before) < set(bench.shards.loaded())) == ((SECOND, SECOND.without(C)), True)


def test_a_contingency_is_used_for_its_own_death_first() -> None:
    """Those without A and without B both do without B: the one that is meant for it goes first, then the other."""
    main = stages(FIRST, (0, 3, A), (4, 7, B)).main
    without_a, without_b = (stages(FIRST.without(gone), (0, 7, C)).main for gone in (A, B))
    bench = Bench()
    ready = (FIRST, FIRST.without(A), FIRST.without(B))
    bench.book.on_activate(B, Activate(PlanSet(main, (without_a, without_b)), ready, ()), 0.0)
    assert bench.book.choose("cat", frozenset({A})) == without_a
    assert bench.book.choose("cat", frozenset({B})) == without_b
    bench.book.on_activate(B, Activate(PlanSet(main, (without_a, without_b)), ready[:2], ()), 0.0)
    assert bench.book.choose("cat", frozenset({B})) == without_a


def test_an_older_plan_is_refused_with_the_newest_known() -> None:
    """Fencing: a deposed leader's plan is neither prepared nor activated here."""
    bench = Bench()
    bench.serve(plan_set(SECOND))
    ((_, refused),) = said(bench.book.on_prepare(B, prepare(plan_set(FIRST)), 0.0), Refused)
    assert isinstance(refused, Refused)
    assert refused.promised == SECOND
    bench.book.on_activate(B, Activate(plan_set(FIRST), (FIRST,)), 0.0)
    assert bench.book.newest("cat") == SECOND


def test_an_older_plan_is_answered_with_the_one_that_serves() -> None:
    """A new leader that never heard of the last activation learns of it from whoever did."""
    bench = Bench()
    bench.serve(plan_set(SECOND))
    ((to, told),) = said(bench.book.on_activate(D, Activate(plan_set(FIRST), (FIRST,)), 0.0), Activate)
    assert to == D
    assert told == Activate(plan_set(SECOND), (SECOND,))


def test_a_plan_for_an_earlier_life_is_refused() -> None:
    """A restarted device does not take up what was meant for the life before."""
    bench = Bench()
    effects = bench.book.on_prepare(B, prepare(plan_set(boot=BootId("f" * 16))), 0.0)
    assert [type(message) for _, message in said(effects, Refused)] == [Refused]
    assert bench.book.plan("cat", FIRST) is None


def test_a_shard_that_does_not_load_is_refused_once() -> None:
    """The leader hears the reason, not again with every other shard."""
    bench = Bench()
    effects = bench.load(bench.book.on_prepare(B, prepare(plan_set()), 0.0), well=False)
    (refused,) = said(effects, Refused)
    assert refused == (B, Refused(FIRST, "bad file"))


def test_preparing_again_tries_what_failed_anew() -> None:
    """The leader's second word for the same plan forgives a failure and is answered again."""
    bench = Bench()
    bench.load(bench.book.on_prepare(B, prepare(plan_set()), 0.0), well=False)
    effects = bench.load(bench.book.on_prepare(B, prepare(plan_set()), 0.0))
    assert FIRST in [epoch for _, ready in said(effects, Ready) if isinstance(ready, Ready) for epoch in ready.loaded]


def test_preparing_the_active_plan_again_keeps_it_active() -> None:
    """A Prepare repeated after a broken link neither doubles the plan nor drops a shard."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans)
    effects = bench.book.on_prepare(B, prepare(plans), 1.0)
    assert not any(isinstance(effect, (Unload, Load)) for effect in effects)
    assert len(said(effects, Ready)) == 1
    assert bench.book.deadline is None


def test_shards_wait_for_the_card() -> None:
    """Memory is counted by the card: a plan prepared before it came is loaded when it does."""
    bench, plans = Bench(card=False), plan_set()
    assert said(bench.load(bench.book.on_prepare(B, prepare(plans), 0.0)), Ready) == []
    bench.cards[CAT.digest] = CAT
    assert said(bench.load(bench.book.on_card()), Ready)


def test_a_replaced_plan_drains_and_then_goes() -> None:
    """Requests inside the old plan have a few seconds; then its shards are dropped."""
    bench = Bench()
    bench.serve(plan_set(FIRST))
    other = PlanSet(plan(SECOND, C, D))
    effects = bench.book.on_activate(C, Activate(other, (SECOND,)), 10.0)
    assert not any(isinstance(effect, Unload) for effect in effects)
    assert bench.book.plan("cat", FIRST) is not None
    assert bench.book.deadline == 10.0 + DRAIN_S
    assert any(isinstance(effect, Unload) for effect in bench.book.on_deadline(10.0 + DRAIN_S))
    assert bench.book.plan("cat", FIRST) is None
    assert bench.shards.used_bytes == 0


def test_retire_drops_what_was_prepared() -> None:
    """An aborted plan leaves nothing; another epoch's word changes nothing."""
    bench = Bench()
    bench.load(bench.book.on_prepare(B, prepare(plan_set()), 0.0))
    bench.book.on_retire(Retire("cat", SECOND), 0.0)
    assert bench.book.plan("cat", FIRST) is not None
    bench.book.on_retire(Retire("cat", FIRST), 0.0)
    assert (bench.book.plan("cat", FIRST), bench.shards.used_bytes) == (None, 0)


def test_a_prepared_plan_outlives_its_leader_only_for_a_while() -> None:
    """Under another leader what was prepared serves whoever was told to use it, then goes with its memory."""
    bench = Bench()
    bench.load(bench.book.on_prepare(B, prepare(plan_set()), 0.0))
    bench.book.on_leader(C, 10.0)
    until = bench.book.deadline
    assert until == 10.0 + ORPHAN_S
    assert bench.book.plan("cat", FIRST) is not None
    assert any(isinstance(effect, PlansChanged) for effect in bench.book.on_deadline(10.0 + ORPHAN_S))
    assert bench.book.plan("cat", FIRST) is None
    assert bench.book.deadline is None
    assert bench.shards.used_bytes == 0


def test_a_prepared_plan_that_is_given_again_is_no_orphan() -> None:
    """The link to the leader broke and came back: its repeated Prepare keeps the plan."""
    bench = Bench()
    bench.load(bench.book.on_prepare(B, prepare(plan_set()), 0.0))
    bench.book.on_linked(B, 1.0)
    bench.book.on_prepare(B, prepare(plan_set()), 1.1)
    assert bench.book.deadline is None


def test_a_new_leader_hears_what_serves_and_what_is_loaded() -> None:
    """The active plan comes first, so that the report that follows has something to belong to."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans)
    effects = bench.book.on_leader(C, 1.0)
    assert [(e.to, type(e.message)) for e in effects if isinstance(e, Send)] == [(C, Activate), (C, Ready)]


def test_a_new_link_to_the_leader_repeats_the_report() -> None:
    """A Ready that was lost with the link is said again; to others nothing is said."""
    bench = Bench()
    bench.serve(plan_set())
    assert bench.book.on_linked(C, 1.0) == []
    assert len(said(bench.book.on_linked(B, 1.0), Ready)) == 1


def test_the_leader_takes_no_followers_word_for_what_is_loaded() -> None:
    """A follower introduces its plan with an old list; the leader's own list stays."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans, (FIRST, FIRST.without(C)))
    bench.book.on_leader(A, 1.0)
    bench.book.on_activate(C, Activate(plans, (FIRST,)), 1.0)
    assert bench.book.ready("cat") == {FIRST, FIRST.without(C)}


def test_a_lost_shard_is_reported_even_when_nothing_is_left() -> None:
    """What was reported loaded and is not any more is taken back."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans)
    bench.shards.want([])
    ((_, message),) = said(bench.book.on_shards(), Ready)
    assert isinstance(message, Ready)
    assert (message.epoch, message.loaded, message.on_disk) == (FIRST, (), ())


def test_nothing_of_a_removed_model_stays() -> None:
    """Active, prepared and the word that there is no plan: all go, whatever the leader managed to say."""
    bench = Bench()
    bench.serve(plan_set(FIRST))
    bench.load(bench.book.on_prepare(C, prepare(plan_set(SECOND)), 0.0))
    bench.book.on_unplanned(Unplanned("cat", CAT.digest, "no memory", True))
    bench.book.on_gone("cat", 1.0)
    assert bench.book.known == ()
    bench.book.on_deadline(1.0 + DRAIN_S)
    assert bench.shards.used_bytes == 0


def test_words_that_there_is_no_plan_are_bounded_and_end_with_a_plan() -> None:
    """A plan takes the word back; of too many the oldest go."""
    bench = Bench()
    for number in range(UNPLANNED_MAX + 3):
        bench.book.on_unplanned(Unplanned(f"m{number}", CAT.digest, "no memory", True))
    assert bench.book.unplanned("m0") is None
    bench.book.on_unplanned(Unplanned("cat", CAT.digest, "no memory", True))
    bench.serve(plan_set())
    assert bench.book.unplanned("cat") is None


def test_the_costs_of_two_windows_are_counted_once_at_the_larger() -> None:
    """The new plan shares its shards with the old one: only the wider window costs more."""
    bench = Bench()
    bench.serve(plan_set(FIRST))
    before = bench.shards.used_bytes
    wide = plan_set(SECOND)
    main = msgspec.structs.replace(wide.main, window=40)
    bench.serve(PlanSet(main, wide.contingencies))
    assert before < bench.shards.used_bytes < 2 * before
    assert len(bench.shards.loaded()) == len({Recipe(CAT.digest, 0, 3), Recipe(CAT.digest, 4, 7)})


def _impossible(epoch: Epoch) -> PlanSet:
    """One operator range on two devices, said to be no split: nobody can count what its second part costs."""
    group = Group((Shard(A, BOOT), Shard(C, BOOT)))
    return PlanSet(Plan(epoch, "cat", CAT.digest, (Lane((Stage(0, 7, (group,)),)),)))


def test_a_plan_that_means_nothing_is_refused_with_the_reason() -> None:
    """Neither prepared nor active: a plan in the book is computed with at every review, and must not break it."""
    bench, wrong = Bench(), _impossible(SECOND)
    ((to, refused),) = said(bench.book.on_prepare(B, Prepare(wrong, ()), 0.0), Refused)
    assert to == B
    assert isinstance(refused, Refused)
    assert "one shard" in refused.reason
    bench.serve(plan_set())
    bench.book.on_activate(B, Activate(wrong, (SECOND,)), 0.0)
    assert bench.book.newest("cat") == FIRST
    for other in ({"model": "dog"}, {"digest": "9" * 64}):
        foreign = msgspec.structs.replace(plan(FIRST.without(A), D, C), **other)
        given = Prepare(PlanSet(plan(SECOND, A, C), (foreign,)), ())
        ((_, refused),) = said(bench.book.on_prepare(B, given, 0.0), Refused)
        assert isinstance(refused, Refused)
        assert "another model" in refused.reason
    wild = plan(Epoch(TERM_MAX + 1, B, 1), A, C)
    ((_, refused),) = said(bench.book.on_prepare(B, Prepare(PlanSet(wild), ()), 0.0), Refused)
    assert isinstance(refused, Refused)
    assert "beyond belief" in refused.reason


def test_a_plan_is_looked_at_whoever_brings_its_card() -> None:
    """Whatever happens first once the card is known looks at what was taken on trust."""
    bench = Bench(card=False)
    bench.book.on_activate(B, Activate(_impossible(FIRST), (FIRST,)), 0.0)
    bench.cards[CAT.digest] = CAT
    effects = bench.book.on_retire(Retire("cat", SECOND), 0.0)
    assert bench.book.newest("cat") is None
    assert any(isinstance(effect, PlansChanged) for effect in effects)


def test_what_was_taken_on_trust_is_looked_at_once_the_card_is_here() -> None:
    """Without a card nothing can be told; with it the plans that mean nothing go and the good ones stay."""
    bench = Bench(card=False)
    bench.book.on_activate(B, Activate(_impossible(FIRST), (FIRST,)), 0.0)
    bench.book.on_prepare(B, prepare(plan_set(SECOND)), 0.0)
    bench.cards[CAT.digest] = CAT
    bench.book.on_card()
    assert bench.book.newest("cat") is None
    assert bench.book.plan("cat", SECOND) is not None


def test_where_memory_is_short_the_costliest_plan_is_given_up() -> None:
    """A budget that no longer holds what serves is told to the leader, once, as a refusal of the heaviest plan."""
    bench, plans = Bench(), plan_set()
    bench.serve(plans)
    assert not said(bench.book.on_shards(), Refused)
    bench.shards.set_budget(1)
    ((to, refused),) = said(bench.book.on_shards(), Refused)
    assert to == B
    assert isinstance(refused, Refused)
    assert (refused.epoch, "memory is short" in refused.reason) == (FIRST, True)
    assert not said(bench.book.on_shards(), Refused)
