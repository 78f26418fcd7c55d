"""The shards of one device: fetched in order of need, loaded one by one, never over the budget."""

from __future__ import annotations

from dataclasses import replace

from meshnn.node.effects import Effect, Load, Unload
from meshnn.node.effects import Fetch as FetchFile
from meshnn.node.shards import FETCHES_MAX, Level, Shards, State, Wanted
from meshnn.plan.messages import Fetch
from meshnn.plan.plan import Recipe

R = [Recipe("1" * 64, number, number) for number in range(6)]


def wish(number: int, level: Level, cost_bytes: int = 10, model: str = "cat") -> Wanted:
    """A wish for shard `number`."""
    return Wanted(Fetch(R[number], "0" * 64, 5, ()), level, cost_bytes, model)


def loads(effects: list[Effect]) -> list[Recipe]:
    """The recipes to be loaded."""
    return [effect.recipe for effect in effects if isinstance(effect, Load)]


def unloads(effects: list[Effect]) -> list[Recipe]:
    """The recipes to be dropped."""
    return [effect.recipe for effect in effects if isinstance(effect, Unload)]


def loaded(*wishes: Wanted, budget_bytes: int = 30) -> Shards:
    """A device with its files on disk and these shards loaded."""
    shards = Shards(budget_bytes, lambda recipe: True)
    effects = shards.want(wishes)
    while found := loads(effects):
        effects = shards.on_loaded(found[0], R.index(found[0]))
    return shards


def test_files_are_fetched_in_order_of_need_few_at_once() -> None:
    """What prepares comes before spares, and no more files than the bound are under way."""
    shards = Shards(100, lambda recipe: False)
    effects = shards.want([wish(0, Level.SPARE), wish(1, Level.ACTIVE), wish(2, Level.PREPARING)])
    assert [e.recipe for e in effects if isinstance(e, FetchFile)] == [R[2], R[1]]
    assert FETCHES_MAX == 2
    assert [e.recipe for e in shards.on_fetched(R[1]) if isinstance(e, FetchFile)] == [R[0]]


def test_one_shard_loads_at_a_time() -> None:
    """The next load starts when the last has ended, well or badly."""
    shards = Shards(100, lambda recipe: True)
    assert loads(shards.want([wish(0, Level.ACTIVE), wish(1, Level.ACTIVE), wish(2, Level.ACTIVE)])) == [R[0]]
    assert loads(shards.on_loaded(R[0], 0)) == [R[1]]
    assert loads(shards.on_load_failed(R[1], "bad")) == [R[2]]
    assert (shards.state(R[1]), shards.reason(R[1])) == (State.FAILED, "bad")


def test_what_prepares_takes_the_place_of_spares_then_of_what_drains() -> None:
    """The least needed gives way first, and no more than must."""
    shards = loaded(wish(0, Level.ACTIVE), wish(1, Level.ACTIVE), wish(2, Level.ACTIVE))
    held = [wish(0, Level.SPARE), wish(1, Level.DRAINING), wish(2, Level.ACTIVE)]
    assert unloads(shards.want([*held, wish(3, Level.PREPARING)])) == [R[0]]
    assert shards.used_bytes == 30


def test_a_plan_gives_way_only_to_the_next_one_of_its_own_model() -> None:
    """Where nothing else helps, the new plan of a model replaces its old one; another model's plan stays."""
    shards = loaded(wish(0, Level.ACTIVE, 15, "cat"), wish(1, Level.ACTIVE, 15, "dog"))
    held = [wish(0, Level.ACTIVE, 15, "cat"), wish(1, Level.ACTIVE, 15, "dog")]
    assert unloads(shards.want([*held, wish(2, Level.PREPARING, 10, "cat")])) == [R[0]]
    shards = loaded(wish(0, Level.ACTIVE, 15, "cat"), wish(1, Level.ACTIVE, 15, "dog"))
    assert unloads(shards.want([*held, wish(2, Level.PREPARING, 20, "emu")])) == []
    assert shards.state(R[2]) is State.FAILED
    assert "budget" in shards.reason(R[2])


def test_a_spare_shard_waits_for_what_drains() -> None:
    """Requests under way in a replaced plan are not cut off for a contingency."""
    shards = loaded(wish(0, Level.ACTIVE, 30))
    held = wish(0, Level.DRAINING, 30)
    assert shards.want([held, wish(1, Level.SPARE)]) == []
    assert loads(shards.want([wish(1, Level.SPARE)])) == [R[1]]


