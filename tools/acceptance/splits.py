"""`python -m tools.acceptance.splits MODEL... [--into FILE]`: networks under every split, on the devices of the rack.

Four devices at the end of their own cables, each a plain `meshnn join`. Each network is added once; then plan after
plan is applied (`meshnn plan apply`) and asked (`meshnn ask INPUT.npz --tensors`) from a device in turn: a pipeline by
layers, then as much of the network as can be under `output`, depthwise `output`, `spatial`, a mixture, `input`, and
`output` followed by `input`, each in 2, 3 and 4 parts and in two of 3 to 1. Answers are held against the whole model
on bare LiteRT: equal in every byte. With partial sums, the answer must be in every byte that of the one-process
executor (`meshnn plan check`), each merged tensor of which must be within 1e-5; the deviation at the outputs is
told. An integer network must refuse `input` with its reason. Correctness, not speed: no share of a processor is set.
Root or not. Exits 0 only if everything was right.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meshnn.cli.check import open_bench
from meshnn.errors import MeshError
from meshnn.graph.splits.merge import exact
from meshnn.node.check import TOLERANCE, Bench, difference
from meshnn.plan.explicit import bound, decode
from tools.acceptance.field import Field, Station, forget_settings
from tools.acceptance.split_plans import DIVISIONS, ROWS, Case, cases
from tools.acceptance.verdict import Setting
from tools.marked import LEFT, put
from tools.racklab import outer
from tools.racklab.lab import INSIDE
from tools.split_table import precision_of
from tools.whole import Array, outputs_of

ROOT = Path(__file__).resolve().parents[2]
MARK = "rack table"
COUNT = 4
DEADLINE_S = 300.0
ADD_S = 300.0
REFUSED_CODE = 5
SUMS = "partial sums"
REASON = re.compile(r"^.*\([A-Z0-9_]+\): | \(no_split\)$")
SUFFIX = re.compile(r"_(float32|float16|dynamic|int8)$")


@dataclass(slots=True)
class Found:
    """What came of one plan: `fault` says what was wrong, `refused` why it was rightly not taken."""

    case: Case
    fault: str = ""
    refused: str = ""
    merged: float = 0.0
    at_outputs: float = 0.0
    took_s: float = 0.0
    latency_ms: float = 0.0

    @property
    def cell(self) -> str:
        """What the table says of it."""
        if self.fault:
            return f"**{self.fault}**"
        if self.refused:
            return f"refused: {self.refused}"
        what = f"{self.case.divided} divided" if self.case.divided else f"{len(self.case.stages)} stages"
        if self.case.exact:
            return f"{what}, equal"
        return f"{what}, merged {self.merged:.1e}, outputs {self.at_outputs:.1e}"


@dataclass(slots=True)
class Trial:
    """A network on its way through the rack."""

    model: Path
    bench: Bench
    place: Field
    inputs: dict[str, Array] = field(default_factory=dict)
    expected: dict[str, Array] = field(default_factory=dict)
    asked: int = 0

    @property
    def folder(self) -> Path:
        """Where plans and tensors are put."""
        return self.place.folder

    def prepare(self) -> None:
        """The question, and what the whole model says to it."""
        tensors = self.bench.card.by_index()
        self.inputs = {tensors[t].name: self.bench.values[t] for t in self.bench.executor.model.inputs}
        self.expected = outputs_of(self.model, self.inputs)
        arrays: dict[str, Any] = {f"input:{name}": array for name, array in self.inputs.items()}
        np.savez(self.folder / "question.npz", **arrays)

    def ask(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The question put to the next device: its report, and its outputs by name. RuntimeError where it fails."""
        station = self.place.stations[self.asked % len(self.place.stations)]
        self.asked += 1
        limit = ("--deadline", str(DEADLINE_S))
        typed = ("ask", str(self.folder / "question.npz"), "--model", self.model.stem, "--json", *limit)
        done = station.meshnn(*typed, "--tensors", str(self.folder / "answers"), timeout_s=DEADLINE_S + 30)
        if done.code:
            raise RuntimeError(f"ask on {station.name} ended with {done.code}: {done.err.strip()} {done.out.strip()}")
        with np.load(self.folder / "answers" / "question.npz", allow_pickle=False) as arrays:
            found = {key.removeprefix("output:"): arrays[key] for key in arrays.files if key.startswith("output:")}
        return done.json(), found

    def judge(self, case: Case) -> Found:
        """One plan applied and asked."""
        found = Found(case)
        began = time.monotonic()
        try:
            self._judge(found)
        except (RuntimeError, OSError, MeshError, KeyError) as error:
            found.fault = str(error) or type(error).__name__
        found.took_s = time.monotonic() - began
        return found

    def _judge(self, found: Found) -> None:
        case = found.case
        path = self.folder / "plan.json"
        path.write_text(json.dumps(case.plan))
        station = self.place.stations[-1]
        typed = ("plan", "apply", str(path), "--model", self.model.stem, "--deadline", str(DEADLINE_S))
        done = station.meshnn(*typed, timeout_s=DEADLINE_S + 30)
        if case.row == "input" and not case.divided:
            if done.code != REFUSED_CODE or SUMS not in done.err:
                found.fault = f"not refused for its partial sums: exit {done.code}, {done.err.strip()}"
            found.refused = REASON.sub("", done.err.strip())
            return
        if done.code:
            raise RuntimeError(f"plan apply ended with {done.code}: {done.err.strip()}")
        report, outputs = self.ask()
        found.latency_ms = report["latency_ms"]
        found.fault = self._wrong(case, report, outputs)
        found.at_outputs = max(difference(outputs[name], self.expected[name]) for name in self.expected)
        if case.exact and found.at_outputs:
            found.fault = f"other bytes than the whole model's, by {found.at_outputs:.1e}"
        if not case.exact:
            self._sums(found, outputs)

    def _wrong(self, case: Case, report: dict[str, Any], outputs: dict[str, Array]) -> str:
        """Whether the answer is whole, came by this plan, and says of itself what is true."""
        ran = [(*stage["operators"], stage["split"], stage["device"]) for stage in report["plan"]["stages"]]
        wanted = [
            (stage["first"], stage["last"], group["split"], shard["device"])
            for stage in case.stages
            for group in stage["groups"]
            for shard in group["shards"]
        ]
        if set(outputs) != set(self.expected):
            return f"outputs {sorted(outputs)}, not {sorted(self.expected)}"
        if sorted(ran) != sorted(wanted):
            return "it was answered by another plan"
        return "" if report["exact"] is case.exact else f"it says exact: {report['exact']}"

    def _sums(self, found: Found, outputs: dict[str, Array]) -> None:
        """Judge every merged tensor in one process, and the rack's answer by the same plan's bytes there."""
        plan = bound(decode(json.dumps(found.case.plan).encode()), self.bench.executor.model)
        executor, values = self.bench.executor, self.bench.values
        for stage in plan.lanes[0].stages:
            merged = executor.merge(stage, stage.groups[0], values)
            error = max(difference(array, values[t]) for t, array in merged.items())
            found.merged = max(found.merged, error)
            if error > (0.0 if exact(stage.groups[0].split) else TOLERANCE):
                found.fault = f"operators {stage.first} to {stage.last} are off by {error:.1e}"
                return
        groups = (0,) * len(plan.lanes[0].stages)
        made = executor.follow(plan.lanes[0], groups, values)
        names = {t: self.bench.card.by_index()[t].name for t in made}
        if any(outputs[names[t]].tobytes() != array.tobytes() for t, array in made.items()):
            found.fault = "other bytes than the one-process executor's"


