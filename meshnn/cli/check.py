"""`meshnn plan check`: runs every split of a model, or a plan, on this machine and compares with the whole model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec
import numpy as np

from meshnn.device.once import run_once
from meshnn.device.part import digest_of_file
from meshnn.device.trial import attempt
from meshnn.errors import ModelError
from meshnn.graph.builder import random_inputs
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.shapes import with_shapes
from meshnn.node.check import Bench, Outcome, Trial, Way, trials
from meshnn.plan.explicit import bound, decode
from meshnn.plan.verify import check as verify_plan


def open_bench(file: Path, seed: int = 0) -> Bench:
    """A model file with the tensors of one run on random inputs; on zeros where random ones mean nothing to it.

    Raises ModelError for a file that cannot be read or run.
    """
    if not file.is_file() or file.stat().st_size == 0:
        raise ModelError(f"{file} is no model file")
    graph = read(np.memmap(file, dtype=np.uint8, mode="r"), name=file.stem)
    graph = with_shapes(graph, attempt(file).shapes)
    card = card_of(graph, digest_of_file(file), file.stat().st_size, file.stem)
    try:
        return Bench(graph, card, random_inputs(graph, np.random.default_rng(seed)), run_once)
    except (ModelError, TypeError):
        return Bench(graph, card, _zeros(graph), run_once)


def _zeros(graph: Graph) -> dict[int, np.ndarray]:
    """Zeros for every input."""
    try:
        return {t: np.zeros(graph.tensors[t].shape, graph.tensors[t].dtype) for t in graph.inputs}
    except TypeError as error:
        raise ModelError(f"an input is of a type that cannot be made up: {error}") from None


def check_all_splits(file: Path, speeds: Sequence[float], *, seed: int, as_json: bool) -> bool:
    """Try every split of a model, printing each; whether all that ran were within their class."""
    bench = open_bench(file, seed)
    found = trials(bench.card, speeds)
    tally = Tally(bench.card, len(found), as_json)
    for trial in found:
        tally.add(bench.judge(trial))
    tally.summary(f"{file.stem}, {len(speeds)} parts")
    return tally.good


def check_plan(file: Path, model: Path, *, seed: int, as_json: bool) -> bool:
    """Run a plan in this process, printing every group and every way; whether all were within their class.

    UsageError or NoPlanError for a plan that is not legal for the model: nothing of it is run.
    """
    bench = open_bench(model, seed)
    plan = bound(decode(file.read_bytes(), model.stem), bench.executor.model)
    verify_plan(plan, bench.executor.model)
    tally = Tally(bench.card, 0, as_json)
    for outcome in bench.plan(plan):
        tally.add(outcome)
    good = tally.good
    if good:
        for way in bench.ways(plan):
            good = good and way.good
            click.echo(msgspec.json.encode(way).decode() if as_json else _way_line(way))
    tally.summary(f"{file.name} on {model.stem}")
    return good


@dataclass
class Tally:
    """Prints every outcome as it comes, and sums up at the end."""

    card: Card
    total: int
    as_json: bool
    good: bool = True
    outcomes: list[Outcome] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.outcomes.append(outcome)
        self.good = self.good and outcome.good
        if self.as_json:
            row = {**msgspec.to_builtins(outcome), "good": outcome.good}
            click.echo(msgspec.json.encode(row).decode())
            return
        count = f"{len(self.outcomes)}/{self.total}" if self.total else str(len(self.outcomes))
        click.echo(f"[{count}] {self._what(outcome.trial)}: {_verdict(outcome)}")

    def summary(self, title: str) -> None:
        """How many ran, were exact, were refused."""
        if self.as_json:
            return
        click.echo(f"{title}: {time.monotonic() - self.started:.1f} s")
        for split in dict.fromkeys(outcome.trial.split for outcome in self.outcomes):
            mine = [outcome for outcome in self.outcomes if outcome.trial.split == split]
            ran = [outcome for outcome in mine if outcome.ran]
            counts = Counter(outcome.error == 0.0 for outcome in ran)
            worst = max((outcome.error for outcome in ran), default=0.0)
            at_outputs = max((outcome.at_outputs or 0.0 for outcome in ran), default=0.0)
            crashed = sum(bool(outcome.crashed) for outcome in mine)
            outside = sum(not outcome.good for outcome in ran)
            click.echo(
                f"  {split:8} {len(ran):4} ran, {counts[True]:4} exact, largest error {worst:.1e}, "
                f"at the model's outputs {at_outputs:.1e}, {sum(bool(o.trial.refused) for o in mine):4} refused, "
                f"{outside} outside their class, {crashed} crashed"
            )

    def _what(self, trial: Trial) -> str:
        kinds = [self.card.operators[i].kind for i in range(trial.first, trial.last + 1)]
        kinds = [kind for i, kind in enumerate(kinds) if not self.card.operators[trial.first + i].constant]
        name = kinds[0] if len(kinds) == 1 else f"{len(kinds)} operators"
        shares = f" {list(trial.shares)}" if trial.shares else ""
        return f"{trial.first}-{trial.last} {name} {trial.split}{shares}"


def _verdict(outcome: Outcome) -> str:
    """What came of one split, in words."""
    if outcome.trial.refused:
        return f"refused: {outcome.trial.refused}"
    if outcome.crashed:
        return f"CRASHED: {outcome.crashed}"
    if outcome.error == 0.0:
        return "exact"
    word = "max error" if outcome.good else "OUTSIDE ITS CLASS, max error"
    return f"{word} {outcome.error:.1e}, at the model's outputs {outcome.at_outputs:.1e}"


def _way_line(way: Way) -> str:
    """What came of a whole way through a plan, in words."""
    where = f"lane {way.lane}, groups {list(way.groups)}"
    if way.error == 0.0:
        return f"{where}: exact at the model's outputs"
    if way.exact:
        return f"{where}: DEVIATES by {way.error:.1e} at the model's outputs, where it must be exact"
    return f"{where}: max error {way.error:.1e} at the model's outputs (partial sums; not judged)"