def test_what_requests_wait_for_waits_for_nothing_but_what_serves() -> None:
    """What drains makes room for it, and a contingency of more value that nobody asks for; what serves does not."""
    asked = replace(wish(2, Level.SPARE), pressing=True, rank=1)
    for level in (Level.DRAINING, Level.SPARE, Level.IDLE):
        shards = loaded(wish(0, Level.ACTIVE, 20), wish(1, Level.ACTIVE))
        effects = shards.want([wish(0, Level.ACTIVE, 20), wish(1, level), asked])
        assert (unloads(effects), loads(effects)) == ([R[1]], [R[2]])
    shards = loaded(wish(0, Level.ACTIVE, 20), wish(1, Level.ACTIVE))
    assert shards.want([wish(0, Level.ACTIVE, 20), wish(1, Level.ACTIVE), asked]) == []
    shards = loaded(wish(0, Level.ACTIVE, 20), wish(1, Level.SPARE))
    other = replace(wish(1, Level.SPARE), pressing=True)
    assert shards.want([wish(0, Level.ACTIVE, 20), other, asked]) == []


def test_a_shard_of_two_contingencies_ranks_by_the_one_that_is_asked_for() -> None:
    """What it is worth beforehand is another order: the first asked for has the room."""
    shards = loaded(wish(0, Level.ACTIVE, 20), wish(1, Level.SPARE))
    first = replace(wish(2, Level.SPARE), pressing=True, rank=0)
    second = replace(wish(1, Level.SPARE), pressing=True, rank=1)
    effects = shards.want([wish(0, Level.ACTIVE, 20), wish(1, Level.SPARE), second, first])
    assert (unloads(effects), loads(effects)) == ([R[1]], [R[2]])


def test_room_beside_what_serves_counts_no_spare() -> None:
    """What requests would ask for fits where what serves and what is to serve leaves room; shared shards count once."""
    shards = loaded(wish(0, Level.ACTIVE, 20), wish(1, Level.SPARE))
    assert shards.has_room({R[2]: 10})
    assert shards.has_room({R[0]: 20, R[2]: 10})
    assert not shards.has_room({R[2]: 11})
    shards.want([wish(0, Level.ACTIVE, 20), wish(1, Level.SPARE), wish(3, Level.PREPARING, 5)])
    assert not shards.has_room({R[2]: 10})


def test_what_requests_use_goes_last_for_the_plan_that_replaces_it() -> None:
    """The next plan takes the room of the plan that lost a device before that of the contingency that serves."""
    shards = loaded(wish(0, Level.ACTIVE), wish(1, Level.SPARE), wish(2, Level.SPARE))
    serving = replace(wish(1, Level.SPARE), pressing=True)
    held = [wish(0, Level.ACTIVE), serving, wish(2, Level.SPARE)]
    assert unloads(shards.want([*held, wish(3, Level.PREPARING, 20)])) == [R[2], R[0]]
    shards = loaded(wish(0, Level.ACTIVE), wish(1, Level.SPARE), wish(2, Level.SPARE))
    assert unloads(shards.want([*held, wish(3, Level.PREPARING, 30)])) == [R[2], R[0], R[1]]


def test_what_requests_use_makes_no_room_for_another_contingency() -> None:
    """Not even for one of more value that has just come; afterwards it does."""
    serving = replace(wish(1, Level.SPARE), rank=1, pressing=True)
    shards = loaded(wish(0, Level.ACTIVE, 20), wish(1, Level.SPARE))
    assert shards.want([wish(0, Level.ACTIVE, 20), serving, wish(2, Level.SPARE)]) == []
    done = replace(serving, pressing=False)
    effects = shards.want([wish(0, Level.ACTIVE, 20), done, wish(2, Level.SPARE)])
    assert (unloads(effects), loads(effects)) == ([R[1]], [R[2]])


def test_contingencies_that_do_not_serve_give_way_to_those_that_do() -> None:
    """Neither a plan in the making nor one that drains keeps the active plan's contingencies out."""
    shards = loaded(wish(0, Level.ACTIVE, 20), wish(1, Level.IDLE))
    effects = shards.want([wish(0, Level.ACTIVE, 20), wish(1, Level.IDLE), replace(wish(2, Level.SPARE), rank=9)])
    assert (unloads(effects), loads(effects)) == ([R[1]], [R[2]])


def test_a_spare_that_does_not_fit_is_no_failure() -> None:
    """It stays on disk and is loaded when there is room."""
    shards = loaded(wish(0, Level.ACTIVE, 25))
    assert loads(shards.want([wish(0, Level.ACTIVE, 25), wish(1, Level.SPARE)])) == []
    assert shards.state(R[1]) is State.DISK
    assert shards.has_file(R[1])


