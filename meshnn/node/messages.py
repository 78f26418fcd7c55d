"""What nodes say to each other about models and files, beside membership and plans."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from meshnn.cluster.member import Address, DeviceId
from meshnn.plan.plan import Recipe

# However long a device says that it will not answer, after so long its silence counts again.
BUSY_MS_MAX = 5000

FileKind = Literal["model", "shard", "card"]


class NameRecord(msgspec.Struct, frozen=True):
    """A model's name: which file it means, by whom and when it was said. The greater `order` holds.

    `stamp` counts the changes of the name. A device may lose what it wrote last and use a stamp twice: the rest of
    `order` decides then, so that all members end with the same record.
    """

    name: str
    digest: str
    size_bytes: int
    stamp: int
    device: DeviceId
    removed: bool = False

    @property
    def order(self) -> tuple[int, str, bool, str]:
        """What decides between two records of one name."""
        return (self.stamp, self.device, self.removed, self.digest)


class Names(msgspec.Struct, frozen=True, tag=True):
    """All names the sender knows, or those that changed."""

    records: tuple[NameRecord, ...]


class Holdings(msgspec.Struct, frozen=True, tag=True):
    """What the sender holds: digests of whole models, and the names it knows, as `name@stamp@digest`."""

    version: int
    models: tuple[str, ...]
    names: tuple[str, ...]


class Copy(msgspec.Struct, frozen=True, tag=True):
    """Leader to a device: hold this model's whole file too."""

    digest: str
    size_bytes: int
    holders: tuple[DeviceId, ...]


class CopyFailed(msgspec.Struct, frozen=True, tag=True):
    """Device to leader: the copy could not be made, with the reason."""

    digest: str
    reason: str


class Pin(msgspec.Struct, frozen=True, tag=True):
    """Any node to the leader: run exactly this plan (a JSON plan, see plan.verify); answered by `PinAnswer`."""

    ask: str
    model: str
    plan: bytes


class Unpin(msgspec.Struct, frozen=True, tag=True):
    """Any node to the leader: give the model back to the planner."""

    ask: str
    model: str


class PinAnswer(msgspec.Struct, frozen=True, tag=True):
    """The leader's word on a `Pin` or `Unpin`: an empty reason is yes."""

    ask: str
    reason: str = ""


class CutOff(msgspec.Struct, frozen=True, tag=True):
    """Any node to the leader: these devices live, but the sender has had no link to them for a while."""

    devices: tuple[DeviceId, ...]


class TellPlans(msgspec.Struct, frozen=True, tag=True):
    """A node that has no link to a leader to any other: which plans serve? Answered by an `Activate` for each."""


class Want(msgspec.Struct, frozen=True, tag=True):
    """Send me a piece of this file; answered by `Chunk` frames or `Missing`.

    A shard comes with its recipe, so that any holder of the model can cut it again.
    """

    transfer: int
    kind: FileKind
    key: str
    offset_bytes: int
    length_bytes: int
    recipe: Recipe | None = None


class Missing(msgspec.Struct, frozen=True, tag=True):
    """The wanted file is not here, or cannot be read."""

    transfer: int
    reason: str


class Chunk(msgspec.Struct, frozen=True, tag=True):
    """The header of a piece of a file; the payload is the bytes. `size_bytes` is that of the whole file."""

    transfer: int
    offset_bytes: int
    size_bytes: int


class Busy(msgspec.Struct, frozen=True, tag=True):
    """For so long the sender may answer no ping: it loads a large shard, in which the runtime lets nothing else run."""

    for_ms: int


class Others(msgspec.Struct, frozen=True, tag=True):
    """A node to a caller that linked: where other nodes are, should this one go away."""

    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=64)]


class RemoteAsk(msgspec.Struct, frozen=True, tag=True):
    """A caller that is no member: answer this input; the payload is the photo's or npz's bytes."""

    ask: str
    model: str
    source: str
    top: int
    deadline_ms: int
    tensors: bool = False


class RemoteAnswer(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `RemoteAsk`: the payload is the JSON line, then (when asked) an npz of the tensors."""

    ask: str
    json_bytes: int
