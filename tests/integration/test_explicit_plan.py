"""Explicit plans on three real nodes: applied from JSON, run to the byte, refused with reasons, given back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tools.processes import Device, Mesh, until
from tools.whole import outputs_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"
NAMES = ("one", "two", "three")
WAIT_S = 90.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Three devices that serve the shipped model."""
    with Mesh(tmp_path_factory.mktemp("mesh")) as made:
        devices = made.start(*NAMES)
        until(lambda: all(device.sees(*NAMES) for device in devices), WAIT_S, "the devices find each other")
        added = devices[0].meshnn("models", "add", str(MODEL), "--name", "photos", "--deadline", "90")
        assert added.code == 0, added.err
        yield made


def _plan(count: int, split: str, end: int) -> dict[str, object]:
    """The first operators split over all three devices, the rest on one; shares by the devices' speeds."""
    group = {"split": split, "shards": [{"device": name} for name in NAMES]}
    rest = {"first": end + 1, "last": count - 1, "groups": [{"shards": [{"device": "two"}]}]}
    return {"lanes": [{"stages": [{"first": 0, "last": end, "groups": [group]}, rest]}]}


def _asked(device: Device, folder: Path) -> dict[str, object]:
    """An answer, compared with the whole model on this machine in every byte."""
    done = device.meshnn("ask", str(PHOTO), "--json", "--model", "photos", "--tensors", str(folder))
    assert done.code == 0, done.err + done.out
    with np.load(folder / f"{PHOTO.stem}.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    inputs = {key.removeprefix("input:"): value for key, value in found.items() if key.startswith("input:")}
    for tensor, array in outputs_of(MODEL, inputs).items():
        assert found[f"output:{tensor}"].tobytes() == array.tobytes()
    return dict(done.json())


def test_a_spatial_plan_is_applied_runs_exactly_and_is_given_back(mesh: Mesh, tmp_path: Path) -> None:
    """Rows over three devices answer the whole model's bytes; `plan show` says who has which part; reset ends it."""
    first, second = mesh.devices["one"], mesh.devices["three"]
    shown = first.meshnn("models", "show", str(MODEL), "--json")
    count = len(shown.json()["operators"])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(_plan(count, "spatial", 2)))
    applied = first.meshnn("plan", "apply", str(path))
    assert applied.code == 0, applied.err
    assert applied.out.startswith("photos runs the plan of plan.json")
    answer = _asked(second, tmp_path)
    stages = answer["plan"]["stages"]  # type: ignore[index]
    assert [(stage["device"], stage["split"]) for stage in stages] == [
        *((name, "spatial") for name in NAMES),
        ("two", "none"),
    ]
    assert answer["exact"] is True
    told = json.loads(first.meshnn("plan", "show", "--json").out)[0]
    assert told["pinned"] is True
    assert [(stage["split"], stage["part"]) for stage in told["stages"][:3]] == [("spatial", part) for part in range(3)]
    path.write_text(json.dumps(told))
    assert second.meshnn("plan", "apply", str(path)).out.startswith("photos runs the plan")
    assert second.meshnn("plan", "reset", "photos").code == 0
    assert json.loads(second.meshnn("plan", "show", "--json").out)[0]["pinned"] is False
    _asked(second, tmp_path)


def test_groups_and_lanes_share_the_requests(mesh: Mesh, tmp_path: Path) -> None:
    """Data parallelism: of four answers two come from `one` alone, one each through `two` and `three` as replicas."""
    device = mesh.devices["one"]
    count = len(device.meshnn("models", "show", str(MODEL), "--json").json()["operators"])

    def stage(first: int, last: int, *names: str) -> dict[str, object]:
        return {"first": first, "last": last, "groups": [{"shards": [{"device": name}]} for name in names]}

    lanes = [
        {"stages": [stage(0, count - 1, "one")]},
        {"stages": [stage(0, 2, "two", "three"), stage(3, count - 1, "one")]},
    ]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"lanes": lanes, "window": 4, "share": 4}))
    applied = device.meshnn("plan", "apply", str(path), "--model", "photos")
    assert applied.code == 0, applied.err
    answers = [_asked(mesh.devices["two"], tmp_path) for _ in range(4)]
    found = Counter(tuple(stage["device"] for stage in answer["plan"]["stages"]) for answer in answers)  # type: ignore[index]
    assert found == {("one",): 2, ("two", "one"): 1, ("three", "one"): 1}
    assert all(answer["exact"] is True for answer in answers)
    assert device.meshnn("plan", "reset", "photos").code == 0


def test_a_plan_that_does_not_fit_is_refused_with_its_reason(mesh: Mesh, tmp_path: Path) -> None:
    """A split the compiler refuses, a device that is not here, a model nobody knows: exit codes and reasons."""
    device = mesh.devices["two"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(_plan(5, "output", 3)))
    done = device.meshnn("plan", "apply", str(path), "--model", "photos")
    assert done.code == 5
    assert "the output split is refused" in done.err
    assert device.meshnn("plan", "apply", str(path), "--model", "dogs").code == 4
    path.write_text("{")
    assert device.meshnn("plan", "apply", str(path), "--model", "photos").code == 2


def test_the_planner_says_what_it_weighed(mesh: Mesh) -> None:
    """The plan that serves first, then one device on each of the three, each with its cost; unknown names exit 4."""
    done = mesh.devices["three"].meshnn("plan", "explain", "photos", "--json")
    rows = json.loads(done.out)
    assert [row["chosen"] for row in rows] == [True] + [False] * (len(rows) - 1)
    alone = [row for row in rows if row["title"].startswith("one device: ") and not row["chosen"]]
    assert {row["title"].removeprefix("one device: ") for row in alone} == set(NAMES)
    assert all(row["latency_ms"] > 0 for row in alone)
    assert mesh.devices["one"].meshnn("plan", "explain", "dogs").code == 4
