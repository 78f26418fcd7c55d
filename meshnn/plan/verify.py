"""What must hold of a plan; run on every plan that comes from outside, before anything of it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshnn.cluster.member import DeviceId
from meshnn.errors import NoPlanError, UsageError
from meshnn.graph.splits.boxes import parts_of
from meshnn.plan import boxes
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.outline import Model, Outline, outline
from meshnn.plan.plan import Group, Lane, Plan, Stage
from meshnn.plan.ranges import plan_memory
from meshnn.plan.routes import derive, way_count, ways

# A plan beyond these is no plan anybody meant; they bound what a stranger's file can make us compute.
SHARDS_MAX = 1024
WEIGHT_MAX = 1000
WINDOW_MAX = 1024
WAYS_MAX = 256


def check(
    plan: Plan,
    card: Model,
    devices: Sequence[DeviceInfo] | None = None,
    memory_used_elsewhere: Mapping[DeviceId, int] | None = None,
) -> None:
    """Return if `plan` is legal for the model of `card` (and, where given, fits the devices that are here).

    Raises UsageError for a plan that means nothing, NoPlanError for one that cannot be run, both with the reason.
    """
    model = outline(card)
    check_form(plan, card)
    for number, groups, _ in ways(plan):
        derive(model, plan.lanes[number], groups)
    memory = plan_memory(model, plan)
    if devices is not None:
        _room(plan, memory, devices, memory_used_elsewhere or {})


def check_form(plan: Plan, card: Model) -> None:
    """The part of `check` that is quick enough for an event loop: all but the routes and the memory.

    What passes can be computed with. Raises UsageError and NoPlanError as `check` does.
    """
    model = outline(card)
    _numbers(plan, model)
    for number, lane in enumerate(plan.lanes):
        _lane(f"lane {number}", lane, model)
    if way_count(plan) > WAYS_MAX:
        raise UsageError(f"lanes and groups make {way_count(plan)} ways through the plan, more than {WAYS_MAX}")


def _numbers(plan: Plan, model: Outline) -> None:
    """The plan's own figures, and that it is a plan of this model."""
    if plan.digest != model.digest:
        raise UsageError(f"the plan is for a model of digest {plan.digest[:12]}, {model.name} is {model.digest[:12]}")
    if not plan.lanes:
        raise UsageError("the plan has no lane")
    if len(plan.placements()) > SHARDS_MAX:
        raise UsageError(f"the plan has {len(plan.placements())} shards, more than {SHARDS_MAX}")
    if not 1 <= plan.window <= WINDOW_MAX:
        raise UsageError(f"the window must be 1 to {WINDOW_MAX}, it is {plan.window}")
    if not 1 <= plan.share <= plan.window:
        raise UsageError(f"an origin's share must be 1 to the window {plan.window}, it is {plan.share}")
    weights = [lane.weight for lane in plan.lanes]
    weights += [group.weight for lane in plan.lanes for stage in lane.stages for group in stage.groups]
    if not all(1 <= weight <= WEIGHT_MAX for weight in weights):
        raise UsageError(f"weights must be 1 to {WEIGHT_MAX}")
    lives = plan.lives()
    shards = [shard for _, shard in plan.placements()]
    if any(not shard.device or not shard.boot for shard in shards):
        raise UsageError("every shard names a device and its boot")
    twice = sorted(shard.device for shard in shards if lives[shard.device] != shard.boot)
    if twice:
        raise UsageError(f"device {twice[0]} stands in the plan in two lives")


def _lane(where: str, lane: Lane, model: Outline) -> None:
    """A lane covers every operator once, in order, cut only where the model may be cut."""
    following = 0
    for number, stage in enumerate(lane.stages):
        place = f"{where}, stage {number} (operators {stage.first}-{stage.last})"
        if stage.first != following or stage.last < stage.first:
            raise UsageError(f"{place}: stages cover each operator once and in order; {following} is the next")
        if stage.last >= len(model.operators):
            raise UsageError(f"{place}: {model.name} has operators 0-{len(model.operators) - 1}")
        reason = model.card.cuttable(stage.first) if stage.first else None
        if reason is not None:
            raise NoPlanError(f"{place}: no cut before operator {stage.first}: {reason}")
        _stage(place, stage, model)
        following = stage.last + 1
    if following != len(model.operators):
        raise UsageError(f"{where}: operators {following}-{len(model.operators) - 1} are in no stage")


def _stage(place: str, stage: Stage, model: Outline) -> None:
    """A stage has groups, each well formed, and something to wait for and to hand on."""
    if not stage.groups:
        raise UsageError(f"{place}: it has no group")
    if not model.fragment_inputs(stage.first, stage.last):
        raise NoPlanError(f"{place}: nothing comes in, so nothing would start it")
    if not model.fragment_outputs(stage.first, stage.last):
        raise NoPlanError(f"{place}: nothing goes out")
    for group in stage.groups:
        _group(place, group)
        reason = boxes.refusal(model, stage, group)
        if reason is not None:
            raise NoPlanError(f"{place}: the {group.split} split is refused: {reason}")


def _group(place: str, group: Group) -> None:
    """A group without a split is one shard; a split has at least two parts, with boundaries for each."""
    if not group.shards:
        raise UsageError(f"{place}: a group has no shard")
    if group.split == "none" and (len(group.shards) != 1 or group.shares):
        raise UsageError(f"{place}: a group without a split has one shard and no shares")
    if group.split != "none" and len(group.shards) < 2:
        raise UsageError(f"{place}: the {group.split} split needs two shards or more")
    if group.split != "none" and parts_of(group.shares) != len(group.shards):
        shares = f"shares {list(group.shares)} make {max(0, parts_of(group.shares))} parts"
        raise UsageError(f"{place}: {shares} for {len(group.shards)} shards")


def _room(
    plan: Plan, memory: Mapping[DeviceId, int], devices: Sequence[DeviceInfo], used: Mapping[DeviceId, int]
) -> None:
    """Every device of the plan is here, in the life the plan names, with the memory."""
    known = {info.device: info for info in devices}
    for device, boot in sorted(plan.lives().items()):
        info = known.get(device)
        if info is None:
            raise NoPlanError(f"device {device} of the plan is not here")
        name = info.name or device
        if info.boot != boot:
            raise NoPlanError(f"{name} has restarted since the plan was made")
        budget = max(0, info.memory_bytes - used.get(device, 0))
        if memory[device] > budget:
            raise NoPlanError(
                f"{name} needs {memory[device] / 1e6:.1f} MB for this plan and offers {budget / 1e6:.1f} MB"
            )
