"""The node's state as plain data for JSON: the shapes others script against. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from meshnn.cluster.member import DeviceId, Member, MemberState
from meshnn.errors import NoPlanError
from meshnn.node.jobs import memory_taken
from meshnn.node.problem import info_of
from meshnn.plan.devices import Links
from meshnn.plan.explain import Alternative
from meshnn.plan.outline import outline
from meshnn.plan.plan import Plan, PlanSet
from meshnn.plan.ranges import plan_memory
from meshnn.plan.solver import Problem

if TYPE_CHECKING:
    from meshnn.node.core import Core
    from meshnn.node.dataplane import Outcome


def plan_of(outcome: Outcome, names: Mapping[DeviceId, str]) -> dict[str, object]:
    """Who ran which operators of one answer, and how long each took."""
    lane = outcome.plan.lanes[outcome.lane]
    stages = [
        {
            "device": names.get(time.device, time.device),
            "device_id": time.device,
            "operators": [lane.stages[time.stage].first, lane.stages[time.stage].last],
            "split": lane.stages[time.stage].groups[outcome.groups[time.stage]].split,
            "compute_ms": round(time.compute_ms, 3),
            "bytes_in": time.bytes_in,
        }
        for time in sorted(outcome.times, key=lambda time: (time.stage, time.part))
    ]
    return {"epoch": str(outcome.plan.epoch), "stages": stages}


def status(core: Core, me: DeviceId, mesh: str) -> dict[str, object]:
    """What `meshnn status --json` prints."""
    epochs = [plans.main.epoch for plans in _active(core)]
    return {
        "mesh": mesh,
        "self": me,
        "leader": core.cluster.leader,
        "term": core.cluster.term,
        "epoch": str(max(epochs)) if epochs else None,
        "health": {
            "state": "degraded" if core.health.degraded else "ok",
            "troubles": [{"subject": subject, "reason": reason} for subject, reason in core.health.troubles.items()],
        },
        "members": [_member(core, member, me) for _, member in sorted(core.cluster.members.items())],
        "models": [
            {
                "name": record.name,
                "digest": record.digest,
                "bytes": record.size_bytes,
                "holders": list(core.catalogue.holders(record.digest)),
            }
            for record in core.catalogue.records
        ],
        "plans": plans(core),
    }


def plans(core: Core) -> list[dict[str, object]]:
    """The active plans: who runs what, what it takes of each device's memory, which deaths are covered."""
    return [_plan_set(core, plans) for plans in _active(core)]


def _active(core: Core) -> list[PlanSet]:
    found = (core.book.active(model) for model in core.book.models)
    return [plans for plans in found if plans is not None]


def _plan_set(core: Core, plans: PlanSet) -> dict[str, object]:
    main = plans.main
    ready = core.book.ready(main.model)
    card = core.catalogue.card(main.digest)
    return {
        "model": main.model,
        "digest": main.digest,
        "epoch": str(main.epoch),
        "window": main.window,
        "share": main.share,
        "pinned": main.pinned,
        "waits_for": [device for device in main.devices() if not _lives(core, device, main)],
        "stages": _stages(core, main),
        "memory_bytes": {} if card is None else dict(plan_memory(card, main)),
        "covered": {
            plan.epoch.absent: "prepared" if plan.epoch in ready else "planned" for plan in plans.contingencies
        },
        "deaths": _deaths(core, main),
        "plan": msgspec.to_builtins(main),
    }


def _deaths(core: Core, plan: Plan) -> list[dict[str, object]]:
    """What the death of each device of a plan would mean, as its leader said last."""
    known = {row.device: row for row in core.book.outlooks(plan.model)}
    rows: list[dict[str, object]] = []
    for device in plan.devices():
        row = known.get(device)
        state = "unknown" if row is None else row.state
        fetch_bytes, reroute_ms = (0, 0) if row is None else (row.fetch_bytes, row.reroute_ms)
        rows.append({"device": device, "state": state, "fetch_bytes": fetch_bytes, "reroute_ms": reroute_ms})
    return rows


def question(core: Core, model: str, now: float) -> tuple[Problem, Plan]:
    """What the planner was asked for a model, as this node sees the devices, and the plan that serves.

    Raises UnknownModelError, NoPlanError.
    """
    record = core.catalogue.record(model)
    card, active = core.catalogue.card(record.digest), core.book.active(model)
    if card is None or active is None:
        word = core.book.unplanned(model)
        raise NoPlanError(f"no plan serves {model}{f': {word.reason}' if word is not None else ''}")
    infos = tuple(info_of(member) for _, member in sorted(core.planned(now).items()))
    used = memory_taken(
        [(core.book.active(name), None) for name in core.book.models if name != model], core.catalogue.card
    )
    return Problem(model, outline(card), infos, Links(), max(1, len(infos)), used), active.main


def alternatives(found: Sequence[Alternative]) -> list[dict[str, object]]:
    """What the planner weighed, for `meshnn plan explain --json`."""
    return [
        {
            "title": one.title,
            "chosen": one.chosen,
            "reason": one.reason,
            "latency_ms": None if one.prediction is None else round(one.prediction.latency_ms, 3),
            "throughput_per_s": None if one.prediction is None else round(one.prediction.throughput_per_s, 3),
            "air_bytes": None if one.prediction is None else round(one.prediction.air_bytes),
            "plan": msgspec.to_builtins(one.plan),
        }
        for one in found
    ]


def _lives(core: Core, device: DeviceId, plan: Plan) -> bool:
    """Whether a device lives in the life that a plan was made for."""
    member = core.cluster.members.get(device)
    here = member is not None and member.state in (MemberState.ALIVE, MemberState.SUSPECT)
    return member is not None and here and member.boot_id == plan.lives()[device]


def _stages(core: Core, plan: Plan) -> list[dict[str, object]]:
    members = core.cluster.members
    return [
        {
            "device": members[shard.device].name if shard.device in members else shard.device,
            "device_id": shard.device,
            "operators": [recipe.first, recipe.last],
            "split": recipe.split,
            "part": recipe.part,
        }
        for recipe, shard in plan.placements()
    ]


def _member(core: Core, member: Member, me: DeviceId) -> dict[str, object]:
    row: dict[str, object] = {
        "id": member.device_id,
        "name": member.name,
        "state": str(member.state),
        "address": f"{member.address.host}:{member.address.port}",
        "memory_mb": round(member.capability.memory_bytes / 1e6, 3),
        "speed": round(member.capability.speed, 3),
    }
    if member.usable:
        row["health"] = "degraded" if member.capability.degraded else "ok"
    if member.device_id == me:
        row["used_mb"] = round(core.shards.used_bytes / 1e6, 3)
        if core.memory is not None:
            row["process_mb"] = round(core.memory.own_bytes / 1e6, 3)
            row["free_mb"] = round(core.memory.room_bytes / 1e6, 3)
    return row
