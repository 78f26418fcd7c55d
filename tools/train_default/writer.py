"""Layers to the bytes of a TFLite file, in float32 or in integers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tools.train_default.layers import ENTRY, Layer
from tools.train_default.quantise import Scale, quantised_bias, quantised_weights

ALIGNMENT = 16
"""Bytes; the schema asks for it on every buffer."""

_BYTE_INPUT = Scale(np.array([1 / 128], np.float32), 128)
_BYTE_OUTPUT = Scale(np.array([1 / 256], np.float32), 0)
_VERSIONS = {"conv": 3, "pool": 2, "add": 2, "mean": 2, "dense": 4, "softmax": 2, "quantize": 2}
_CODES = {
    "conv": schema.BuiltinOperator.CONV_2D,
    "pool": schema.BuiltinOperator.AVERAGE_POOL_2D,
    "add": schema.BuiltinOperator.ADD,
    "mean": schema.BuiltinOperator.MEAN,
    "dense": schema.BuiltinOperator.FULLY_CONNECTED,
    "softmax": schema.BuiltinOperator.SOFTMAX,
    "quantize": schema.BuiltinOperator.QUANTIZE,
}


@dataclass(slots=True)
class _Sheet:
    """A model being written: its tensors, buffers and operators so far."""

    scales: Mapping[str, Scale] | None
    tensors: list[Any] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=lambda: [b""])
    operators: list[Any] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def tensor(
        self, name: str, shape: tuple[int, ...], data: NDArray[Any] | None, kind: int, scale: Scale | None
    ) -> int:
        """Add a tensor, constant where there is `data`; its number."""
        made = schema.TensorT()
        made.name, made.shape, made.type = name, list(shape), kind
        if data is not None:
            made.buffer = len(self.buffers)
            self.buffers.append(data.tobytes())
        else:
            made.buffer = 0
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = scale.scale
            made.quantization.zeroPoint = np.full(len(scale.scale), scale.zero_point, np.int64)
        self.tensors.append(made)
        self.numbers[name] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def activation(self, name: str, shape: tuple[int, ...]) -> int:
        """Add a tensor that is computed, int8 where the model is quantised."""
        if self.scales is None:
            return self.tensor(name, shape, None, schema.TensorType.FLOAT32, None)
        return self.tensor(name, shape, None, schema.TensorType.INT8, self.scales[name])

    def operator(self, kind: str, entries: list[int], exits: list[int], options: tuple[int, Any] | None) -> None:
        """Add an operator."""
        made = schema.OperatorT()
        if kind not in self.kinds:
            self.kinds.append(kind)
        made.opcodeIndex, made.inputs, made.outputs = self.kinds.index(kind), entries, exits
        if options is not None:
            made.builtinOptionsType, made.builtinOptions = options
        self.operators.append(made)


def float_model(layers: tuple[Layer, ...], side: int, metadata: bytes) -> bytes:
    """The float32 file: input float32 [1, side, side, 3], output probabilities float32 [1, classes]."""
    sheet = _Sheet(None)
    entry = sheet.activation(ENTRY, (1, side, side, 3))
    for layer in layers:
        _add_layer(sheet, layer)
    return _packed(sheet, entry, sheet.numbers[layers[-1].name], metadata)


def integer_model(layers: tuple[Layer, ...], side: int, scales: Mapping[str, Scale], metadata: bytes) -> bytes:
    """The integer file: input uint8 [1, side, side, 3] (a photo's bytes), output uint8 [1, classes] (1/256 each).

    Inside, everything is int8: the first operator moves the bytes down by 128 and the last one moves them up again.
    """
    sheet = _Sheet(scales)
    entry = sheet.tensor("image", (1, side, side, 3), None, schema.TensorType.UINT8, _BYTE_INPUT)
    sheet.operator("quantize", [entry], [sheet.activation(ENTRY, (1, side, side, 3))], None)
    for layer in layers:
        _add_layer(sheet, layer)
    last = layers[-1]
    answer = sheet.tensor(f"{last.name}_bytes", last.shape, None, schema.TensorType.UINT8, _BYTE_OUTPUT)
    sheet.operator("quantize", [sheet.numbers[last.name]], [answer], None)
    return _packed(sheet, entry, answer, metadata)


def _add_layer(sheet: _Sheet, layer: Layer) -> None:
    """Add one layer's constants, output tensor and operator."""
    entries = [sheet.numbers[name] for name in layer.entries]
    if layer.weights is not None:
        entries += _add_weights(sheet, layer)
    if layer.kind == "mean":
        axes = np.array([1, 2], np.int32)
        entries.append(sheet.tensor(f"{layer.name}/axes", (2,), axes, schema.TensorType.INT32, None))
    made = sheet.activation(layer.name, layer.shape)
    sheet.operator(layer.kind, entries, [made], _options(layer))


def _add_weights(sheet: _Sheet, layer: Layer) -> list[int]:
    """Add a layer's weights and bias; their numbers."""
    assert layer.weights is not None
    assert layer.bias is not None
    if sheet.scales is None:
        kind = schema.TensorType.FLOAT32
        weights = sheet.tensor(f"{layer.name}/weights", layer.weights.shape, layer.weights, kind, None)
        return [weights, sheet.tensor(f"{layer.name}/bias", layer.bias.shape, layer.bias, kind, None)]
    small, scale = quantised_weights(layer.weights, per_channel=layer.kind == "conv")
    bias, bias_scale = quantised_bias(layer.bias, sheet.scales[layer.entries[0]], scale)
    weights = sheet.tensor(f"{layer.name}/weights", small.shape, small, schema.TensorType.INT8, scale)
    return [weights, sheet.tensor(f"{layer.name}/bias", bias.shape, bias, schema.TensorType.INT32, bias_scale)]


def _options(layer: Layer) -> tuple[int, Any]:
    """The operator's options and their type."""
    relu = schema.ActivationFunctionType.RELU if layer.relu else schema.ActivationFunctionType.NONE
    options: Any
    if layer.kind == "conv":
        options = schema.Conv2DOptionsT()
        options.strideH = options.strideW = layer.stride
        options.dilationHFactor = options.dilationWFactor = 1
        options.padding, options.fusedActivationFunction = schema.Padding.SAME, relu
        return schema.BuiltinOptions.Conv2DOptions, options
    if layer.kind == "pool":
        options = schema.Pool2DOptionsT()
        options.strideH = options.strideW = options.filterHeight = options.filterWidth = layer.stride
        options.padding, options.fusedActivationFunction = schema.Padding.VALID, relu
        return schema.BuiltinOptions.Pool2DOptions, options
    if layer.kind == "add":
        options = schema.AddOptionsT()
        options.fusedActivationFunction = relu
        return schema.BuiltinOptions.AddOptions, options
    if layer.kind == "mean":
        return schema.BuiltinOptions.ReducerOptions, schema.ReducerOptionsT()
    if layer.kind == "dense":
        return schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT()
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return schema.BuiltinOptions.SoftmaxOptions, options


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose data keeps the alignment that the schema asks for, copied in one piece."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 - the schema's name
        """Write the buffer; its offset."""
        if not self.data:
            schema.BufferStart(builder)
            return int(schema.BufferEnd(builder))
        count = len(self.data)
        builder.StartVector(1, count, ALIGNMENT)
        builder.head = builder.head - count
        memoryview(builder.Bytes)[builder.head : builder.head + count] = self.data
        builder.vectorNumElems = count
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


def _packed(sheet: _Sheet, entry: int, answer: int, metadata: bytes) -> bytes:
    """The finished file, identifier TFL3."""
    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.operators = "main", sheet.tensors, sheet.operators
    graph.inputs, graph.outputs = [entry], [answer]
    model = schema.ModelT()
    model.version, model.description, model.subgraphs = 3, "meshnn default model", [graph]
    model.operatorCodes = [_code(kind) for kind in sheet.kinds]
    note = schema.MetadataT()
    note.name, note.buffer = "TFLITE_METADATA", len(sheet.buffers)
    model.metadata = [note]
    model.buffers = []
    for data in [*sheet.buffers, metadata]:
        buffer = _AlignedBuffer()
        buffer.data = data
        model.buffers.append(buffer)
    builder = flatbuffers.Builder(sum(len(data) + 64 for data in sheet.buffers) + len(metadata) + (1 << 18))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _code(kind: str) -> schema.OperatorCodeT:
    """The operator code of a kind, in the old field and the new one."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _CODES[kind]
    code.version = _VERSIONS[kind]
    return code
