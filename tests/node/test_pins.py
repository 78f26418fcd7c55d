"""Pinned plans on a mesh of real cores: exactly what was asked runs, until it is given back; refusals say why."""

from __future__ import annotations

import msgspec
import pytest

from meshnn.node.messages import Pin, Unpin
from meshnn.plan.plan import Plan
from tests.node.cores import Cores, device_id, meet, model

CAT = model("cat")


def written(*parts: tuple[int, int, str], digest: str = "") -> bytes:
    """A pipeline as a person writes it: first and last operator and device of each stage."""
    stages = [{"first": first, "last": last, "groups": [{"shards": [{"device": at}]}]} for first, last, at in parts]
    return msgspec.json.encode({"lanes": [{"stages": stages}], "digest": digest})


def wish(mesh: Cores, letter: str, plan: bytes | None) -> str:
    """Ask the leader from a device (without a plan: give the model back) and wait for its word."""
    leader = device_id(mesh.leader())
    message = Unpin("w", "cat") if plan is None else Pin("w", "cat", plan)
    mesh._now(mesh.devices[letter], lambda core, now: core.answer(leader, message, now))
    assert mesh.run(120, lambda: "w" in mesh.core(letter).pinned), "the leader does not answer"
    return mesh.core(letter).pinned.pop("w")


def spans(plan: Plan) -> list[tuple[int, int, str]]:
    """First and last operator and device of every stage of the only lane."""
    return [(stage.first, stage.last, stage.groups[0].shards[0].device[0]) for stage in plan.lanes[0].stages]


@pytest.fixture
def mesh() -> Cores:
    """Three devices that serve the cat by the planner's choice."""
    made = meet("abc", 2_000_000)
    made.add("a", CAT)
    assert made.run(60, lambda: made.settled("cat") and made.covered("cat"))
    made.run(60)
    return made


ASKED = [(0, 2, "c"), (3, 3, "a"), (4, 7, "b")]


def test_exactly_the_plan_that_was_asked_for_runs(mesh: Cores) -> None:
    """From any device: the stages, devices by name or id, no contingencies; all members know it once it is answered."""
    stages = [(first, last, device_id(at) if at == "c" else at) for first, last, at in ASKED]
    assert wish(mesh, "b", written(*stages)) == ""
    mesh.run(1)
    assert mesh.settled("cat")
    plans = mesh.plans("cat")
    assert (spans(plans.main), plans.main.pinned, plans.contingencies) == (ASKED, True, ())


def test_whoever_asked_has_the_plan_when_the_answer_comes(mesh: Cores) -> None:
    """The plan is told first, then that it serves."""
    assert wish(mesh, "b", written(*ASKED)) == ""
    active = mesh.core("b").book.active("cat")
    assert active is not None
    assert (spans(active.main), active.main.pinned) == (ASKED, True)


