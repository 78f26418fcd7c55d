"""`meshnn plan check` as a person types it: lines, exit codes, refusals, on generated and on real models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from meshnn.cli.plan import command
from meshnn.errors import MeshError, ModelError, NoPlanError, UsageError
from meshnn.graph.writer import write
from tests.graph.networks import residual
from tests.shared_data import model


def run(*arguments: object) -> Result:
    """`meshnn plan check` with these arguments."""
    return CliRunner().invoke(command, ["check", *map(str, arguments)], standalone_mode=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A generated float model."""
    path = tmp_path / "net.tflite"
    path.write_bytes(write(residual()).to_bytes())
    return path


def written(tmp_path: Path, last: int, split: str, shares: tuple[int, ...] = ()) -> Path:
    """A plan whose first operators are split over two devices."""
    group = {"split": split, "shares": shares, "shards": [{"device": "a"}, {"device": "b"}]}
    rest = {"first": last + 1, "last": 12, "groups": [{"shards": [{"device": "a"}]}]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"lanes": [{"stages": [{"first": 0, "last": last, "groups": [group]}, rest]}]}))
    return path


def test_every_split_of_a_model_in_uneven_shares(file: Path) -> None:
    """Every trial has a line with its place and its verdict, the summary counts them, the exit code is 0."""
    done = run("--model", file, "--all-splits", "--shares", "3,1")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("[1/")
    verdicts = [line.split(": ", 1)[1] for line in lines if line.startswith("[")]
    assert {"exact", "refused", "max error"} == {
        "exact" if verdict == "exact" else verdict.split(":")[0] if verdict.startswith("refused") else verdict[:9]
        for verdict in verdicts
    }
    assert sum("0 outside their class, 0 crashed" in line for line in lines) == 3


def test_a_plan_is_run_from_end_to_end(file: Path, tmp_path: Path) -> None:
    """Every group is judged by itself, then the whole way: rows over two devices are exact at the outputs."""
    done = run(written(tmp_path, 5, "spatial"), "--model", file)
    assert done.exit_code == 0, done.output
    assert "spatial [0, " in done.output
    assert "lane 0, groups [0, 0]: exact at the model's outputs" in done.output


def test_json_is_one_object_a_line(file: Path, tmp_path: Path) -> None:
    """For scripts: every outcome with its trial and whether it was good."""
    done = run(written(tmp_path, 0, "output", (0, 3, 8)), "--model", file, "--json")
    rows = [json.loads(line) for line in done.output.splitlines()]
    assert [row.get("trial", {}).get("split") for row in rows] == ["output", "none", None]
    assert all(row.get("good", True) for row in rows)
    assert rows[-1]["error"] == 0.0


@pytest.mark.parametrize(
    ("split", "last", "shares", "error", "reason"),
    [
        ("output", 3, (0, 4, 8), NoPlanError, "reads channels that other parts make"),
        ("spatial", 5, (0, 99), UsageError, "make 1 parts for 2 shards"),
        ("sideways", 5, (), UsageError, "this is no plan"),
    ],
)
def test_an_illegal_plan_is_refused_and_not_run(
    file: Path, tmp_path: Path, split: str, last: int, shares: tuple[int, ...], error: type[MeshError], reason: str
) -> None:
    """The reason is the answer, with its own exit code; nothing is printed as if it had run."""
    done = run(written(tmp_path, last, split, shares), "--model", file)
    assert isinstance(done.exception, error)
    assert reason in str(done.exception)
    assert done.output == ""


def test_what_is_typed_wrong_is_named(file: Path, tmp_path: Path) -> None:
    """Neither a plan nor --all-splits, shares that are no numbers, a file that is no model."""
    assert "--all-splits" in str(run("--model", file).exception)
    assert isinstance(run("--model", file, "--all-splits", "--shares", "a,b").exception, UsageError)
    assert isinstance(run("--model", file, "--all-splits", "--shares", "1,0").exception, UsageError)
    junk = tmp_path / "junk.tflite"
    junk.write_bytes(np.random.default_rng(1).bytes(1000))
    assert isinstance(run("--model", junk, "--all-splits").exception, ModelError)
    assert isinstance(run("--model", tmp_path / "none.tflite", "--all-splits").exception, ModelError)


@pytest.mark.parametrize("name", ["mlperf_tiny__pretrainedResnet_quant"])
def test_a_real_model_passes_in_three_parts(name: str) -> None:
    """Every split of a published integer model is within its class."""
    done = run("--model", model(name), "--all-splits", "--parts", 3)
    assert done.exit_code == 0, done.output[-2000:]
