"""Plans in files, as a person writes or keeps them: read, named, described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from meshnn.client import LocalNode
from meshnn.errors import UsageError
from meshnn.plan.explicit import WrittenGroup, WrittenPlan, decode


class _Named(msgspec.Struct, frozen=True):
    """What tells whose plan it is, in a plan or in a row of `plan show --json`."""

    model: str = ""


def read(file: Path, model: str = "") -> tuple[bytes, WrittenPlan]:
    """A plan's file, as it is and decoded; UsageError for one that is empty or no plan."""
    data = file.read_bytes()
    if not data.strip():
        raise UsageError(f"{file} is empty: a plan is JSON such as `meshnn plan show --json` prints")
    return data, decode(data, model or named(data))


def named(data: bytes) -> str:
    """The model that a plan's file names; empty where it names none, or several."""
    try:
        found = msgspec.json.decode(data, type=_Named | list[_Named])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    names = {row.model for row in (found if isinstance(found, list) else [found])}
    return names.pop() if len(names) == 1 else ""


def model_for(data: bytes, node: LocalNode) -> str:
    """Which model a plan is for where nobody says: the one its file names, else the only one; UsageError."""
    name = named(data)
    if name:
        return name
    known = [str(row["name"]) for row in node.get("/api/v1/models")]
    if len(known) == 1:
        return known[0]
    raise UsageError(f"--model NAME is needed: {', '.join(known) or 'there is no model in this mesh'}")


def described(plan: WrittenPlan) -> Iterator[str]:
    """The plan in lines for a person: lanes, stages, who has which part."""
    for number, lane in enumerate(plan.lanes):
        if len(plan.lanes) > 1:
            yield f"lane {number}, weight {lane.weight}"
        for stage in lane.stages:
            for group in stage.groups:
                weight = f", weight {group.weight}" if len(stage.groups) > 1 else ""
                yield f"  operators {stage.first}-{stage.last}: {_group(group)}{weight}"


def _group(group: WrittenGroup) -> str:
    """Who serves a stage, and how."""
    devices = ", ".join(shard.device for shard in group.shards) or "nobody"
    if group.split == "none":
        return devices
    shares = list(group.shares) if group.shares else "by the devices' speeds"
    return f"{group.split} over {devices}, shares {shares}"
