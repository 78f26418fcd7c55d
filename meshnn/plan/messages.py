"""What plans say over the wire: the switch (prepare, ready, activate, retire) and the slices that move."""

from __future__ import annotations

from typing import Literal

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.plan.plan import Epoch, PlanSet, Recipe

GOLDEN_FAULT = "the shard fails its golden vector on this device"
"""How the reason of a refusal begins where a device computes something else than the one that cut the shard."""


class Golden(msgspec.Struct, frozen=True):
    """What a shard makes of the golden input (seeded by its recipe), as the device that cut it computed it.

    Devices of the same `numeric_class` must make bytes of the same `digest` (hex, sha256). Others compare `sketches`:
    of each output some sums with random signs, and `largest`, the magnitude of its largest finite value.
    """

    numeric_class: str
    digest: str
    sketches: tuple[tuple[float, ...], ...]
    largest: tuple[float, ...]


class Fetch(msgspec.Struct, frozen=True):
    """A shard that must be on a device: its recipe, the sha256 and size of its file, who can serve it.

    `golden` is what it must compute; None where its cutter had not the memory to run it.
    """

    recipe: Recipe
    sha256: str
    size_bytes: int
    holders: tuple[DeviceId, ...]
    golden: Golden | None = None


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
    """Leader to a device: hold and load these shards of this plan (`spare` ones as far as memory allows).

    While it is `gentle`, only what fits beside all that serves or covers is loaded.
    """

    plans: PlanSet
    fetch: tuple[Fetch, ...]
    gentle: bool = False


class Lack(msgspec.Struct, frozen=True):
    """What a device still needs for a plan: bytes to fetch, and the time all of it takes, as its own measures say.

    With `room` it loads it as soon as a request asks for it: it fits beside all that serves there.
    """

    epoch: Epoch
    fetch_bytes: int
    load_ms: int
    room: bool = False


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Device to leader: the epochs (main and contingencies) of which all its shards are loaded, or on its disk.

    `lacks` tells of the others what they would take.
    """

    epoch: Epoch
    loaded: tuple[Epoch, ...]
    on_disk: tuple[Epoch, ...] = ()
    lacks: tuple[Lack, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Device to leader: the plan cannot be prepared here. `promised` is the highest epoch it has promised."""

    epoch: Epoch
    reason: str
    promised: Epoch | None = None


class Outlook(msgspec.Struct, frozen=True):
    """What the death of a device of a plan would mean: no more than evidence where its contingency is `prepared`.

    Else a contingency is `on disk`, or needs a `fetch`, or there is `none`; answers come again after some time
    (`reroute_ms`, counted from the moment its power is gone; 0 where no plan does without it).
    """

    device: DeviceId
    state: Literal["prepared", "on disk", "fetch", "none"]
    fetch_bytes: int = 0
    reroute_ms: int = 0


class Activate(msgspec.Struct, frozen=True, tag=True):
    """Leader to every member: this plan set serves its model from now on; `ready` lists the loaded epochs.

    `outlooks` say of each device of the plan what its death would mean.
    """

    plans: PlanSet
    ready: tuple[Epoch, ...]
    outlooks: tuple[Outlook, ...] = ()


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
