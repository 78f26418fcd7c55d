"""Explanations: the alternatives to a plan, with their costs or the reason they are none."""

from __future__ import annotations

from meshnn.plan.explain import explain
from meshnn.plan.outline import outline
from meshnn.plan.solver import Problem, solve
from tests.plan.cards import EPOCH, chain, device, links


def test_every_device_and_every_depth_is_an_alternative() -> None:
    """The chosen plan comes first; a device that is too small says so; worse pipelines are shown with their cost."""
    devices = (device("a", 2_000_000), device("b", 2_000_000, 2.0), device("c", 900_000))
    problem = Problem("m", outline(chain(8, weights=100_000)), devices, links(), origins=3)
    chosen = solve(problem, EPOCH)
    found = explain(problem, chosen.plan)
    assert [entry.title for entry in found] == [
        "one device: b",
        "one device: a",
        "one device: b",
        "one device: c",
        "best pipeline of 2 stages",
        "best pipeline of 3 stages",
    ]
    assert [entry.chosen for entry in found] == [True] + [False] * 5
    by_title = {entry.title: entry for entry in found}
    assert "the one device offers 0.9 MB" in by_title["one device: c"].reason
    assert by_title["one device: c"].prediction is None
    costs = [entry.prediction.latency_ms for entry in found if entry.prediction is not None]
    assert min(costs) == costs[0] == chosen.prediction.latency_ms
    assert len(costs) == 5


def test_a_pipeline_is_named_by_its_stages() -> None:
    """A plan over several devices says how many stages and devices it has."""
    devices = tuple(device(name, 700_000) for name in "abc")
    problem = Problem("m", outline(chain(8, weights=100_000)), devices, links(), origins=3)
    assert explain(problem, solve(problem, EPOCH).plan)[0].title == "pipeline of 3 stages over 3 devices"
