"""`python -m tools.split_table MODEL... [--into FILE]`: network x precision x split x parts, as a table in Markdown.

Every split is tried at every operator and on the fused runs that the cost model likes best, in 2, 3 and 4 even parts
and in two of 3 to 1, as `meshnn plan check --all-splits` does it. A cell tells how many ran and were equal in every
byte, or the largest deviation at a merged tensor, or why all were refused. With `--into` the rows of these networks
replace theirs in the file, between `<!-- split table -->` and `<!-- end of split table -->`. Exits 1 if a split was
outside its class.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from meshnn.cli.check import open_bench
from meshnn.errors import MeshError
from meshnn.graph.card import Card
from meshnn.node.check import Bench, Outcome, trials
from tools.marked import put

DIVISIONS: dict[str, tuple[float, ...]] = {"2": (1, 1), "3": (1, 1, 1), "4": (1, 1, 1, 1), "3:1": (3, 1)}
ROWS = ("output", "depthwise", "input", "spatial")
DULL = re.compile("does not sum over its inputs|has no rule for splitting")
MARK = "split table"


def precision_of(card: Card) -> str:
    """What a network computes in, told by the tensors of its dense operators."""
    tensors = card.by_index()
    kinds = ("CONV_2D", "FULLY_CONNECTED", "DEPTHWISE_CONV_2D")
    weighted = [operator for operator in card.operators if operator.kind in kinds]
    types = {tensors[operator.outputs[0]].dtype for operator in weighted}
    if types == {"float32"} and any("dynamic-range" in operator.no_spatial for operator in weighted):
        return "dynamic range"
    if types == {"float32"} and any(operator.kind == "DEQUANTIZE" and operator.constant for operator in card.operators):
        return "float16 weights"
    return ", ".join(sorted(types)) or "none"


def row_of(outcome: Outcome, card: Card) -> str:
    """The row an outcome belongs to: an output split of a depthwise convolution has its own."""
    trial = outcome.trial
    kinds = {op.kind for op in card.operators[trial.first : trial.last + 1] if not op.constant}
    return "depthwise" if trial.split == "output" and kinds == {"DEPTHWISE_CONV_2D"} else trial.split


def cell(outcomes: Sequence[Outcome]) -> str:
    """What came of all trials of one row and one division."""
    if not outcomes:
        return "none there"
    ran = [outcome for outcome in outcomes if outcome.ran]
    bad = sum(not outcome.good for outcome in outcomes)
    if bad:
        return f"**{bad} of {len(outcomes)} outside their class**"
    if not ran:
        reasons = collections.Counter(_short(outcome.trial.refused) for outcome in outcomes)
        # What sums nothing, or has no rule at all, is refused under every split: the others' reason tells more.
        telling = [reason for reason, _ in reasons.most_common() if not DULL.search(reason)]
        return f"refused: {(telling or list(reasons))[0]}"
    worst = max(outcome.error for outcome in ran)
    if worst == 0.0:
        return f"{len(ran)} exact"
    at_outputs = max(outcome.at_outputs or 0.0 for outcome in ran)
    return f"{len(ran)}: max error {worst:.1e} (outputs {at_outputs:.1e})"


def _short(reason: str) -> str:
    """A reason without the place it was given for."""
    return re.sub(r" \(no_split\)$", "", re.sub(r"^(operators? [0-9]+( to [0-9]+)?( \([A-Z0-9_]+\))?: )+", "", reason))


def lines_of(bench: Bench, runs: int) -> Iterator[str]:
    """The table's lines for one network."""
    card = bench.card
    cells: dict[tuple[str, str], list[Outcome]] = collections.defaultdict(list)
    for division, speeds in DIVISIONS.items():
        for trial in trials(card, speeds, runs):
            outcome = bench.judge(trial)
            cells[row_of(outcome, card), division].append(outcome)
        print(f"  {card.name}, {division} parts: done", file=sys.stderr, flush=True)
    name = re.sub(r"_(float32|float16|dynamic|int8)$", "", card.name)
    for row in ROWS:
        found = [cell(cells[row, division]) for division in DIVISIONS]
        if set(found) != {"none there"}:
            yield f"| {name} | {precision_of(card)} | `{row}` | {' | '.join(found)} |"


def table(files: Sequence[Path], runs: int) -> list[str]:
    """The whole table; a file that cannot be opened has one line that says why."""
    head = f"| Network | Precision | Split | {' | '.join(DIVISIONS)} |"
    found = [head, "|" + "---|" * (3 + len(DIVISIONS))]
    for file in files:
        try:
            found += lines_of(open_bench(file), runs)
        except MeshError as error:
            found.append(f"| {file.stem} | | | {error} |" + " |" * (len(DIVISIONS) - 1))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or put it into a file; 0 if no split was outside its class."""
    parser = argparse.ArgumentParser(prog="tools.split_table", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=10, help="fused runs tried of each network and division")
    parser.add_argument("--into", type=Path, help="a Markdown file")
    options = parser.parse_args(arguments)
    lines = table(options.models, options.runs)
    if options.into is not None:
        options.into.write_text(put(options.into.read_text(encoding="utf-8"), MARK, lines), encoding="utf-8")
    else:
        print("\n".join(lines))
    return int(any("outside their class" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
