"""`python -m tools.acceptance [SCENARIO...]`: the long checks, each in a rack of its own, and one table of them all."""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.acceptance import alone, answers, killing
from tools.acceptance.field import forget_settings
from tools.acceptance.verdict import Setting, Verdict
from tools.racklab import outer
from tools.racklab.lab import INSIDE

ROOT = Path(__file__).resolve().parents[2]
# The model and photo of the figures in docs/measurements.md; they lie beside the repository, where they lie at all.
SHARED = ROOT.parent / "shared" / "testdata"
MODEL = SHARED / "models" / "coral__mobilenet_v2_1.0_224_quant.tflite"
PHOTO = SHARED / "images" / "coral_parrot.jpg"
LABEL = "macaw"

SCENARIOS: Mapping[str, Callable[[Setting], Verdict]] = {
    "alone": alone.alone,
    "discovery": answers.discovery,
    "answers": answers.answers,
    "memory": answers.memory,
    "kill-worker": killing.kill_worker,
    "kill-worker-from-leader": killing.kill_worker_from_leader,
    "kill-leader": killing.kill_leader,
    "kill-holder": killing.kill_holder,
    "unplug-worker": killing.unplug_worker,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios; 0 only if all of them pass."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    if os.environ.get(INSIDE) is None:
        return outer.enter([sys.executable, "-m", "tools.acceptance", *given])
    forget_settings()
    os.environ["PYTHONPATH"] = str(ROOT)
    # A device has its software installed: no node of the rack spends its share on compiling it.
    compileall.compile_dir(ROOT / "meshnn", quiet=1)
    setting = Setting(options.model.resolve(), options.photo.resolve(), options.label, options.logs.resolve())
    setting = dataclasses.replace(setting, seed=options.seed, cpu=options.cpu, rate=options.rate)
    verdicts = []
    for name in options.scenarios or SCENARIOS:
        verdicts.append(_run(name, setting))
        print(verdicts[-1].line, flush=True)
    print(_table(verdicts))
    if options.json:
        rows = {v.scenario: {"passed": v.passed, "faults": v.faults, **v.figures} for v in verdicts}
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line; SystemExit 2 where they cannot be meant."""
    parser = argparse.ArgumentParser(prog="python -m tools.acceptance", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; all by default")
    parser.add_argument("--model", type=Path, default=MODEL, help="the model to add")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="the photo to ask about")
    parser.add_argument("--label", default=LABEL, help="a word that the best label must hold")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and of the instants of the kills")
    parser.add_argument("--cpu", type=float, default=0.2, help="share of one processor for each device")
    parser.add_argument("--rate", default="100mbit", help="of every cable, as tc says it")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--logs", type=Path, default=Path("build") / "acceptance", help="the devices' logs go there")
    options = parser.parse_args(arguments)
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name}; choose from {', '.join(SCENARIOS)}")
    for path in (options.model, options.photo):
        if not path.is_file():
            parser.error(f"{path}: no such file; name one with --model and --photo")
    return options


def _run(name: str, setting: Setting) -> Verdict:
    """One scenario; what it could not bear is a fault of its own."""
    began = time.monotonic()
    try:
        verdict = SCENARIOS[name](setting)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        verdict = Verdict(name, faults=[f"{type(error).__name__}: {error}"])
    verdict.figures["took_s"] = round(time.monotonic() - began)
    return verdict


def _table(verdicts: list[Verdict]) -> str:
    """A line a scenario."""
    width = max(len(verdict.scenario) for verdict in verdicts)
    rows = [f"{v.scenario:{width}}  {'pass' if v.passed else 'FAIL'}  {v.figures['took_s']:>4} s" for v in verdicts]
    return "\n".join(["", *rows])


if __name__ == "__main__":
    sys.exit(main())
