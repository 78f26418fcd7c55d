"""`python -m tools.cut_check MODEL...`: cut at every boundary, run both parts, compare every output byte.

Exits 1 if a boundary gave other bytes than the whole model, or was refused for anything but a shape or a size that
only the run determines.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from meshnn.errors import ModelError
from meshnn.graph import cut
from meshnn.graph.builder import random_inputs
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.shapes import with_shapes
from tools.run_graph import Array, run_bytes, run_graph, shapes_after_run


@dataclass
class Tally:
    """What became of every boundary of one model."""

    equal: int = 0
    unequal: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    nothing: list[int] = field(default_factory=list)

    @property
    def boundaries(self) -> int:
        """How many boundaries there are."""
        return self.equal + len(self.unequal) + len(self.refused) + len(self.nothing)

    @property
    def clean(self) -> bool:
        """Whether nothing differed and nothing was refused but for the run."""
        return not self.unequal and all("only the run determines" in reason for reason in self.refused.values())


def open_model(path: Path, seed: int = 0) -> tuple[Graph, dict[int, Array]]:
    """(graph with the shapes of one run, random inputs by tensor index) of a file."""
    graph = read(np.memmap(path, np.uint8, "r"), name=path.name)
    inputs = random_inputs(graph, np.random.default_rng(seed))
    reported = shapes_after_run(path.read_bytes(), [inputs[t] for t in graph.inputs])
    return with_shapes(graph, reported), inputs


def check(path: Path, seed: int = 0, *, step: int = 1) -> Tally:
    """Cut one model at every `step`-th boundary; its outputs are compared with the whole file's."""
    graph, inputs = open_model(path, seed)
    whole = dict(zip(graph.outputs, run_bytes(path.read_bytes(), [inputs[t] for t in graph.inputs]), strict=True))
    known = cut.flow(graph)
    tally = Tally()
    for position in range(1, len(graph.operators), step):
        reason = cut.refusal(graph, position, known)
        if reason is None:
            if _equal(graph, position, inputs, whole):
                tally.equal += 1
            else:
                tally.unequal.append(position)
        elif "nothing to run" in reason:
            tally.nothing.append(position)
        else:
            tally.refused[position] = reason
    return tally


def _equal(graph: Graph, position: int, inputs: dict[int, Array], whole: dict[int, Array]) -> bool:
    """Whether head and tail around a boundary give the whole model's bytes."""
    values = dict(inputs)
    for first, last in ((0, position - 1), (position, len(graph.operators) - 1)):
        part = cut.fragment(graph, first, last)
        needed = cut.fragment_inputs(graph, first, last)
        given = cut.fragment_outputs(graph, first, last)
        made = run_graph(part, {mine: values[t] for mine, t in zip(part.inputs, needed, strict=True)})
        values.update({t: made[mine] for mine, t in zip(part.outputs, given, strict=True)})
    return all(
        values[t].dtype == whole[t].dtype
        and values[t].shape == whole[t].shape
        and values[t].tobytes() == whole[t].tobytes()
        for t in graph.outputs
    )


def main(arguments: list[str] | None = None) -> int:
    """Check the models named on the command line; 0 if every cut is exact."""
    parser = argparse.ArgumentParser(prog="tools.cut_check", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    total, failed = Tally(), False
    print(f"{'model':60} {'cuts':>5} {'equal':>6} {'unequal':>8} {'refused':>8} {'nothing to run':>15}")
    for path in options.models:
        try:
            tally = check(path, options.seed)
        except (ModelError, RuntimeError, ValueError) as error:
            print(f"{path.stem[:60]:60} {error}")
            failed = True
            continue
        counts = (tally.equal, len(tally.unequal), len(tally.refused), len(tally.nothing))
        print(f"{path.stem[:60]:60} {tally.boundaries:5} {counts[0]:6} {counts[1]:8} {counts[2]:8} {counts[3]:15}")
        for position, reason in tally.refused.items():
            print(f"    boundary {position}: {reason}")
        for position in tally.unequal:
            print(f"    boundary {position}: other bytes than the whole model")
        failed = failed or not tally.clean
        total.equal += tally.equal
        total.unequal += tally.unequal
        total.nothing += tally.nothing
        total.refused.update({len(total.refused) + i: reason for i, reason in enumerate(tally.refused.values())})
    counts = (total.equal, len(total.unequal), len(total.refused), len(total.nothing))
    print(f"{'all':60} {total.boundaries:5} {counts[0]:6} {counts[1]:8} {counts[2]:8} {counts[3]:15}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
