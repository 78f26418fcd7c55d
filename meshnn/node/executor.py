"""Shards run one after the other in one process: the routes, slices and assembly of the mesh without a network. Pure.

`Run` executes a graph; whoever has a runtime brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import ModelError
from meshnn.graph.card import Card
from meshnn.graph.ir import Graph
from meshnn.graph.splits.shard import shard
from meshnn.node.assembly import Assembly, Key
from meshnn.node.inputs import Arrival, Target
from meshnn.node.slices import Array, Passage, Piece, cut, dealt, parcel_of
from meshnn.node.ways import Ways, target_of
from meshnn.plan import boxes
from meshnn.plan.boxes import Box
from meshnn.plan.outline import Outline, outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Stage
from meshnn.plan.routes import ORIGIN, Need, Source
from meshnn.plan.shipments import At

Run = Callable[[Graph, Sequence[Array]], list[Array]]
"""Runs a graph on inputs in its order; its outputs in its order. ModelError where the runtime refuses."""

_HERE, _NOW = DeviceId("here"), BootId("now")


class Executor:
    """Runs shards of one model, whole ways through a plan, and the parts of one split."""

    def __init__(self, graph: Graph, card: Card, run: Run) -> None:
        """`card` must describe `graph`."""
        self.graph = graph
        self.card = card
        self.model: Outline = outline(card)
        self._run = run

    def whole(self, inputs: Mapping[int, Array]) -> dict[int, Array]:
        """The model's outputs by tensor index, made by the model as it is."""
        made = self._run(self.graph, [inputs[t] for t in self.graph.inputs])
        return dict(zip(self.graph.outputs, made, strict=True))

    def follow(
        self, lane: Lane, groups: Sequence[int], inputs: Mapping[int, Array], origin: DeviceId = _HERE
    ) -> dict[int, Array]:
        """The model's outputs by tensor index, made by the shards of one way through a plan; MeshError.

        The request is asked by `origin`: where that is a device of the way, what it reads itself comes no second time.
        """
        plan = Plan(Epoch(0, _HERE, 0), self.card.name, self.card.digest, (lane,), window=1, share=1)
        ways = Ways(self.model, plan, 0, tuple(groups))
        arrived: dict[At, list[Arrival]] = {key: [] for key in ways.routes.needs}

        def send(source: At, arrays: Mapping[int, Array], bases: Mapping[int, Box]) -> None:
            for shipment in ways.traffic.sent(source, origin):
                for at, pieces in dealt(shipment, parcel_of(shipment, arrays, bases).pieces):
                    arrived[at].append(Arrival(source, shipment.address, pieces))

        def assembled(at: At) -> dict[int, Array]:
            key = Key(_passage(self.card.name, groups), *at)
            return self._assembled(key, ways.target(at, origin), arrived.pop(at))

        send((ORIGIN, 0), {t: inputs[t] for t in self.graph.inputs}, {})
        for stage, group in enumerate(ways.groups):
            for part in range(len(group.shards)):
                send((stage, part), *self.fire(lane.stages[stage], group, part, assembled((stage, part))))
        return assembled(ways.end)

    def merge(self, stage: Stage, group: Group, values: Mapping[int, Array]) -> dict[int, Array]:
        """What all parts of a group give together, by tensor index; they read `values`, whole tensors. MeshError."""
        pieces: dict[int, list[tuple[Source, Array]]] = {}
        for part in range(len(group.shards)):
            wanted = {t: boxes.want(self.model, stage, group, part, t) for t in self._needed(stage)}
            fed = {t: cut(values[t], None, box) for t, box in wanted.items() if box is not None}
            arrays, bases = self.fire(stage, group, part, fed)
            for t, array in arrays.items():
                pieces.setdefault(t, []).append((Source(0, part, bases[t]), array))
        return {t: self._merged(stage, group, t, given) for t, given in pieces.items()}

    def fire(
        self, stage: Stage, group: Group, part: int, tensors: Mapping[int, Array]
    ) -> tuple[dict[int, Array], dict[int, Box]]:
        """Run one shard on its inputs by tensor index: its outputs, and the boxes they are."""
        made = shard(self.graph, stage.first, stage.last, group.split, part, group.shares, self.card)
        outputs = self.model.fragment_outputs(stage.first, stage.last)
        bases = {t: box for t in outputs if (box := boxes.have(self.model, stage, group, part, t)) is not None}
        inputs = [np.ascontiguousarray(tensors[t]) for t in self._needed(stage) if t in tensors]
        return dict(zip(bases, self._run(made, inputs), strict=True)), bases

    def _needed(self, stage: Stage) -> tuple[int, ...]:
        return self.model.fragment_inputs(stage.first, stage.last)

    def _merged(self, stage: Stage, group: Group, tensor: int, given: Sequence[tuple[Source, Array]]) -> Array:
        """One tensor of what every part gave of it, as whoever reads all of it would assemble it."""
        box = boxes.whole(self.model.tensor(tensor).shape)
        activation = boxes.activation(self.model, stage, group)
        need = Need(tensor, box, tuple(source for source, _ in given), boxes.sums(group), activation)
        at = (1, 0)
        arrivals = [Arrival((0, source.part), at, (Piece(tensor, source.box, array),)) for source, array in given]
        owed = {((0, source.part), at): ((tensor, source.box),) for source, _ in given}
        target = target_of(self.model, (need,), owed)
        return self._assembled(Key(_passage(self.card.name, ()), *at), target, arrivals)[tensor]

    def _assembled(self, key: Key, target: Target, arrivals: Sequence[Arrival]) -> dict[int, Array]:
        """Inputs made of what was sent for them, within the bytes that the planner counts for them.

        The last sent arrives first, so that order is put to the test, and with it that every addend may have to wait.
        """
        assembly = Assembly(target.reserve_bytes)
        done = None
        for arrival in reversed(arrivals):
            done = assembly.add(key, target, arrival, 1.0, 0.0)
        if done is None:
            raise ModelError(f"shard {key.stage}.{key.part} does not get all of its inputs")
        return dict(done.tensors)


def _passage(model: str, groups: Sequence[int]) -> Passage:
    """The header of a request that never leaves this process."""
    return Passage("check", 1, model, Epoch(0, _HERE, 0), _HERE, _NOW, 0, tuple(groups))
