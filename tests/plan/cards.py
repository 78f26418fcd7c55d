"""Cards and devices made up for the planner's tests: every figure is chosen, so that the answer can be worked out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshnn.cluster.member import BootId, DeviceId
from meshnn.graph.card import CARD_VERSION, Card, CardOperator, CardTensor
from meshnn.plan.devices import DeviceInfo, Link, Links
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Stage

DIGEST = "d" * 64
EPOCH = Epoch(1, DeviceId("leader"), 1)


@dataclass(frozen=True)
class Op:
    """One made-up operator: its cost, the bytes it makes, and the earlier tensors it reads (-1: the one before)."""

    work: float = 1.0
    weights: int = 0
    out_bytes: int = 100
    reads: tuple[int, ...] = (-1,)


def card(ops: Sequence[Op], in_bytes: int = 100, refused: Mapping[int, str] | None = None) -> Card:
    """A card whose tensor 0 is the input and whose tensor k + 1 is made by operator k; the last is the output."""
    reads = [tuple(place if r == -1 else r for r in op.reads) for place, op in enumerate(ops)]
    sizes = [in_bytes, *(op.out_bytes for op in ops)]
    tensors = tuple(
        CardTensor(
            index=index,
            name=f"t{index}",
            shape=(1, size),
            dtype="int8",
            size_bytes=size,
            producer=index - 1,
            consumers=tuple(place for place, read in enumerate(reads) if index in read),
        )
        for index, size in enumerate(sizes)
    )
    operators = tuple(
        CardOperator("CONV_2D", read, (place + 1,), int(op.work * 1e6), op.weights, sizes[place + 1], op.work)
        for place, (op, read) in enumerate(zip(ops, reads, strict=True))
    )
    return Card(
        version=CARD_VERSION,
        digest=DIGEST,
        name="made-up",
        size_bytes=sum(op.weights for op in ops),
        inputs=(tensors[0],),
        outputs=(tensors[-1],),
        operators=operators,
        tensors=tensors,
        refused=dict(refused or {}),
    )


def chain(count: int, weights: int = 1000, out_bytes: int = 100, work: float = 1.0) -> Card:
    """A chain of equal operators."""
    return card([Op(work, weights, out_bytes)] * count)


def device(name: str, memory_bytes: int = 10**9, speed: float = 1.0, numeric_class: str = "x") -> DeviceInfo:
    """A device named `name`."""
    return DeviceInfo(DeviceId(name), BootId("b" + name), memory_bytes, speed, 1, numeric_class, name)


def links(bytes_per_ms: float = 100.0, rtt_ms: float = 1.0, overhead_ms: float = 0.5) -> Links:
    """One kind of link between all."""
    return Links(Link(bytes_per_ms, rtt_ms), {}, overhead_ms)


def shard(info: DeviceInfo) -> Shard:
    """A shard on a device."""
    return Shard(info.device, info.boot)


def pipeline(model: Card, parts: Sequence[tuple[int, DeviceInfo]], window: int = 2, share: int = 1) -> Plan:
    """A plan of one lane: (number of operators, device) a stage."""
    stages, first = [], 0
    for count, info in parts:
        stages.append(Stage(first, first + count - 1, (Group((shard(info),)),)))
        first += count
    return Plan(EPOCH, "m", model.digest, (Lane(tuple(stages)),), window, share)


def spans(plan: Plan) -> list[tuple[int, int, str]]:
    """(first, last, device) of every stage of a plan of one lane with single groups."""
    return [(stage.first, stage.last, stage.groups[0].shards[0].device) for stage in plan.lanes[0].stages]
