"""A part of a split as a standalone graph: weights sliced, padding made explicit, options rewritten."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from meshnn.graph import cut, schema
from meshnn.graph.card import Card, CardOperator, Geometry
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph, Operator, Tensor
from meshnn.graph.schema import Table
from meshnn.graph.splits.boxes import Box, parts_of, sizes, whole, within
from meshnn.graph.splits.constants import broadcast_box, lowest, sliced
from meshnn.graph.splits.layout import DENSE, Layout, Split, Step, layout
from meshnn.graph.splits.windows import pad_reach, reach
from meshnn.graph.verify import verify

_VALID = 1


def shard(
    graph: Graph, first: int, last: int, split: Split, part: int, shares: tuple[int, ...], card: Card | None = None
) -> Graph:
    """Part `part` of operators `first` to `last` (inclusive) under a split, as a graph of its own.

    Its inputs and outputs are the tensors of `layout(...).needs` and `.gives`, in that order and with those boxes'
    shapes. An input split's part gives its addend: part 0 holds the bias, the activation is left to the sum. `card`
    saves describing the graph again. Raises ModelError where the split is refused.
    """
    if split == "none":
        return cut.fragment(graph, first, last)
    card = card if card is not None else card_of(graph, "", 0, "")
    return _Maker(graph, card, layout(card, first, last, split, shares, part), split, part).made()


def shards(graph: Graph, first: int, last: int, split: Split, shares: tuple[int, ...]) -> tuple[Graph, ...]:
    """All parts of a split, in part order."""
    card = card_of(graph, "", 0, "")
    total = 1 if split == "none" else parts_of(shares)
    return tuple(shard(graph, first, last, split, part, shares, card) for part in range(total))


class _Maker:
    """Builds one part: `held` is the new tensor for what the part holds of each tensor of the whole graph."""

    def __init__(self, graph: Graph, card: Card, plan: Layout, split: Split, part: int) -> None:
        self.graph = graph
        self.card = card
        self.plan = plan
        self.split = split
        self.part = part
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.held: dict[int, int] = {}
        self.pieces: dict[tuple[int, Box], int] = {}
        known = cut.flow(graph)
        self.makers = {t: graph.operators[i] for i in known.constant_operators for t in graph.operators[i].outputs}

    def made(self) -> Graph:
        """The part as a verified graph."""
        inputs = [self.hold(t, box) for t, box in self.plan.needs.items()]
        for step in self.plan.steps:
            self.step(step)
        outputs = tuple(self.take(t, box) for t, box in self.plan.gives.items())
        made = cut.compact(Graph(tuple(self.operators), tuple(self.tensors), tuple(inputs), outputs))
        verify(made, name=f"part {self.part}")
        return made

    def add(self, tensor: Tensor) -> int:
        """A new tensor of the part."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def hold(self, t: int, box: Box) -> int:
        """The new tensor for what the part holds of tensor `t`."""
        self.held[t] = self.add(sliced(self.graph.tensors[t], box))
        return self.held[t]

    def integers(self, values: Sequence[Sequence[int]] | Sequence[int]) -> int:
        """A constant of int32."""
        array = np.asarray(values, np.int32)
        return self.add(Tensor("", array.shape, "int32", data=array.reshape(-1).view(np.uint8)))

    def take(self, t: int, box: Box) -> int:
        """A box of an activation the part holds: the held tensor itself, or a slice of it."""
        region = self.plan.regions[t]
        if box == region:
            return self.held[t]
        if (t, box) not in self.pieces:
            begin = self.integers([start for start, _ in within(box, region)])
            size = self.integers(list(sizes(box)))
            out = self.add(dataclasses.replace(self.graph.tensors[t], shape=sizes(box)))
            version = 2 if self.graph.tensors[t].dtype == "int8" else 1
            options = schema.tables().SliceOptionsT()
            self.operators.append(Operator("SLICE", (self.held[t], begin, size), (out,), version, options))
            self.pieces[t, box] = out
        return self.pieces[t, box]

    def constant(self, t: int, box: Box | None = None) -> int:
        """A slice of a stored constant, or of one that DEQUANTIZE makes of a stored one; -1 stays absent."""
        if t < 0:
            return -1
        tensor = self.graph.tensors[t]
        box = whole(tensor.shape) if box is None else box
        if t not in self.makers:
            return self.add(sliced(tensor, box))
        maker = self.makers[t]
        elementwise = maker.kind == "DEQUANTIZE"
        read = tuple(self.constant(source, box if elementwise else None) for source in maker.inputs)
        out = self.add(sliced(tensor, box))
        self.operators.append(dataclasses.replace(maker, inputs=read, outputs=(out,)))
        return out

    def step(self, step: Step) -> None:
        """One operator of the part."""
        facts, operator = self.card.operators[step.operator], self.graph.operators[step.operator]
        reads = dict(zip(facts.inputs, step.read, strict=True))
        geometry = facts.geometry
        if self.split == "spatial":
            if geometry.form in ("dense", "depthwise", "pool"):
                self.window(operator, geometry, step, reads)
                return
            if geometry.form == "pad":
                self.pad(operator, geometry, step, reads)
                return
        options = operator.options
        inputs = [self.operand(operator, place, facts, step, reads) for place in range(len(operator.inputs))]
        out = self.hold(operator.outputs[0], step.made)
        if geometry.form in DENSE and self.plan.sums and operator.outputs[0] in self.plan.gives:
            options = self.addend(operator, inputs)
        if geometry.form == "reshape":
            self.emit_reshape(inputs[0], out)
            return
        self.emit(operator, inputs, out, options)

    def emit(self, operator: Operator, inputs: Sequence[int], out: int, options: Table) -> None:
        """Append an operator with other tensors and options."""
        self.operators.append(dataclasses.replace(operator, inputs=tuple(inputs), outputs=(out,), options=options))

    def emit_reshape(self, source: int, out: int) -> None:
        """A RESHAPE to the part's own shape (a SQUEEZE becomes one too)."""
        shape = self.tensors[out].shape
        options = schema.tables().ReshapeOptionsT(newShape=np.asarray(shape, np.int32))
        self.operators.append(Operator("RESHAPE", (source, self.integers(list(shape))), (out,), 1, options))

    def operand(self, operator: Operator, place: int, facts: CardOperator, step: Step, reads: dict[int, Box]) -> int:
        """One input of an operator: what it reads of an activation, or its slice of a constant."""
        t = operator.inputs[place]
        if t in reads:
            return self.take(t, reads[t])
        if t < 0:
            return -1
        shape, form = self.graph.tensors[t].shape, facts.geometry.form
        if form == "map":
            return self.constant(t, broadcast_box(shape, step.made))
        if self.split == "spatial" or form not in (*DENSE, "depthwise"):
            return self.constant(t)
        if self.plan.sums and form in DENSE and operator.outputs[0] in self.plan.gives:
            if place > 1:
                return self.constant(t) if self.part == 0 else -1
            return self.constant(t, (*whole(shape)[:-1], next(iter(reads.values()))[-1]))
        axis = 0 if form in DENSE or place > 1 else len(shape) - 1
        box = list(whole(shape))
        box[axis] = step.made[-1]
        return self.constant(t, tuple(box))

    def addend(self, operator: Operator, inputs: list[int]) -> Table:
        """The options of an input split's part: no activation before the sum. Absent biases become zeros."""
        options = copy.copy(operator.options)
        options.fusedActivationFunction = 0
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0 and inputs[2] < 0:
            bias = self.graph.tensors[operator.inputs[2]]
            zeros = np.zeros(bias.size_bytes, np.uint8)
            inputs[2] = self.add(dataclasses.replace(bias, data=zeros))
        return options

    def window(self, operator: Operator, geometry: Geometry, step: Step, reads: dict[int, Box]) -> None:
        """A convolution or pool over a strip or tile: what padding is left is made explicit, the rest is VALID."""
        t = operator.inputs[0]
        shape = self.graph.tensors[t].shape
        sides = [reach(geometry, axis, step.made[axis + 1], shape[axis + 1]) for axis in (0, 1)]
        source = self.take(t, reads[t])
        amounts = ((0, 0), *((side.before, side.after) for side in sides), (0, 0))
        if any(map(any, amounts)):
            source = self.padded(source, amounts, lowest=operator.kind == "MAX_POOL_2D")
        options = copy.copy(operator.options)
        options.padding = _VALID
        constants = [self.constant(other) for other in operator.inputs[1:]]
        self.emit(operator, [source, *constants], self.hold(operator.outputs[0], step.made), options)

    def padded(self, source: int, amounts: Sequence[tuple[int, int]], *, lowest: bool) -> int:
        """A tensor with zeros (or the lowest value) around it."""
        tensor = self.tensors[source]
        shape = tuple(n + sum(pair) for n, pair in zip(tensor.shape, amounts, strict=True))
        out = self.add(dataclasses.replace(tensor, shape=shape, data=None))
        operands = [source, self.integers(amounts)]
        options = schema.tables().PadOptionsT()
        if lowest:
            operands.append(self.add(_lowest(tensor)))
            options = schema.tables().PadV2OptionsT()
        version = 2 if tensor.dtype == "int8" else 1
        kind = "PADV2" if lowest else "PAD"
        self.operators.append(Operator(kind, tuple(operands), (out,), version, options))
        return out

    def pad(self, operator: Operator, geometry: Geometry, step: Step, reads: dict[int, Box]) -> None:
        """A PAD of which a strip or tile keeps its own share."""
        t = operator.inputs[0]
        shape = self.graph.tensors[t].shape
        amounts = list(geometry.pads)
        for axis in (1, 2):
            side = pad_reach(geometry, axis, step.made[axis], shape[axis])
            amounts[axis] = (side.before, side.after)
        rest = [self.constant(other) for other in operator.inputs[2:]]
        inputs = [self.take(t, reads[t]), self.integers(amounts), *rest]
        self.emit(operator, inputs, self.hold(operator.outputs[0], step.made), operator.options)


def _lowest(tensor: Tensor) -> Tensor:
    """A constant of the lowest value, quantised as the tensor it pads."""
    data = np.frombuffer(lowest(tensor.dtype), np.uint8)
    return Tensor("", (1,), tensor.dtype, tensor.quantization, data)
