"""An answered input, as people and scripts get it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meshnn.cluster.member import DeviceId
from meshnn.errors import MeshError
from meshnn.graph.card import Card
from meshnn.node import reports
from meshnn.node.dataplane import Outcome
from meshnn.predictions import predictions as predictions_of

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered input: the JSON line's fields, and the raw tensors by name as they went in and came out."""

    report: dict[str, object]
    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked: the input's name, the model's, how many predictions."""

    source: str
    model: str
    top: int


async def answer_of(
    question: Question, card: Card, inputs: Arrays, outcome: Outcome, latency_s: float, names: Mapping[DeviceId, str]
) -> Answer:
    """The answer of an outcome; `names` are the devices' names by id."""
    outputs = {tensor.name: outcome.outputs[tensor.index] for tensor in card.outputs}
    predictions = await asyncio.to_thread(predictions_of, outputs, card, question.top)
    report: dict[str, object] = {
        "input": question.source,
        "ok": True,
        "model": question.model,
        "predictions": [{"index": p.index, "label": p.label, "score": p.score} for p in predictions],
        "latency_ms": round(latency_s * 1000, 3),
        "attempts": outcome.attempts,
        "exact": outcome.exact,
        "plan": reports.plan_of(outcome, names),
    }
    return Answer(report, inputs, outputs)


def failure_report(source: str, error: MeshError) -> dict[str, object]:
    """The JSON line of an input that was not answered."""
    return {"input": source, "ok": False, "error": {"code": error.code, "message": str(error)}}


def npz_of(answer: Answer) -> bytes:
    """The raw tensors of an answer as an npz file: `input:NAME` and `output:NAME`."""
    named: dict[str, npt.NDArray[np.generic]] = {f"input:{name}": array for name, array in answer.inputs.items()}
    named |= {f"output:{name}": array for name, array in answer.outputs.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **named)
    return buffer.getvalue()
