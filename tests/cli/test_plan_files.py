"""`meshnn plan show FILE` and what `plan apply` makes of a file before it asks the node: lines, codes, names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshnn.cli.plan import command
from meshnn.cli.written import named
from meshnn.errors import NoMeshError, UsageError

GROUP = {"split": "spatial", "shards": [{"device": "attic"}, {"device": "hall"}]}
PLAN = {
    "lanes": [
        {
            "stages": [
                {"first": 0, "last": 2, "groups": [GROUP]},
                {"first": 3, "last": 9, "groups": [{"shards": [{"device": "hall"}]}]},
            ]
        }
    ]
}


def run(*arguments: object) -> Result:
    """`meshnn plan` with these arguments."""
    return CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)


def put(folder: Path, plan: object) -> Path:
    """A plan's file."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def test_a_plan_in_a_file_is_shown_without_a_node(tmp_path: Path) -> None:
    """A line a stage: operators, split, devices, and where the shares come from."""
    done = run("show", put(tmp_path, PLAN), "--state-dir", tmp_path)
    assert done.output.splitlines() == [
        "  operators 0-2: spatial over attic, hall, shares by the devices' speeds",
        "  operators 3-9: hall",
    ]


def test_lanes_and_groups_are_told_with_their_weights(tmp_path: Path) -> None:
    """Where there are several, requests are dealt by weight; shares that are written are told."""
    groups = [{**GROUP, "shares": [0, 3, 12]}, {"shards": [{"device": "desk"}], "weight": 3}]
    lanes = [{"stages": [{"first": 0, "last": 9, "groups": groups}], "weight": 2}, *PLAN["lanes"]]
    assert run("show", put(tmp_path, {"lanes": lanes})).output.splitlines() == [
        "lane 0, weight 2",
        "  operators 0-9: spatial over attic, hall, shares [0, 3, 12], weight 1",
        "  operators 0-9: desk, weight 3",
        "lane 1, weight 1",
        "  operators 0-2: spatial over attic, hall, shares by the devices' speeds",
        "  operators 3-9: hall",
    ]


def test_what_is_shown_as_json_is_a_plan_again(tmp_path: Path) -> None:
    """`--json` prints the bare plan; shown once more it is the same."""
    once = run("show", put(tmp_path, [{"model": "photos", "plan": PLAN}]), "--json").output
    assert json.loads(once)["lanes"][0]["stages"][0]["groups"][0]["split"] == "spatial"
    assert run("show", put(tmp_path, json.loads(once)), "--json").output == once


@pytest.mark.parametrize("text", ["", " \n", "{", "[]", "3", "\x00", '{"lanes": 1}', '{"stages": []}', "[" * 5000])
def test_what_is_no_plan_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    """By `show` alone, and by `apply` only after it has found a node."""
    path = tmp_path / "plan.json"
    path.write_text(text)
    done = run("show", path)
    assert isinstance(done.exception, UsageError)
    assert len(str(done.exception).splitlines()) == 1
    assert isinstance(run("apply", path, "--state-dir", tmp_path).exception, NoMeshError)


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (PLAN, ""),
        ([], ""),
        ({"model": "photos", **PLAN}, "photos"),
        ([{"model": "photos", "plan": PLAN}], "photos"),
        ([{"model": "photos", "plan": PLAN}, {"model": "sounds", "plan": PLAN}], ""),
        ({"model": 3}, ""),
    ],
)
def test_the_model_that_a_file_names(plan: object, name: str) -> None:
    """In a plan, or in the only row of what `plan show --json` prints."""
    assert named(json.dumps(plan).encode()) == name
