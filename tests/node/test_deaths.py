"""What a mesh does about deaths, with real cores: covered where memory allows, else what lies on disk, at once."""

from __future__ import annotations

from typing import Any

from meshnn.node import reports
from meshnn.node.outlook import EVIDENCE_MS
from meshnn.plan.messages import Prepare
from tests.node.cores import Cores, meet, model

CAT = model("cat")
# One operator takes 0.2 MB: five of eight fit, so two devices serve and the third has room for one of their parts.
TIGHT, ROOMY, THREE_NEEDED = 1_100_000, 3_000_000, 700_000


def served(letters: str, memory_bytes: int) -> Cores:
    """A mesh whose plan for the cat serves, with its contingencies as far as they will come."""
    mesh = meet(letters, memory_bytes)
    mesh.add(letters[-1], CAT)
    assert mesh.run(30, lambda: mesh.settled("cat"))
    mesh.run(10)
    return mesh


def deaths(mesh: Cores, letter: str) -> dict[str, dict[str, Any]]:
    """What one device's status says of the deaths of the plan's devices, by their letters."""
    (plan,) = reports.plans(mesh.core(letter))
    rows = plan["deaths"]
    assert isinstance(rows, list)
    return {row["device"][0]: row for row in rows}


def test_every_device_says_of_every_death_that_it_is_covered() -> None:
    """With room for second copies all deaths are prepared for, in everybody's status."""
    mesh = served("abc", ROOMY)
    for letter in "abc":
        assert {row["state"] for row in deaths(mesh, letter).values()} == {"prepared"}


def test_an_uncovered_death_is_answered_from_disk_without_a_search() -> None:
    """Status said `on disk` and a time; after the death the plan that lies there is prepared: nothing is cut again."""
    mesh = served("abc", TIGHT)
    rows = deaths(mesh, "b")
    waiting = [letter for letter, row in rows.items() if row["state"] == "on disk"]
    assert waiting
    assert all(rows[letter]["reroute_ms"] >= EVIDENCE_MS for letter in waiting)
    leader = mesh.leader()
    victim = next((letter for letter in waiting if letter != leader), waiting[0])
    planned = mesh.plans("cat").without(mesh.devices[victim].id)
    assert planned is not None
    mesh.sent.clear()
    mesh.kill(victim)
    assert mesh.run(30, lambda: mesh.settled("cat") and victim not in stages(mesh))
    assert mesh.plans("cat").main.lanes == planned.lanes
    kinds = [kind for _, _, kind in mesh.sent]
    assert Prepare.__name__ in kinds
    if victim != leader:
        assert "Cut" not in kinds[: kinds.index(Prepare.__name__)]


def stages(mesh: Cores) -> set[str]:
    """The letters of the devices of the active plan."""
    return {device[0] for device in mesh.plans("cat").main.devices()}


def test_a_flapping_device_is_left_out_and_taken_back() -> None:
    """After three departures it is used last: the plan does without it, though it is there; then its hold ends."""
    mesh = served("abcd", ROOMY // 3)
    flapper = next(letter for letter in sorted(stages(mesh)) if letter != mesh.leader())
    for _ in range(3):
        mesh.kill(flapper)
        mesh.run(6)
        mesh.start(flapper)
        mesh.run(14)
    leader = mesh.leader()
    assert leader
    assert mesh.core(leader).flaps.held(mesh.now) == {mesh.devices[flapper].id}
    mesh.run(70)
    assert flapper not in stages(mesh)
    assert mesh.devices[flapper].id in mesh.core(leader).planned(mesh.now)
    mesh.run(300)
    assert mesh.core(leader).flaps.held(mesh.now) == frozenset()


def same_plan(mesh: Cores) -> bool:
    """Whether every device has the same active plan."""
    return len({str(mesh.core(letter).book.newest("cat")) for letter in mesh.living}) == 1


def test_a_pair_that_cannot_talk_is_planned_apart_within_twenty_seconds() -> None:
    """Both live in every view, nobody else leads, and both hear of the plan, though one of them may be the leader."""
    mesh = served("abcd", ROOMY // 3)
    one, other = (stage.groups[0].shards[0].device[0] for stage in mesh.plans("cat").main.lanes[0].stages)
    term = mesh.core("a").cluster.term
    mesh.part(one, other)
    assert mesh.run(20, lambda: not {one, other} <= stages(mesh) and mesh.settled("cat") and same_plan(mesh))
    mesh.run(20)
    assert not {one, other} <= stages(mesh)
    assert same_plan(mesh)
    assert {mesh.core(letter).cluster.term for letter in mesh.living} == {term}
    assert all(len(mesh.core(letter).cluster.alive) == 4 for letter in mesh.living)


def test_who_cannot_reach_a_device_of_the_plan_can_ask_all_the_same() -> None:
    """Whoever is asked sends to the first stage and hears from the last: where others can serve, neither end does."""
    mesh = served("abcde", THREE_NEEDED)
    leader = mesh.leader()
    one = next(letter for letter in sorted(stages(mesh)) if letter != leader)
    other = next(letter for letter in "abcde" if letter not in stages(mesh) | {leader or ""})
    mesh.part(one, other)
    assert mesh.run(20, lambda: stages(mesh).isdisjoint({one, other}) and mesh.settled("cat") and same_plan(mesh))
    mesh.run(20)
    assert stages(mesh).isdisjoint({one, other})


def test_a_pair_that_talks_again_may_be_planned_together_again() -> None:
    """What was told of it is taken back."""
    mesh = served("abcd", ROOMY // 3)
    leader = mesh.leader()
    one, other = [letter for letter in "abcd" if letter != leader][:2]
    mesh.part(one, other)
    mesh.run(8)
    pair = (mesh.devices[one].id, mesh.devices[other].id)
    assert mesh.core(leader).severed.pairs(mesh.core(leader).cluster.alive) == {pair}
    mesh.blocked.clear()
    mesh.run(20)
    assert mesh.core(leader).severed.pairs(mesh.core(leader).cluster.alive) == frozenset()


def test_whom_the_leader_cannot_reach_hears_of_plans_from_others() -> None:
    """A device cut off from the leader alone has the same plan as all others soon after every change."""
    mesh = served("abcd", ROOMY // 3)
    leader = mesh.leader()
    lonely = next(letter for letter in "abcd" if letter != leader)
    mesh.part(leader, lonely)
    assert mesh.run(20, lambda: lonely not in stages(mesh) and same_plan(mesh) and bool(stages(mesh)))
    mesh.add(leader, model("lynx", "7", weights=10_000))
    assert mesh.run(20, lambda: all(mesh.core(letter).book.active("lynx") is not None for letter in mesh.living))
