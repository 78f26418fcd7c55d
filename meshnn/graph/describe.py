"""Graph to card: everything a planner needs, computed once where the file is."""

from __future__ import annotations

from meshnn.errors import ModelError
from meshnn.graph import cut, metadata
from meshnn.graph.card import (
    CARD_VERSION,
    Card,
    CardOperator,
    CardQuantization,
    CardTensor,
    Normalisation,
)
from meshnn.graph.cost import cost_of
from meshnn.graph.geometry import facts_of, opaque
from meshnn.graph.ir import Graph


def card_of(graph: Graph, digest: str, size_bytes: int, name: str) -> Card:
    """The card of a model: `digest` is the sha256 of its file in hex, `size_bytes` the file's length.

    Labels and normalisation come from the file's own metadata; metadata that cannot be read is noted, not fatal.
    """
    known = cut.flow(graph)
    tensors = {t: _tensor(graph, t, known) for t in sorted({*known.producer, *graph.inputs, *graph.outputs})}
    notes: list[str] = []
    labels: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    normalisation: Normalisation | None = None
    try:
        output_names = metadata.output_names_of(graph)
        normalisation = metadata.normalisation_of(graph)
        labels = metadata.labels_of(graph)
    except ModelError as error:
        notes.append(str(error))
    refused = {
        position: reason
        for position in range(1, len(graph.operators))
        if (reason := cut.refusal(graph, position, known)) is not None
    }
    return Card(
        version=CARD_VERSION,
        digest=digest,
        name=name,
        size_bytes=size_bytes,
        inputs=tuple(tensors[t] for t in graph.inputs),
        outputs=tuple(tensors[t] for t in graph.outputs),
        operators=_operators(graph, known),
        tensors=tuple(tensors.values()),
        refused=refused,
        labels=labels,
        normalisation=normalisation,
        output_names=output_names,
        notes=tuple(notes),
    )


def _tensor(graph: Graph, index: int, known: cut.Flow) -> CardTensor:
    """One activation's row."""
    tensor = graph.tensors[index]
    constant = index in known.constants
    quantization = None
    if tensor.quantization is not None and len(tensor.quantization.scale) == 1:
        quantization = CardQuantization(tensor.quantization.scale[0], tensor.quantization.zero_point[0])
    return CardTensor(
        index=index,
        name=tensor.name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        size_bytes=tensor.size_bytes,
        producer=len(graph.operators) - 1 if constant else known.producer.get(index, -1),
        consumers=() if constant else known.consumers.get(index, ()),
        quantization=quantization,
        known=tensor.shape_known,
    )


def _operators(graph: Graph, known: cut.Flow) -> tuple[CardOperator, ...]:
    """All operators' rows."""
    makers = {t: i for i in known.constant_operators for t in graph.operators[i].outputs}
    depends: dict[int, tuple[int, ...]] = {}
    rows: list[CardOperator] = []
    for index, operator in enumerate(graph.operators):
        near = {makers[t] for t in operator.inputs if t in makers}
        depends[index] = tuple(sorted(near.union(*(depends[i] for i in near))))
        constant = index in known.constant_operators
        cost = cost_of(graph, operator)
        made_by = {t: graph.operators[makers[t]] for t in operator.inputs if t in makers}
        facts = opaque("only computes constants") if constant else facts_of(graph, operator, made_by)
        rows.append(
            CardOperator(
                kind=operator.kind,
                inputs=tuple(t for t in operator.inputs if t in known.producer),
                outputs=tuple(t for t in operator.outputs if t in known.producer),
                macs=cost.macs,
                weight_bytes=cost.weight_bytes,
                activation_bytes=cost.activation_bytes,
                work=cost.work,
                constant=constant,
                depends=depends[index],
                scratch_bytes=sum(graph.tensors[t].size_bytes for t in operator.outputs) if constant else 0,
                geometry=facts.geometry,
                no_output=facts.no_output,
                no_input=facts.no_input,
                no_spatial=facts.no_spatial,
            )
        )
    return tuple(rows)
