"""The plans that the rack runs: legal, as divided as they can be, and right in one process."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from meshnn.cli.check import open_bench
from meshnn.errors import NoPlanError
from meshnn.graph.builder import Precision
from meshnn.graph.writer import write
from meshnn.node.check import Bench
from meshnn.plan.explicit import bound, decode
from meshnn.plan.plan import Plan
from meshnn.plan.verify import check
from tests.graph.networks import residual
from tools.acceptance.split_plans import DIVISIONS, ROWS, Case, cases

NAMES = ("a", "b", "c", "d")


def opened(folder: Path, precision: Precision) -> Bench:
    """A small network of convolutions, depthwise ones, a residual addition, a pool and a classifier."""
    path = folder / f"{precision}.tflite"
    path.write_bytes(write(residual(precision)).to_bytes())
    return open_bench(path)


def plan_of(case: Case, bench: Bench) -> Plan:
    """The plan as a node would take it."""
    plan = bound(decode(json.dumps(case.plan).encode()), bench.executor.model)
    check(plan, bench.executor.model)
    return plan


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_every_plan_is_legal_and_right(tmp_path: Path, precision: Precision) -> None:
    """All rows that apply, in every division; equal bytes at the outputs where there are no partial sums."""
    bench = opened(tmp_path, precision)
    found = [case for case in cases(bench.card, NAMES) if case.row != "input" or case.divided]
    rows = {case.row for case in found}
    assert rows == set(ROWS if precision == "float32" else ROWS[:5])
    for case in found:
        plan = plan_of(case, bench)
        splits = {stage.groups[0].split for stage in plan.lanes[0].stages}
        assert case.exact is ("input" not in splits)
        assert len(plan.devices()) == len(DIVISIONS[case.division]) or case.row == "layer-wise"
        assert all(way.good for way in bench.ways(plan)), case
        assert all(outcome.good for outcome in bench.plan(plan)), case


def test_an_integer_network_has_a_plan_of_sums_that_is_refused(tmp_path: Path) -> None:
    """With the reason, in every division: nothing of it is ever run."""
    bench = opened(tmp_path, "int8")
    refused = list(cases(bench.card, NAMES, ["input"]))
    assert [case.division for case in refused] == list(DIVISIONS)
    for case in refused:
        assert (case.divided, case.exact) == (0, False)
        with pytest.raises(NoPlanError, match="partial sums"):
            plan_of(case, bench)


def test_three_to_one_gives_the_first_device_more(tmp_path: Path) -> None:
    """Uneven shares and uneven pipelines."""
    bench = opened(tmp_path, "float32")
    (case,) = [case for case in cases(bench.card, NAMES, ["spatial"]) if case.division == "3:1"]
    shares = case.stages[0]["groups"][0]["shares"]
    assert shares[1] > shares[2] - shares[1]
    (layers,) = [case for case in cases(bench.card, NAMES, ["layer-wise"]) if case.division == "3:1"]
    first, second = (bench.card.work(stage["first"], stage["last"]) for stage in layers.stages)
    assert first > second


def test_an_input_stage_takes_the_channels_that_its_neighbour_gave(tmp_path: Path) -> None:
    """In a pair both stages have the same shares, so that nothing is gathered between."""
    bench = opened(tmp_path, "float32")
    for case in cases(bench.card, NAMES, ["output+input"]):
        groups = [stage["groups"][0] for stage in case.stages]
        pairs = [(a, b) for a, b in itertools.pairwise(groups) if (a["split"], b["split"]) == ("output", "input")]
        assert pairs
        assert any(a["shares"] == b["shares"] for a, b in pairs)