def test_what_plan_show_prints_can_be_applied(mesh: Cores) -> None:
    """A plan goes out as JSON and comes back as the same plan, pinned."""
    before = mesh.plans("cat").main
    assert wish(mesh, "c", msgspec.json.encode([{"model": "cat", "plan": msgspec.to_builtins(before)}])) == ""
    mesh.run(1)
    after = mesh.plans("cat").main
    assert (after.lanes, after.window, after.share, after.pinned) == (before.lanes, before.window, before.share, True)
    assert after.epoch > before.epoch


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (written((0, 2, "c"), (4, 7, "b")), "each operator once"),
        (written((0, 7, "zoe")), "device 'zoe' of the plan is not here; here are a, b, c"),
        (written((0, 7, "a"), digest="f" * 64), "the plan is for a model of digest ffffffffffff"),
        (b"{}", "this is no plan"),
        (b"nonsense", "no JSON"),
        (
            b'{"lanes":[{"stages":[{"first":0,"last":7,"groups":[{"split":"input","shares":[0,8,16],'
            b'"shards":[{"device":"a"},{"device":"b"}]}]}]}]}',
            "the input split is refused",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_nothing_changes(mesh: Cores, plan: bytes, reason: str) -> None:
    """The reason comes back; the plan that ran goes on under its epoch."""
    before = mesh.plans("cat")
    assert reason in wish(mesh, "b", plan)
    mesh.run(30)
    assert mesh.plans("cat") == before


def test_a_plan_too_large_for_a_device_is_refused() -> None:
    """Memory is counted before anything is cut."""
    mesh = meet("abc", {"a": 3_000_000, "b": 400_000, "c": 3_000_000})
    mesh.add("a", CAT)
    assert mesh.run(60, lambda: mesh.settled("cat"))
    assert "b needs" in wish(mesh, "c", written((0, 7, "b")))


def test_a_pinned_plan_stays_though_better_ones_are_there(mesh: Cores) -> None:
    """Neither time nor a device that comes and goes moves it."""
    wish(mesh, "a", written(*ASKED))
    mesh.run(1)
    before = mesh.plans("cat").main
    mesh.devices["d"] = type(mesh.devices["a"])("d", 50_000_000)
    mesh.start("d")
    mesh.run(90)
    assert mesh.plans("cat").main == before


def test_a_pinned_plan_waits_for_its_device_and_says_so(mesh: Cores) -> None:
    """The device dies: the plan stays and the reason names it; back in a new life, it runs the same plan again."""
    wish(mesh, "a", written(*ASKED))
    mesh.run(1)
    victim = next(letter for letter in "cba" if letter != mesh.leader())
    mesh.kill(victim)
    asker = next(letter for letter in mesh.living if letter != mesh.leader())

    def said() -> bool:
        word = mesh.core(asker).book.unplanned("cat")
        return word is not None and f"waits for {device_id(victim)}" in word.reason and "plan reset cat" in word.reason

    assert mesh.run(60, said)
    mesh.run(60)
    assert spans(mesh.plans("cat").main) == ASKED
    mesh.start(victim)
    assert mesh.run(120, lambda: mesh.settled("cat"))
    plan = mesh.plans("cat").main
    assert (spans(plan), plan.pinned) == (ASKED, True)
    assert plan.lives()[device_id(victim)] == mesh.devices[victim].boot_id
    assert mesh.run(10, lambda: mesh.core(asker).book.unplanned("cat") is None)


def test_the_next_leader_keeps_the_pin(mesh: Cores) -> None:
    """The pin lives in the plan: whoever leads after the leader's death lets it wait, and takes it up again."""
    wish(mesh, "a", written(*ASKED))
    mesh.run(1)
    old = mesh.leader()
    mesh.kill(old)
    assert mesh.run(60, lambda: bool(mesh.leader()))
    mesh.run(60)
    assert spans(mesh.plans("cat").main) == ASKED
    mesh.start(old)
    assert mesh.run(120, lambda: mesh.settled("cat"))
    assert spans(mesh.plans("cat").main) == ASKED


def test_reset_gives_the_model_back_to_the_planner(mesh: Cores) -> None:
    """The planner's plan runs again, with its contingencies, although the pinned one still could; so do deaths."""
    before = mesh.plans("cat").main
    wish(mesh, "a", written(*ASKED))
    mesh.run(1)
    assert wish(mesh, "b", None) == ""
    assert mesh.run(60, lambda: mesh.settled("cat") and mesh.covered("cat"))
    after = mesh.plans("cat")
    assert (after.main.pinned, spans(after.main)) == (False, spans(before))
    assert after.contingencies


def test_reset_ends_the_waiting_for_a_dead_device(mesh: Cores) -> None:
    """After a reset the others serve without it."""
    wish(mesh, "a", written(*ASKED))
    mesh.run(1)
    victim = next(letter for letter in "cba" if letter != mesh.leader())
    mesh.kill(victim)
    mesh.run(40)
    assert wish(mesh, mesh.living[0], None) == ""
    assert mesh.run(60, lambda: mesh.settled("cat"))
    assert device_id(victim) not in mesh.plans("cat").main.devices()


def test_a_model_nobody_knows_and_a_node_that_does_not_lead_say_so(mesh: Cores) -> None:
    """Both refuse in words."""
    leader = device_id(mesh.leader())
    follower = next(letter for letter in "abc" if letter != mesh.leader())
    core = mesh.core(follower)
    mesh._now(mesh.devices[follower], lambda core, now: core.answer(leader, Pin("x", "dog", b"{}"), now))
    mesh._now(mesh.devices[follower], lambda core, now: core.answer(device_id(follower), Unpin("y", "cat"), now))
    assert mesh.run(10, lambda: {"x", "y"} <= set(core.pinned))
    assert core.pinned["x"] == "no model is called dog"
    assert "another device leads" in core.pinned["y"]
