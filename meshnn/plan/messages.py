"""What plans say over the wire: the switch (prepare, ready, activate, retire) and the slices that move."""

from __future__ import annotations

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.plan.plan import Epoch, PlanSet, Recipe


class Fetch(msgspec.Struct, frozen=True):
    """A shard that must be on a device: its recipe, the sha256 and size of its file, who can serve it."""

    recipe: Recipe
    sha256: str
    size_bytes: int
    holders: tuple[DeviceId, ...]


class Cut(msgspec.Struct, frozen=True, tag=True):
    """Leader to a holder that has the schema: cut these recipes; answered by `CutDone` or `CutFailed`."""

    epoch: Epoch
    model: str
    recipes: tuple[Recipe, ...]


class CutDone(msgspec.Struct, frozen=True, tag=True):
    """Holder to leader: the files of the recipes, in the order asked."""

    epoch: Epoch
    files: tuple[Fetch, ...]


class CutFailed(msgspec.Struct, frozen=True, tag=True):
    """Holder to leader: the recipes cannot be cut, with the reason."""

    epoch: Epoch
    reason: str


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Leader to a device: hold and load these shards of this plan (`spare` ones as far as memory allows)."""

    plans: PlanSet
    fetch: tuple[Fetch, ...]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Device to leader: the epochs (main and contingencies) of which all its shards are loaded."""

    epoch: Epoch
    loaded: tuple[Epoch, ...]
    on_disk: tuple[Epoch, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Device to leader: the plan cannot be prepared here. `promised` is the highest epoch it has promised."""

    epoch: Epoch
    reason: str
    promised: Epoch | None = None


class Activate(msgspec.Struct, frozen=True, tag=True):
    """Leader to every member: this plan set serves its model from now on; `ready` lists the loaded epochs."""

    plans: PlanSet
    ready: tuple[Epoch, ...]


class Retire(msgspec.Struct, frozen=True, tag=True):
    """Leader to every member: drop the plan of this epoch (its contingencies too); it never served or is replaced."""

    model: str
    epoch: Epoch


class Unplanned(msgspec.Struct, frozen=True, tag=True):
    """Leader to every member: why a model has no plan now. `hopeless` until the devices or the model change."""

    model: str
    digest: str
    reason: str
    hopeless: bool


class TensorPart(msgspec.Struct, frozen=True):
    """A slice of one tensor in a payload: which, of what type, where it lies in the whole ((start, stop) per axis)."""

    index: int
    dtype: str
    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    size_bytes: int


class StageTime(msgspec.Struct, frozen=True):
    """What one shard did for one attempt: for the answer's `plan.stages`."""

    stage: int
    part: int
    device: DeviceId
    compute_ms: float
    bytes_in: int


class Slice(msgspec.Struct, frozen=True, tag=True):
    """The header of tensors from one shard to another, or to the origin (`stage` == number of stages).

    `lane` and `groups` (one index a stage) are the origin's choice for the attempt; `source_stage` -1 is the origin.
    """

    request: str
    attempt: int
    model: str
    epoch: Epoch
    origin: DeviceId
    origin_boot: BootId
    lane: int
    groups: tuple[int, ...]
    stage: int
    part: int
    source_stage: int
    source_part: int
    left_ms: int
    tensors: tuple[TensorPart, ...]
    times: tuple[StageTime, ...] = ()


class Receipt(msgspec.Struct, frozen=True, tag=True):
    """The receiving node has the slice whole; its sender stops watching the link for it."""

    request: str
    attempt: int
    stage: int
    part: int
    source_stage: int
    source_part: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A stage to the origin: this attempt ends here. `culprit` is the device to avoid, "" where none is to blame."""

    request: str
    attempt: int
    stage: int
    code: str
    message: str
    culprit: str = ""
    newest: Epoch | None = None


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The origin to its stages: attempts up to this one are superseded or over; free their slots."""

    request: str
    attempt: int
