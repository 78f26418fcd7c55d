"""`python -m tools.split_time MODEL`: how long the parts of a split take beside the whole, on this machine.

First the operators up to `--last` split spatially over four parts: in equal rows, in rows by cost, in tiles of two by
two. Then every convolution split in two by output channels. All parts and the whole take turns in one process, on one
thread; a part's figure is the median over the rounds of its processor time divided by the whole's of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshnn.cli.check import open_bench
from meshnn.device import runtime
from meshnn.device.runtime import Array, TensorInterpreter
from meshnn.graph.ir import Graph
from meshnn.graph.splits.balance import balanced, proportional
from meshnn.graph.splits.boxes import parts_of
from meshnn.graph.splits.layout import Split, layout, refusal, share_lengths
from meshnn.graph.splits.shard import shard
from meshnn.graph.writer import write
from meshnn.node.check import Bench

PARTS = 4
WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Timed:
    """A run of operators, how it was divided, and each part's time as a share of the whole's (median and quartiles)."""

    title: str
    whole_ms: float
    parts: tuple[float, ...]
    spread: tuple[tuple[float, float], ...]

    @property
    def line(self) -> str:
        """One row of the table."""
        parts = ", ".join(f"{part:.3f}" for part in self.parts)
        slowest = self.parts.index(max(self.parts))
        low, high = self.spread[slowest]
        figures = f"{max(self.parts):.3f} ({low:.3f} to {high:.3f}) | {sum(self.parts):.2f}"
        return f"| {self.title} | {self.whole_ms:.1f} | {parts} | {figures} |"


def interpreter_of(graph: Graph, inputs: Sequence[Array], folder: Path, name: str) -> TensorInterpreter:
    """An interpreter of one thread over a graph's file, its inputs set."""
    path = folder / f"{name}.tflite"
    with path.open("wb") as file:
        for chunk in write(graph).chunks():
            file.write(chunk)
    made = runtime.find().interpreter(path, 1)
    made.allocate_tensors()
    for detail, value in zip(made.get_input_details(), inputs, strict=True):
        made.set_tensor(int(detail["index"]), value)
    return made


def timed(bench: Bench, first: int, last: int, split: Split, shares: tuple[int, ...], title: str, rounds: int) -> Timed:
    """Whole and parts in turns; the order turns round every second time, so that no part always follows another."""
    graph, card = bench.executor.graph, bench.card
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = shard(graph, first, last, "none", 0, (), card)
        running = [interpreter_of(whole, [bench.values[t] for t in card.fragment_inputs(first, last)], folder, "whole")]
        for part in range(parts_of(shares)):
            needs = layout(card, first, last, split, shares, part).needs
            cuts = [
                np.ascontiguousarray(bench.values[t][tuple(slice(*ends) for ends in box)]) for t, box in needs.items()
            ]
            made = shard(graph, first, last, split, part, shares, card)
            running.append(interpreter_of(made, cuts, folder, f"part{part}"))
        times = np.array([_round(running, number) for number in range(rounds + WARM_UP)])[WARM_UP:]
    ratios = times[:, 1:] / times[:, :1]
    quartiles = np.quantile(ratios, (0.25, 0.75), axis=0)
    spread = tuple((float(low), float(high)) for low, high in quartiles.T)
    return Timed(title, statistics.median(times[:, 0]) * 1e3, tuple(np.median(ratios, axis=0).tolist()), spread)


def _round(running: Sequence[TensorInterpreter], number: int) -> list[float]:
    """The processor seconds of each, run once in this round's order."""
    taken = [0.0] * len(running)
    order = range(len(running)) if number % 2 == 0 else range(len(running) - 1, -1, -1)
    for place in order:
        began = time.thread_time()
        running[place].invoke()
        taken[place] = time.thread_time() - began
    return taken


def spatial(bench: Bench, last: int, rounds: int) -> Iterator[Timed]:
    """The first operators over four parts, in rows and in tiles."""
    even = (1.0,) * PARTS
    rows = share_lengths(bench.card, 0, last, "spatial")[0]
    ways = {
        "equal rows": proportional(rows, even, 1),
        "rows by cost": balanced(bench.card, 0, last, "spatial", even) or (),
        "tiles of 2 x 2": balanced(bench.card, 0, last, "spatial", (1.0, 1.0), (1.0, 1.0)) or (),
    }
    for name, shares in ways.items():
        told = ",".join(str(share) for share in shares)
        yield timed(bench, 0, last, "spatial", shares, f"operators 0 to {last}, {name} ({told})", rounds)


def halves(bench: Bench, rounds: int) -> Iterator[Timed]:
    """Every convolution in two by output channels."""
    for index, operator in enumerate(bench.card.operators):
        if operator.kind == "CONV_2D" and refusal(bench.card, index, index, "output") is None:
            shares = balanced(bench.card, index, index, "output", (1.0, 1.0)) or ()
            tensors = bench.card.by_index()
            shape = "x".join(str(size) for size in tensors[operator.inputs[0]].shape[1:])
            title = f"operator {index}, {shape} to {tensors[operator.outputs[0]].shape[-1]} channels, in two"
            yield timed(bench, index, index, "output", shares, title, rounds)


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="tools.split_time", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--last", type=int, default=9, help="the last operator of the spatial run")
    parser.add_argument("--rounds", type=int, default=31, help="how often each is run")
    options = parser.parse_args(arguments)
    print("| What | Whole, ms | Parts / whole | Slowest (quartiles) | Sum |\n|---|---|---|---|---|", flush=True)
    for model in options.models:
        bench = open_bench(model)
        for row in (*spatial(bench, options.last, options.rounds), *halves(bench, options.rounds)):
            print(row.line.replace("| ", f"| {model.stem}: ", 1), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
