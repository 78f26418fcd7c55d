"""`python -m tools.split_check MODEL... [--parts N] [--runs K]`: every split of every operator and of fused runs.

Each split is judged at its own merged tensors, fed with those of one run of the whole model: equal bytes, or for
float partial sums at most 1e-5 of the tensor's largest magnitude. Exits 1 if an executed split was outside its class.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from meshnn.errors import ModelError
from meshnn.graph import cut
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.splits.balance import balanced
from meshnn.graph.splits.boxes import Box, even_shares, parts_of
from meshnn.graph.splits.layout import Split, layout, refusal, share_lengths
from meshnn.graph.splits.merge import activation_of, exact, lay, total
from meshnn.graph.splits.shard import shard
from tools.cut_check import open_model
from tools.run_graph import Array, run_graph

TOLERANCE = 1e-5
SPLITS: tuple[Split, ...] = ("output", "input", "spatial")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one split: its error relative to the largest magnitude (0.0 if every byte was equal)."""

    first: int
    last: int
    split: Split
    shares: tuple[int, ...]
    error: float

    @property
    def good(self) -> bool:
        """Whether it was within its class."""
        return self.error == 0.0 if exact(self.split) else self.error <= TOLERANCE


def values_of(graph: Graph, inputs: dict[int, Array]) -> dict[int, Array]:
    """Every activation that can cross a boundary, as one run of the whole model makes it."""
    known = cut.flow(graph)
    crossing = {
        t for p in range(1, len(graph.operators)) if not cut.refusal(graph, p, known) for t in cut.live(graph, p, known)
    }
    kept = tuple(t for t in sorted(crossing.union(graph.outputs)) if t not in graph.inputs)
    probe = dataclasses.replace(graph, outputs=kept)
    return {**inputs, **run_graph(probe, inputs)}


def run_split(
    graph: Graph, card: Card, first: int, last: int, split: Split, shares: tuple[int, ...], values: dict[int, Array]
) -> Outcome:
    """Run all parts of one split and compare what they merge to with the same operators whole."""
    whole_part = cut.fragment(graph, first, last)
    needed, given = card.fragment_inputs(first, last), card.fragment_outputs(first, last)
    whole_made = run_graph(whole_part, {i: values[t] for i, t in zip(whole_part.inputs, needed, strict=True)})
    expected = {t: whole_made[i] for i, t in zip(whole_part.outputs, given, strict=True)}
    pieces: dict[int, list[tuple[Box, Array]]] = collections.defaultdict(list)
    for part in range(parts_of(shares)):
        plan = layout(card, first, last, split, shares, part)
        made = shard(graph, first, last, split, part, shares, card)
        fed = {i: _piece(values[t], box) for i, (t, box) in zip(made.inputs, plan.needs.items(), strict=True)}
        answers = run_graph(made, fed)
        for i, (t, box) in zip(made.outputs, plan.gives.items(), strict=True):
            pieces[t].append((box, answers[i]))
    return Outcome(first, last, split, shares, max(_error(card, last, split, pieces[t], expected[t]) for t in given))


def _piece(values: Array, box: Box) -> Array:
    """What lies in a box."""
    return np.ascontiguousarray(values[tuple(slice(start, stop) for start, stop in box)])


def _error(card: Card, last: int, split: Split, pieces: list[tuple[Box, Array]], expected: Array) -> float:
    """How far merged pieces are from what was expected, relative to its largest magnitude."""
    if split == "input":
        merged: Array = total([np.asarray(values, np.float32) for _, values in pieces], activation_of(card, last))
    else:
        merged = lay(expected.shape, str(expected.dtype), pieces)
    if merged.tobytes() == expected.tobytes():
        return 0.0
    gap = np.abs(merged.astype(np.float64) - expected.astype(np.float64)).max()
    return float(max(gap, 1e-300) / max(float(np.abs(expected.astype(np.float64)).max()), 1e-30))


def candidates(card: Card, parts: int, most_runs: int) -> Iterator[tuple[int, int, Split]]:
    """Every single operator under every split, then the fused runs with the most work, longest first."""
    total_operators = len(card.operators)
    for split in SPLITS:
        for index in range(total_operators):
            if not card.operators[index].constant:
                yield _after_constants(card, index), index, split
    runs: list[tuple[float, int, int, Split]] = []
    for split in SPLITS:
        for first in range(total_operators):
            ends = range(first + 1, min(first + 12, total_operators))
            runs += [(card.work(first, e) / parts, first, e, split) for e in ends if not refusal(card, first, e, split)]
    for _, first, last, split in sorted(runs, reverse=True)[:most_runs]:
        yield first, last, split


def _after_constants(card: Card, index: int) -> int:
    """Where a stage of one operator begins: with the constants before it where nothing else is."""
    return 0 if all(operator.constant for operator in card.operators[:index]) else index


def check(path: Path, parts: int, most_runs: int = 40) -> tuple[list[Outcome], dict[str, int]]:
    """(what came of every split that runs, how often each reason refused one) for one model."""
    graph, inputs = open_model(path)
    card = card_of(graph, "", 0, path.stem)
    values = values_of(graph, inputs)
    outcomes: list[Outcome] = []
    refused: dict[str, int] = collections.Counter()
    for first, last, split in candidates(card, parts, most_runs):
        reason = refusal(card, first, last, split)
        if reason is None:
            lengths = share_lengths(card, first, last, split)
            shares = even_shares(lengths[0], min(parts, lengths[0]))
            if split == "spatial" and lengths[0] >= parts:
                shares = balanced(card, first, last, split, (1.0,) * parts) or shares
            reason = refusal(card, first, last, split, shares)
        if reason is None:
            outcomes.append(run_split(graph, card, first, last, split, shares, values))
        else:
            refused[f"{split}: {re.sub(r'operator [0-9]+ ', '', reason.split(': ', 1)[-1])}"] += 1
    return outcomes, refused


def main(arguments: list[str] | None = None) -> int:
    """Check the models named on the command line; 0 if every split was within its class."""
    parser = argparse.ArgumentParser(prog="tools.split_check", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--refusals", action="store_true", help="list the reasons of refusals too")
    options = parser.parse_args(arguments)
    failed = False
    print(f"{'model':52} {'split':8} {'parts':>5} {'ran':>5} {'equal':>6} {'largest error':>14} {'outside':>8}")
    for path in options.models:
        try:
            outcomes, refused = check(path, options.parts, options.runs)
        except (ModelError, RuntimeError, ValueError) as error:
            print(f"{path.stem[:52]:52} {error}")
            failed = True
            continue
        for split in SPLITS:
            mine = [outcome for outcome in outcomes if outcome.split == split]
            bad = [outcome for outcome in mine if not outcome.good]
            equal = sum(outcome.error == 0.0 for outcome in mine)
            largest = max((outcome.error for outcome in mine), default=0.0)
            row = f"{split:8} {options.parts:5} {len(mine):5} {equal:6} {largest:14.1e} {len(bad):8}"
            print(f"{path.stem[:52]:52} {row}")
            for outcome in bad:
                print(f"    operators {outcome.first} to {outcome.last}, {list(outcome.shares)}: {outcome.error:.1e}")
            failed = failed or bool(bad)
        if options.refusals:
            for reason, count in sorted(refused.items(), key=lambda item: -item[1]):
                print(f"    refused {count} times, {reason}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