def network(model: Path, bench: Bench, options: argparse.Namespace) -> Iterator[Found]:
    """Every plan of one network, in a rack of its own; then the model is given back to the planner."""
    setting = Setting(model, model, "", options.logs.resolve(), cpu=0.0, rate=options.rate)
    limits = ("--memory", options.memory, "--disk", options.disk, "--threads", "1")
    with Field(setting, f"splits-{model.stem}", *limits, count=COUNT) as place:
        place.start()
        _say(f"{model.stem}: models add {_added(model, place.stations[0]):.1f} s")
        trial = Trial(model, bench, place)
        trial.prepare()
        names = [station.name for station in place.stations]
        chosen = [case for case in cases(bench.card, names, options.rows) if case.division in options.divisions]
        chosen.sort(key=lambda case: options.divisions.index(case.division))
        for number, case in enumerate(chosen, 1):
            found = trial.judge(case)
            told = f"{found.cell} ({found.took_s:.1f} s, of these the answer {found.latency_ms / 1e3:.2f} s)"
            print(
                f"[{number}/{len(chosen)}] {model.stem} {case.row} {case.division}: {told}", file=sys.stderr, flush=True
            )
            yield found
        _given_back(trial, place.stations[0])


def _added(model: Path, station: Station) -> float:
    """Give one device the network, however large; the seconds it took. RuntimeError."""
    began = time.monotonic()
    done = station.meshnn("models", "add", str(model), "--deadline", str(ADD_S), timeout_s=ADD_S + 30)
    if done.code:
        raise RuntimeError(f"models add ended with {done.code}: {done.err.strip()}")
    return time.monotonic() - began