def test_the_dearer_of_two_wishes_is_counted() -> None:
    """Two plans with different windows want one shard: the larger cost counts, whichever is needed more."""
    for wishes in (
        [wish(0, Level.ACTIVE, 10), wish(0, Level.SPARE, 20)],
        [wish(0, Level.SPARE, 20), wish(0, Level.ACTIVE)],
    ):
        shards = loaded(*wishes)
        assert shards.used_bytes == 20


def test_a_loaded_shard_that_comes_to_cost_more_costs_spares_their_place() -> None:
    """A wider window is counted at once, and spares go until the budget holds."""
    shards = loaded(wish(0, Level.ACTIVE, 10), wish(1, Level.SPARE, 10))
    assert unloads(shards.want([wish(0, Level.ACTIVE, 25), wish(1, Level.SPARE, 10)])) == [R[1]]
    assert shards.used_bytes == 25


def test_what_nobody_wants_is_dropped_even_when_it_arrives_later() -> None:
    """A shard unwanted while it loads is dropped as soon as it is loaded, and nothing is remembered of it."""
    shards = Shards(100, lambda recipe: True)
    shards.want([wish(0, Level.PREPARING)])
    assert shards.want([]) == []
    assert shards.used_bytes == 10
    assert unloads(shards.on_loaded(R[0], 7)) == [R[0]]
    assert (shards.used_bytes, shards.state(R[0])) == (0, State.ABSENT)


def test_a_failed_shard_is_tried_again_only_when_forgiven() -> None:
    """A new word from the leader forgives; until then the failure stands."""
    shards = Shards(100, lambda recipe: True)
    shards.want([wish(0, Level.PREPARING)])
    shards.on_load_failed(R[0], "bad")
    assert loads(shards.want([wish(0, Level.PREPARING)])) == []
    shards.forgive([R[0]])
    assert loads(shards.want([wish(0, Level.PREPARING)])) == [R[0]]


def test_a_file_that_nobody_gives_is_a_failure_with_its_reason() -> None:
    """The reason reaches whoever asks; a late answer to an old fetch changes nothing."""
    shards = Shards(100, lambda recipe: False)
    shards.want([wish(0, Level.PREPARING)])
    shards.on_fetch_failed(R[0], "no holder")
    assert shards.reason(R[0]) == "no holder"
    shards.on_fetched(R[0])
    assert shards.state(R[0]) is State.FAILED


def test_spares_load_in_the_order_of_their_rank() -> None:
    """The most valuable contingency first, however cheap the others are."""
    shards = Shards(100, lambda recipe: True)
    wishes = [ranked(0, 2, 5), ranked(1, 1, 30)]
    assert loads(shards.want(wishes)) == [R[1]]


def test_a_spare_of_less_value_gives_way_to_one_of_more() -> None:
    """One that came first, because its file was here first, does not keep the place of a more valuable one."""
    shards = loaded(ranked(0, 2, 20))
    assert unloads(shards.want([ranked(0, 2, 20), ranked(1, 1, 20)])) == [R[0]]
    shards = loaded(ranked(0, 1, 20))
    assert unloads(shards.want([ranked(0, 1, 20), ranked(1, 2, 20)])) == []


def test_a_recipe_that_two_contingencies_share_counts_once_and_at_the_better_rank() -> None:
    """One row, one cost; what it is for first decides what it gives way to."""
    shards = loaded(ranked(0, 1, 20), ranked(0, 3, 20))
    assert shards.used_bytes == 20
    assert unloads(shards.want([ranked(0, 1, 20), ranked(0, 3, 20), ranked(1, 2, 20)])) == []


def ranked(number: int, rank: int, cost_bytes: int) -> Wanted:
    """A spare shard of the contingency at this rank."""
    return Wanted(Fetch(R[number], "0" * 64, 5, ()), Level.SPARE, cost_bytes, "cat", rank)


def test_a_budget_that_shrinks_sheds_spares_and_a_budget_that_grows_loads_them_again() -> None:
    """What is least needed goes, what serves stays and is counted as too much; with room it all comes back."""
    shards = loaded(wish(0, Level.ACTIVE), wish(1, Level.SPARE), wish(2, Level.SPARE))
    assert len(unloads(shards.set_budget(25))) == 1
    assert (shards.used_bytes, shards.excess_bytes) == (20, 0)
    assert len(unloads(shards.set_budget(5))) == 1
    assert (shards.loaded(), shards.excess_bytes) == ((R[0],), 5)
    assert shards.cost_of([R[0], R[1]]) == 10
    effects, back = shards.set_budget(30), []
    while found := loads(effects):
        back += found
        effects = shards.on_loaded(found[0], R.index(found[0]))
    assert sorted(back) == [R[1], R[2]]
