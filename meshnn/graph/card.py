"""The model card: all a planner needs to know of a model, without its weights. Some kB; travels with the name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Literal, TypeVar, cast

import msgspec

from meshnn.graph.cost import arena_bytes

CARD_VERSION = 1

T = TypeVar("T")

Form = Literal["", "dense", "fc", "depthwise", "pool", "map", "pad", "concat", "channelwise", "reshape", "blocks"]


class CardQuantization(msgspec.Struct, frozen=True):
    """Affine quantisation of an activation: real = scale * (stored - zero_point)."""

    scale: float
    zero_point: int


class CardTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """An activation: `index` is its place in the original file, `shape` in elements, `producer` an operator or -1.

    `consumers` are operator indices; the number of operators in it stands for the model's answer. `known` is false
    where only the run determines the shape.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    producer: int = -1
    consumers: tuple[int, ...] = ()
    quantization: CardQuantization | None = None
    known: bool = True


class Geometry(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an operator's output lies over its input, so that halos and channel ranges follow without weights.

    `form` is what the operator does to places: `dense` and `fc` read every channel, `depthwise`, `pool` and
    `channelwise` stay on theirs, `map` works on each element alone, the empty one is opaque. `window`, `stride`,
    `dilation`, `before` and `after` are (rows, columns); the last two are the true zero padding on each side.
    `pads` are (before, after) per axis of a PAD; `axis` is a concatenation's; `block` a depth-to-space block.
    `multiplier` is a depthwise convolution's outputs per input channel. `activation` is the fused one.
    """

    form: Form
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    pads: tuple[tuple[int, int], ...] = ()
    axis: int = -1
    block: int = 1
    multiplier: int = 1
    activation: str = "NONE"


class CardOperator(msgspec.Struct, frozen=True, omit_defaults=True):
    """An operator: `inputs` and `outputs` are its activations by index, `work` a relative cost in ms of a reference.

    `constant` marks one that only computes constants: it counts with whoever reads its result (`depends`, operator
    indices, all the way back). `weight_bytes` are its own constants', `scratch_bytes` the results of a constant
    operator, which the runtime keeps. `no_output`, `no_input`, `no_spatial` say why a split is refused; empty
    where it is allowed.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    weight_bytes: int
    activation_bytes: int
    work: float
    constant: bool = False
    depends: tuple[int, ...] = ()
    scratch_bytes: int = 0
    geometry: Geometry = Geometry(form="")
    no_output: str = ""
    no_input: str = ""
    no_spatial: str = ""


class Normalisation(msgspec.Struct, frozen=True):
    """What an image's values become before the model: (x - mean) / std, per channel or one value for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Card(msgspec.Struct, frozen=True, dict=True):
    """A model without its weights: `digest` is the sha256 of the file, `size_bytes` its length.

    `tensors` are all activations; `refused` gives the reason for every boundary that cannot be cut. `notes` are
    remarks a person may read, such as metadata that could not be read.
    """

    version: int
    digest: str
    name: str
    size_bytes: int
    inputs: tuple[CardTensor, ...]
    outputs: tuple[CardTensor, ...]
    operators: tuple[CardOperator, ...]
    tensors: tuple[CardTensor, ...]
    refused: dict[int, str] = {}
    labels: tuple[str, ...] = ()
    normalisation: Normalisation | None = None
    output_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def tensor(self, index: int) -> CardTensor:
        """The activation with this index in the original file; KeyError where there is none."""
        return self._index[index]

    def by_index(self) -> Mapping[int, CardTensor]:
        """All activations by their index in the original file."""
        return self._index

    @cached_property
    def _index(self) -> dict[int, CardTensor]:
        """The answer of `by_index`, made once."""
        return {tensor.index: tensor for tensor in self.tensors}

    @cached_property
    def _memory(self) -> dict[Hashable, object]:
        """What `recall` found."""
        return {}

    def recall(self, key: Hashable, find: Callable[[], T]) -> T:
        """What was found for this key before, else what `find` finds now; one key always means one kind of answer.

        A search asks the same of a card thousands of times. Never part of what is sent or compared.
        """
        if key not in self._memory:
            self._memory[key] = find()
        return cast(T, self._memory[key])

    def fragment_inputs(self, first: int, last: int) -> tuple[int, ...]:
        """Tensors operators `first` to `last` (inclusive) need from before, in the fragment's own order."""
        return self.recall(("inputs", first, last), lambda: self._find_inputs(first, last))

    def fragment_outputs(self, first: int, last: int) -> tuple[int, ...]:
        """Tensors operators `first` to `last` (inclusive) give to others, in the fragment's own order."""
        return self.recall(("outputs", first, last), lambda: self._find_outputs(first, last))

    def _find_inputs(self, first: int, last: int) -> tuple[int, ...]:
        """The answer of `fragment_inputs`."""
        end = len(self.operators) if last == len(self.operators) - 1 else last
        needed = {
            t.index
            for t in self.tensors
            if t.producer < first and any(first <= reader <= end for reader in t.consumers)
        }
        return _in_order(needed, self.inputs)

    def _find_outputs(self, first: int, last: int) -> tuple[int, ...]:
        """The answer of `fragment_outputs`."""
        total = len(self.operators)
        answers = {t.index for t in self.outputs}
        given = {
            t.index
            for t in self.tensors
            if first <= t.producer <= last and (t.index in answers or any(reader > last for reader in t.consumers))
        }
        if last == total - 1:
            given.update(t.index for t in self.outputs if total in t.consumers)
        return _in_order(given, self.outputs)

    def crossing(self, position: int) -> tuple[int, ...]:
        """Tensors that cross the boundary before operator `position`, model inputs read later included."""
        return self.fragment_inputs(position, len(self.operators) - 1)

    def cuttable(self, position: int) -> str | None:
        """Why the boundary before operator `position` cannot be cut; None where it can. The two ends always can."""
        if not 0 <= position <= len(self.operators):
            return f"there is no boundary {position} among {len(self.operators)} operators"
        return self.refused.get(position)

    def refusal(self, first: int, last: int) -> str | None:
        """Why operators `first` to `last` (inclusive) cannot be a fragment; None where they can."""
        if not 0 <= first <= last < len(self.operators):
            return f"there are no operators {first} to {last} among {len(self.operators)}"
        if not self.fragment_outputs(first, last):
            return f"operators {first} to {last} make nothing that anyone reads"
        return self.cuttable(first) or self.cuttable(last + 1)

    def members(self, first: int, last: int) -> tuple[int, ...]:
        """Operators the fragment holds: those of the range that run, and the constant ones they read, cloned."""
        chosen = {index for index in range(first, last + 1) if not self.operators[index].constant}
        wanted = [index for chosen_one in chosen for index in self.operators[chosen_one].depends]
        chosen.update(wanted)
        return tuple(sorted(chosen))

    def weight_bytes(self, first: int, last: int) -> int:
        """Bytes of constants in the fragment of operators `first` to `last` (inclusive)."""
        return sum(self.operators[index].weight_bytes for index in self.members(first, last))

    def work(self, first: int, last: int) -> float:
        """The relative cost of running operators `first` to `last` (inclusive)."""
        return sum(op.work for op in self.operators[first : last + 1] if not op.constant)

    def arena_bytes(self, first: int, last: int) -> int:
        """Memory for the fragment's activations, estimated from what lives at once, with a margin."""
        spans: list[tuple[int, int, int]] = []
        kept = {*self.fragment_inputs(first, last), *self.fragment_outputs(first, last)}
        for tensor in self.tensors:
            inside = [reader for reader in tensor.consumers if first <= reader <= last]
            if tensor.index in kept:
                begin = max(first, tensor.producer)
                spans.append((begin, last + 1, tensor.size_bytes))
            elif first <= tensor.producer <= last:
                spans.append((tensor.producer, max(inside, default=tensor.producer), tensor.size_bytes))
        scratch = sum(self.operators[index].scratch_bytes for index in self.members(first, last))
        return arena_bytes(spans) + scratch


def _in_order(tensors: set[int], leading: tuple[CardTensor, ...]) -> tuple[int, ...]:
    """A set of tensor indices as a tuple: those of `leading` in its order, then the others by index."""
    head = [t for t in dict.fromkeys(t.index for t in leading) if t in tensors]
    return (*head, *sorted(tensors.difference(head)))