def _given_back(trial: Trial, station: Station) -> None:
    """`plan reset`: the planner's own plan answers the whole model's bytes. RuntimeError."""
    done = station.meshnn("plan", "reset", trial.model.stem, "--deadline", str(DEADLINE_S), timeout_s=DEADLINE_S + 30)
    if done.code:
        raise RuntimeError(f"plan reset ended with {done.code}: {done.err.strip()}")
    _, outputs = trial.ask()
    if any(outputs[name].tobytes() != array.tobytes() for name, array in trial.expected.items()):
        raise RuntimeError("after plan reset the answer has other bytes")
    _say(f"{trial.model.stem}: given back to the planner, equal")


def _say(line: str) -> None:
    """Progress, while the table is still to come."""
    print(line, file=sys.stderr, flush=True)


HEAD = (f"| Network | Precision | Plan | {' | '.join(DIVISIONS)} |", "|" + "---|" * (3 + len(DIVISIONS)))


def rows_of(model: Path, options: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    """A row with one cell for every plan as it is done, and whether that was right."""
    bench = open_bench(model)
    about = f"| {SUFFIX.sub('', model.stem)} | {precision_of(bench.card)}"
    for found in network(model, bench, options):
        cells = [found.cell if division == found.case.division else LEFT for division in DIVISIONS]
        yield f"{about} | {found.case.row} | {' | '.join(cells)} |", not found.fault


def run(models: Sequence[Path], options: argparse.Namespace) -> bool:
    """Every network, its cells put into the file as they are done, or printed at the end; whether all were right."""
    all_good, made = True, ""
    for model in models:
        try:
            for row, good in rows_of(model, options):
                all_good = all_good and good
                made = put(made, MARK, [*HEAD, row])
                if options.into is not None:
                    text = options.into.read_text(encoding="utf-8")
                    options.into.write_text(put(text, MARK, [*HEAD, row]), encoding="utf-8")
        except (RuntimeError, OSError, MeshError) as error:
            _say(f"{model.stem}: {error}")
            all_good = False
    if options.into is None:
        print(made)
    return all_good


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line; SystemExit 2 where they cannot be meant."""
    parser = argparse.ArgumentParser(
        prog="tools.acceptance.splits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS), metavar="ROW,ROW", help="which plans (all)")
    divisions = ",".join(DIVISIONS)
    parser.add_argument("--divisions", default=divisions, metavar="PARTS,PARTS", help=f"of {divisions} (all)")
    parser.add_argument("--into", type=Path, help="a Markdown file whose table takes the rows")
    parser.add_argument("--rate", default="1gbit", help="of every cable, as tc says it")
    parser.add_argument("--memory", default="4GB", help="of each device")
    parser.add_argument("--disk", default="4GB", help="of each device")
    parser.add_argument("--logs", type=Path, default=Path("build") / "acceptance", help="states and logs go there")
    options = parser.parse_args(arguments)
    options.rows, options.divisions = options.rows.split(","), options.divisions.split(",")
    for given, known in ((options.rows, ROWS), (options.divisions, tuple(DIVISIONS))):
        if unknown := set(given) - set(known):
            parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    for path in options.models:
        if not path.is_file():
            parser.error(f"{path}: no such file; `python -m tools.build_models paper` builds the networks")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the networks; 0 only if everything was right."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    if os.environ.get(INSIDE) is None:
        return outer.enter([sys.executable, "-m", "tools.acceptance.splits", *given], quota=False)
    forget_settings()
    os.environ["PYTHONPATH"] = str(ROOT)
    compileall.compile_dir(ROOT / "meshnn", quiet=1)
    return 0 if run([path.resolve() for path in options.models], options) else 1


if __name__ == "__main__":
    sys.exit(main())
