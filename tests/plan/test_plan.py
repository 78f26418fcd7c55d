"""Plans and what names them: epochs, recipes, placements."""

from __future__ import annotations

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.plan.messages import Activate, Cut, Retire, Slice, TensorPart
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Recipe, Stage
from tests.plan.cards import EPOCH, chain, device, pipeline, shard

A, B = device("a"), device("b")


def test_epochs_are_ordered_by_term_leader_number() -> None:
    """A later term beats any number; the text names all three, and the absent device of a contingency."""
    old, new = Epoch(1, DeviceId("z"), 9), Epoch(2, DeviceId("a"), 1)
    assert old < new < Epoch(2, DeviceId("b"), 0) < Epoch(2, DeviceId("b"), 1)
    assert str(new) == "2.a.1"
    assert str(new.without(DeviceId("b"))) == "2.a.1-b"
    assert new.without(DeviceId("b")).main == new < new.without(DeviceId("b"))


def test_a_recipe_key_names_the_shard() -> None:
    """Equal recipes have equal keys, and every field is part of the key."""
    recipe = Recipe("d" * 64, 0, 3)
    assert recipe.key == Recipe("d" * 64, 0, 3).key
    changes: list[dict[str, object]] = [
        {"digest": "e"},
        {"first": 1},
        {"last": 2},
        {"split": "output"},
        {"part": 1},
        {"shares": (1, 2)},
        {"writer": 99},
    ]
    keys = {msgspec.structs.replace(recipe, **change).key for change in changes}
    assert len(keys) == len(changes)
    assert recipe.key not in keys


def test_a_device_holds_each_recipe_once() -> None:
    """Two lanes with the same stage on one device make two placements and one recipe."""
    stage = Stage(0, 3, (Group((shard(A),)), Group((shard(B),))))
    plan = Plan(EPOCH, "m", "d", (Lane((stage,)), Lane((stage,))))
    assert len(plan.placements()) == 4
    assert plan.recipes_of(DeviceId("a")) == (Recipe("d", 0, 3),)
    assert plan.devices() == ("a", "b")
    assert plan.lives() == {DeviceId("a"): BootId("ba"), DeviceId("b"): BootId("bb")}


def test_a_split_group_has_a_recipe_for_each_part() -> None:
    """Parts differ by number and share their boundaries."""
    stage = Stage(0, 0, (Group((shard(A), shard(B)), "output", (0, 8, 16)),))
    plan = Plan(EPOCH, "m", "d", (Lane((stage,)),))
    assert [recipe for recipe, _ in plan.placements()] == [
        Recipe("d", 0, 0, "output", 0, (0, 8, 16)),
        Recipe("d", 0, 0, "output", 1, (0, 8, 16)),
    ]


def test_a_plan_set_finds_the_contingency_of_a_death() -> None:
    """By the absent device; None where there is none."""
    main = pipeline(chain(2), [(1, A), (1, B)])
    backup = msgspec.structs.replace(pipeline(chain(2), [(2, B)]), epoch=EPOCH.without(DeviceId("a")))
    plans = PlanSet(main, (backup,))
    assert plans.without(DeviceId("a")) == backup
    assert plans.without(DeviceId("b")) is None
    assert plans.plans == (main, backup)


def test_messages_survive_the_wire_by_tag() -> None:
    """Messages decode as what they were among their kind."""
    plans = PlanSet(pipeline(chain(2), [(1, A), (1, B)]))
    part = TensorPart(3, "int8", (1, 4), ((0, 1), (0, 4)), 4)
    slice_ = Slice("r", 1, "m", EPOCH, DeviceId("a"), BootId("ba"), 0, (0, 0), 1, 0, 0, 0, 900, (part,))
    sent = [Activate(plans, (EPOCH,)), Retire("m", EPOCH), Cut(EPOCH, "m", (Recipe("d", 0, 1),)), slice_]
    for message in sent:
        assert msgspec.json.decode(msgspec.json.encode(message), type=Activate | Retire | Cut | Slice) == message
