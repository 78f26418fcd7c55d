"""Plans that a person writes: JSON with devices by name or id, and what may be left out filled in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import ModelError, NoPlanError, UsageError
from meshnn.graph.splits.balance import balanced
from meshnn.graph.splits.layout import share_lengths
from meshnn.plan.devices import DeviceInfo, by_id
from meshnn.plan.outline import Outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Split, Stage

PLAN_BYTES_MAX = 4 << 20


class WrittenShard(msgspec.Struct, frozen=True):
    """A device by its name or id; what life it lives is filled in."""

    device: str


class WrittenGroup(msgspec.Struct, frozen=True):
    """A group; where a split comes without `shares`, they follow from the devices' speeds."""

    shards: tuple[WrittenShard, ...]
    split: Split = "none"
    shares: tuple[int, ...] = ()
    weight: int = 1


class WrittenStage(msgspec.Struct, frozen=True):
    """A run of operators, both ends included."""

    first: int
    last: int
    groups: tuple[WrittenGroup, ...]


class WrittenLane(msgspec.Struct, frozen=True):
    """A whole way through the model."""

    stages: tuple[WrittenStage, ...]
    weight: int = 1


class WrittenPlan(msgspec.Struct, frozen=True):
    """A plan as JSON, what `meshnn plan show --json` prints under `plan` included; other fields are ignored.

    An empty `digest` means the model that it is applied to; a `window` of 0 the usual one.
    """

    lanes: tuple[WrittenLane, ...]
    digest: str = ""
    window: int = 0
    share: int = 0


def decode(data: bytes, model: str = "") -> WrittenPlan:
    """The plan in a file: bare, under `plan`, or in the list that `plan show --json` prints, by its model's name.

    Raises UsageError where it is none of these.
    """
    if len(data) > PLAN_BYTES_MAX:
        raise UsageError(f"the plan has {len(data)} bytes; at most {PLAN_BYTES_MAX} are read")
    try:
        found: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the plan is no JSON: {error}") from None
    if isinstance(found, list):
        rows = [row for row in found if isinstance(row, dict)]
        named = [row for row in rows if row.get("model") == model] or (rows if len(rows) == 1 else [])
        if not named:
            raise UsageError(f"the file lists {len(rows)} plans, none of a model {model!r}")
        found = named[0]
    if isinstance(found, dict) and "plan" in found:
        found = found["plan"]
    try:
        return msgspec.convert(found, WrittenPlan)
    except msgspec.ValidationError as error:
        raise UsageError(f"this is no plan: {error}") from None


def bound(
    written: WrittenPlan,
    model: Outline,
    devices: Sequence[DeviceInfo] | None = None,
    *,
    name: str = "",
    epoch: Epoch | None = None,
    origins: int = 1,
) -> Plan:
    """The plan with its devices found by name or id among `devices`, each in the life it lives now.

    Without `devices` every name is its own device. NoPlanError for a device that is not here, UsageError for a name
    that several have. What else must hold `plan.verify.check` says.
    """
    seats = _Seats(model, devices)
    lanes = tuple(
        Lane(
            tuple(
                Stage(stage.first, stage.last, tuple(seats.group(stage, g) for g in stage.groups))
                for stage in lane.stages
            ),
            lane.weight,
        )
        for lane in written.lanes
    )
    depth = max((len(lane.stages) for lane in lanes), default=1)
    window = written.window or min(64, max(2 * depth, 2 * origins))
    share = written.share or max(1, window // max(1, origins))
    digest = written.digest or model.digest
    return Plan(epoch or Epoch(0, DeviceId(""), 0), name or model.name, digest, lanes, window, share, pinned=True)


class _Seats:
    """Finds devices by what a person calls them."""

    def __init__(self, model: Outline, devices: Sequence[DeviceInfo] | None) -> None:
        self._model = model
        self._devices = devices

    def device(self, called: str) -> DeviceInfo:
        """The device of an id, else the one of a name."""
        if self._devices is None:
            return DeviceInfo(DeviceId(called), BootId("now"), 1 << 62, 1.0, name=called)
        known = by_id(self._devices)
        if called in known:
            return known[DeviceId(called)]
        named = [info for info in self._devices if info.name == called]
        if len(named) > 1:
            raise UsageError(f"{len(named)} devices are called {called!r}: name one by its id")
        if not named:
            names = ", ".join(sorted(info.name or info.device for info in self._devices))
            raise NoPlanError(f"device {called!r} of the plan is not here; here are {names}")
        return named[0]

    def group(self, stage: WrittenStage, written: WrittenGroup) -> Group:
        """A group with its devices, and shares by their speeds where none are written."""
        infos = [self.device(shard.device) for shard in written.shards]
        shares = written.shares
        if written.split != "none" and not shares and len(infos) > 1:
            shares = self._shares(stage, written.split, [info.speed for info in infos])
        return Group(tuple(Shard(info.device, info.boot) for info in infos), written.split, shares, written.weight)

    def _shares(self, stage: WrittenStage, split: Split, speeds: list[float]) -> tuple[int, ...]:
        card = self._model.card
        place = f"operators {stage.first}-{stage.last}"
        try:
            found = balanced(card, stage.first, stage.last, split, speeds)
            if found is None:
                count = share_lengths(card, stage.first, stage.last, split)[0]
                raise NoPlanError(f"{place}: the {split} split has {count} to divide among {len(speeds)} parts")
        except ModelError as error:
            raise NoPlanError(f"{place}: the {split} split is refused: {error}") from None
        return found
