"""Small networks from nothing: every test, and the demo, makes its model here, without TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from meshnn.graph import schema
from meshnn.graph.ir import Graph, Operator, Quantization, Tensor
from meshnn.graph.schema import Table
from meshnn.graph.shapes import mark_unknown
from meshnn.graph.verify import verify

Numbers = npt.NDArray[np.generic]
Precision = Literal["float32", "float16", "int8", "uint8", "dynamic"]
"""`float16` has float16 weights behind DEQUANTIZE, `dynamic` int8 weights under float32 activations."""

_ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_SCALE = float(np.float32(0.05))
_UNIT = 1.4 / 73.3  # the standard deviation of drawn integer weights, brought to that of float ones
_ZERO_POINTS = {"int8": -5, "uint8": 120}
_PAIR = tuple[int, int]


class Builder:
    """Builds one graph, operator by operator; every method returns the index of the tensor it makes.

    Weights are drawn from `random`, so that equal seeds give equal files. Activations of quantised networks share
    one scale of 0.05. `gain` scales all weights drawn after it is set; at 1 a signal keeps its size through layers.
    """

    def __init__(self, random: np.random.Generator, precision: Precision = "float32", *, gain: float = 1.0) -> None:
        self.random = random
        self.precision: Precision = precision
        self.gain = gain
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.inputs: list[int] = []
        self.dtype = precision if precision in _ZERO_POINTS else "float32"

    def graph(self, *outputs: int) -> Graph:
        """The verified graph that answers with `outputs`."""
        made = Graph(tuple(self.operators), tuple(self.tensors), tuple(self.inputs), outputs)
        verify(made)
        return mark_unknown(made)

    @property
    def quantization(self) -> Quantization | None:
        """What activations of this precision carry."""
        zero_point = _ZERO_POINTS.get(self.precision)
        return None if zero_point is None else Quantization((_SCALE,), (zero_point,))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor made so far."""
        return self.tensors[tensor].shape

    def input(self, *shape: int, name: str = "", quantization: Quantization | None = None) -> int:
        """A model input of this shape in the network's own activation dtype, and scale unless another is given."""
        self.inputs.append(self._tensor(shape, self.dtype, quantization or self.quantization, name=name))
        return self.inputs[-1]

    def constant(self, values: Numbers, quantization: Quantization | None = None, name: str = "") -> int:
        """A constant with these values; its dtype is the array's."""
        data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        return self._tensor(values.shape, str(values.dtype), quantization, data=data, name=name)

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        *shapes: tuple[int, ...],
        options: Table = None,
        version: int | None = None,
        dtype: str | None = None,
        quantization: Quantization | None = None,
    ) -> int:
        """Any operator: makes one tensor per shape; returns the first."""
        dtype = dtype or self.dtype
        quantization = quantization if dtype != self.dtype or quantization else self.quantization
        outputs = tuple(self._tensor(shape, dtype, quantization) for shape in shapes)
        version = version or (2 if dtype == "int8" else 1)
        self.operators.append(Operator(kind, tuple(inputs), outputs, version, options))
        return outputs[0]

    def conv(
        self,
        x: int,
        channels: int,
        window: _PAIR = (3, 3),
        *,
        stride: _PAIR = (1, 1),
        dilation: _PAIR = (1, 1),
        same: bool = True,
        activation: str = "NONE",
        bias: bool = True,
        depthwise: bool = False,
    ) -> int:
        """A convolution to `channels`; `depthwise` keeps its input's channels apart (a multiple of them comes out)."""
        _, height, width, depth = self.shape(x)
        rows, columns = window
        shape = (1, rows, columns, channels) if depthwise else (channels, rows, columns, depth)
        spread = rows * columns * (1 if depthwise else depth)
        operands = [x, *self._weights(x, shape, 3 if depthwise else 0, spread, bias=bias)]
        tables = schema.tables()
        fields = {
            "padding": 0 if same else 1,
            "strideH": stride[0],
            "strideW": stride[1],
            "dilationHFactor": dilation[0],
            "dilationWFactor": dilation[1],
            "fusedActivationFunction": _ACTIVATIONS[activation],
        }
        options = (
            tables.DepthwiseConv2DOptionsT(depthMultiplier=channels // depth, **fields)
            if depthwise
            else tables.Conv2DOptionsT(**fields)
        )
        out = [
            _out(n, w, s, d, same=same) for n, w, s, d in zip((height, width), window, stride, dilation, strict=True)
        ]
        made = (self.shape(x)[0], *out, channels)
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        version = {"int8": 3, "dynamic": 6 if depthwise else 5}.get(self.precision, 2 if depthwise else 1)
        return self.operator(kind, operands, made, options=options, version=version)

    def depthwise(
        self, x: int, window: _PAIR = (3, 3), *, stride: _PAIR = (1, 1), multiplier: int = 1, activation: str = "NONE"
    ) -> int:
        """A depthwise convolution with SAME padding."""
        channels = self.shape(x)[3] * multiplier
        return self.conv(x, channels, window, stride=stride, activation=activation, depthwise=True)

    def fully_connected(self, x: int, outputs: int, *, activation: str = "NONE", bias: bool = True) -> int:
        """A fully connected layer over the last axis of `x`."""
        inputs = self.shape(x)[-1]
        operands = [x, *self._weights(x, (outputs, inputs), 0, inputs, bias=bias)]
        options = schema.tables().FullyConnectedOptionsT(
            fusedActivationFunction=_ACTIVATIONS[activation],
            keepNumDims=len(self.shape(x)) > 2,
            asymmetricQuantizeInputs=self.precision == "dynamic",
        )
        version = {"int8": 4, "dynamic": 9}.get(self.precision, 1)
        shape = (*self.shape(x)[:-1], outputs)
        return self.operator("FULLY_CONNECTED", operands, shape, options=options, version=version)

    def pool(
        self, x: int, window: _PAIR = (2, 2), *, stride: _PAIR = (2, 2), same: bool = False, average: bool = False
    ) -> int:
        """A pool by maximum or average."""
        batch, height, width, depth = self.shape(x)
        options = schema.tables().Pool2DOptionsT(
            padding=0 if same else 1,
            strideH=stride[0],
            strideW=stride[1],
            filterHeight=window[0],
            filterWidth=window[1],
        )
        out = [_out(n, w, s, 1, same=same) for n, w, s in zip((height, width), window, stride, strict=True)]
        kind = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
        return self.operator(kind, [x], (batch, *out, depth), options=options)

    def unary(self, kind: str, x: int) -> int:
        """An operator on each element: RELU, RELU6, LOGISTIC, HARD_SWISH, ..."""
        options = {"HARD_SWISH": "HardSwishOptionsT", "ABS": "AbsOptionsT", "LEAKY_RELU": "LeakyReluOptionsT"}.get(kind)
        made = getattr(schema.tables(), options)() if options else None
        return self.operator(kind, [x], self.shape(x), options=made)

    def binary(self, kind: str, a: int, b: int, *, activation: str = "NONE") -> int:
        """ADD, SUB, MUL or DIV of two tensors of one shape, or of a tensor and a smaller constant."""
        made = getattr(schema.tables(), f"{kind.capitalize()}OptionsT")(
            fusedActivationFunction=_ACTIVATIONS[activation]
        )
        return self.operator(kind, [a, b], max(self.shape(a), self.shape(b), key=math.prod), options=made)

    def add(self, a: int, b: int, *, activation: str = "NONE") -> int:
        """The sum of two tensors."""
        return self.binary("ADD", a, b, activation=activation)

    def concat(self, *parts: int, axis: int = 3) -> int:
        """Tensors one behind the other along an axis."""
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        options = schema.tables().ConcatenationOptionsT(axis=axis)
        return self.operator("CONCATENATION", parts, tuple(shape), options=options)

    def pad(self, x: int, *amounts: _PAIR) -> int:
        """Zeros (the zero point where quantised) around a tensor: (before, after) for every axis."""
        table = self.constant(np.asarray(amounts, np.int32))
        shape = tuple(n + sum(pair) for n, pair in zip(self.shape(x), amounts, strict=True))
        return self.operator("PAD", [x, table], shape, options=schema.tables().PadOptionsT())

    def reshape(self, x: int, *shape: int) -> int:
        """The same elements in another shape."""
        table = self.constant(np.asarray(shape, np.int32))
        options = schema.tables().ReshapeOptionsT(newShape=np.asarray(shape, np.int32))
        return self.operator("RESHAPE", [x, table], shape, options=options, version=1)

    def mean(self, x: int, *, keep: bool = False) -> int:
        """The mean over rows and columns."""
        batch, _, _, depth = self.shape(x)
        table = self.constant(np.asarray((1, 2), np.int32))
        shape = (batch, 1, 1, depth) if keep else (batch, depth)
        return self.operator("MEAN", [x, table], shape, options=schema.tables().ReducerOptionsT(keepDims=keep))

    def softmax(self, x: int) -> int:
        """Probabilities over the last axis; quantised ones have the scale 1/256 that the runtime asks for."""
        zero_point = {"int8": -128, "uint8": 0}.get(self.precision)
        quantization = None if zero_point is None else Quantization((1 / 256,), (zero_point,))
        options = schema.tables().SoftmaxOptionsT(beta=1.0)
        return self.operator("SOFTMAX", [x], self.shape(x), options=options, quantization=quantization)

    def depth_to_space(self, x: int, block: int) -> int:
        """Channels moved into blocks of places."""
        batch, height, width, depth = self.shape(x)
        shape = (batch, height * block, width * block, depth // block**2)
        options = schema.tables().DepthToSpaceOptionsT(blockSize=block)
        return self.operator("DEPTH_TO_SPACE", [x], shape, options=options)

    def _weights(self, x: int, shape: tuple[int, ...], axis: int, spread: int, *, bias: bool) -> list[int]:
        """Weights and bias for input `x` in this precision, outputs along `axis`; each sums `spread` products."""
        scale, channels = 1 / math.sqrt(spread), shape[axis]
        source = self.tensors[x].quantization
        read = source.scale[0] if source is not None else _SCALE
        if self.precision in ("float32", "float16"):
            values = self.random.normal(0, 1.4 * self.gain * scale, shape).astype(np.float32)
            made = [self._float16(values)] if self.precision == "float16" else [self.constant(values)]
            return made + ([self.constant(self._normal(channels))] if bias else [-1])
        lows = {"uint8": (0, 256, np.uint8)}.get(self.precision, (-127, 128, np.int8))
        values = self.random.integers(lows[0], lows[1], shape).astype(lows[2])
        if self.precision == "uint8":
            weights = Quantization((float(np.float32(_UNIT * self.gain * scale * _SCALE / read)),), (128,))
        else:
            scales = _UNIT * self.gain * scale * _SCALE / read * self.random.uniform(0.7, 1.3, channels)
            weights = Quantization(tuple(float(np.float32(s)) for s in scales), (0,) * channels, axis)
        made = [self.constant(values, weights)]
        if not bias:
            return [*made, -1]
        if self.precision == "dynamic":
            return [*made, self.constant(self._normal(channels))]
        summed = Quantization(tuple(float(np.float32(read * s)) for s in weights.scale), (0,) * len(weights.scale), 0)
        return [*made, self.constant(self.random.integers(-4000, 4000, channels).astype(np.int32), summed)]

    def _normal(self, count: int) -> Numbers:
        """Small float32 biases."""
        return self.random.normal(0, 0.3, count).astype(np.float32)

    def _float16(self, values: Numbers) -> int:
        """A float16 constant and the operator that dequantises it."""
        half = self.constant(values.astype(np.float16))
        options = schema.tables().DequantizeOptionsT()
        return self.operator("DEQUANTIZE", [half], values.shape, options=options, version=3, dtype="float32")

    def _tensor(
        self,
        shape: tuple[int, ...],
        dtype: str,
        quantization: Quantization | None = None,
        data: npt.NDArray[np.uint8] | None = None,
        name: str = "",
    ) -> int:
        """A new tensor."""
        made = Tensor(name or f"t{len(self.tensors)}", tuple(shape), dtype, quantization, data)
        self.tensors.append(made)
        return len(self.tensors) - 1


def _out(size: int, window: int, stride: int, dilation: int, *, same: bool) -> int:
    """The output size of one axis of a window."""
    return -(-size // stride) if same else (size - (window - 1) * dilation - 1) // stride + 1


def random_inputs(graph: Graph, random: np.random.Generator) -> dict[int, Numbers]:
    """Random values for every input of a graph, by tensor index: normal floats, the whole range of integers."""
    made: dict[int, Numbers] = {}
    for index in graph.inputs:
        tensor = graph.tensors[index]
        dtype = np.dtype(tensor.dtype)
        if dtype.kind == "f":
            made[index] = random.normal(0, 1, tensor.shape).astype(dtype)
        elif dtype.kind == "b":
            made[index] = random.integers(0, 2, tensor.shape).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            made[index] = random.integers(max(limits.min, -1000), min(limits.max, 1000) + 1, tensor.shape).astype(dtype)
    return made
