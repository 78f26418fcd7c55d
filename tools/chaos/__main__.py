"""The chaos of the rack: a seeded storm of faults over real nodes, or one named scenario."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import sys
import time
from pathlib import Path

from tools.acceptance.field import forget_settings
from tools.acceptance.verdict import Verdict
from tools.chaos import storm
from tools.chaos.rig import Options
from tools.chaos.scenarios import SCENARIOS
from tools.chaos.schedule import Kind, Terms, schedule
from tools.racklab import outer
from tools.racklab.lab import INSIDE

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "default.tflite"
# The default model needs more than one device has, and two devices hold it together.
MEMORY = "3MB"
HOLD = 2
# The askers hold no part of it: whoever dies was at work, or held a second copy.
LITTLE = "0.1MB"


def main(arguments: list[str] | None = None) -> int:
    """Run it; 0 only if nothing was lost, doubled or wrong and the mesh converged, or every scenario passed."""
    given = sys.argv[1:] if arguments is None else arguments
    words = parse(given)
    faults = schedule(words.seed, words.seconds, terms_of(words)) if words.verb is None else ()
    if words.show:
        print("\n".join(fault.line for fault in faults))
        return 0
    if os.environ.get(INSIDE) is None:
        return outer.enter([sys.executable, "-m", "tools.chaos", *given], quota=words.cpu > 0)
    forget_settings()
    os.environ["PYTHONPATH"] = str(ROOT)
    # A device has its software installed: no node of the rack spends its share on compiling it.
    compileall.compile_dir(ROOT / "meshnn", quiet=1)
    options = options_of(words)
    if words.verb is None:
        report = storm.storm(options, words.seconds, faults)
        storm.write(report, options.logs / "report.json")
        return 0 if report.passed else 1
    verdicts = [_scenario(name, options) for name in words.scenarios]
    if words.json:
        rows = {v.scenario: {"passed": v.passed, "faults": v.faults, **v.figures} for v in verdicts}
        words.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line; SystemExit 2 where they cannot be meant."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    _common(parser)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long faults come")
    parser.add_argument("--kinds", default=",".join(Kind), help="the faults that come, with commas between")
    parser.add_argument("--every", type=float, default=0.0, help="seconds between faults (default: random)")
    parser.add_argument("--show", action="store_true", help="print the schedule and end")
    parser.set_defaults(scenarios=[], json=None)
    verbs = parser.add_subparsers(dest="verb")
    one = verbs.add_parser("scenario", help=f"of {', '.join(SCENARIOS)}")
    _common(one)
    one.add_argument("scenarios", nargs="+", choices=SCENARIOS, metavar="SCENARIO")
    one.add_argument("--repeat", type=int, default=0, help="how often (default: the scenario's own)")
    one.add_argument("--json", type=Path, help="write the figures there")
    words = parser.parse_args(arguments)
    if not words.model.is_file():
        parser.error(f"{words.model}: no such file; name one with --model")
    unknown = set(words.kinds.split(",")) - set(Kind)
    if unknown:
        parser.error(f"no fault {', '.join(sorted(unknown))}; choose from {', '.join(Kind)}")
    if words.devices - words.origins < 1 or words.origins < 1:
        parser.error("a mesh needs an origin and another device")
    return words


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=MODEL, help="the model that is asked")
    parser.add_argument("--memory", default=MEMORY, help="what each device has for shards")
    parser.add_argument("--hold", type=int, default=HOLD, help="how many devices hold the model together")
    parser.add_argument("--little", default=LITTLE, help='what those who ask have for shards ("": as the others)')
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--origins", type=int, default=2, help="how many of them ask, and are never killed")
    parser.add_argument("--cpu", type=float, default=0.2, help="share of one processor for each device; 0: no limit")
    parser.add_argument("--rate", default="100mbit", help="of every cable, as tc says it")
    parser.add_argument("--concurrency", type=int, default=2, help="requests at once from each origin")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, default=Path("build") / "chaos", help="logs and report go there")


def terms_of(words: argparse.Namespace) -> Terms:
    """What the schedule of a command line keeps to."""
    origins = tuple(range(words.devices - words.origins, words.devices))
    kinds = tuple(Kind(name) for name in words.kinds.split(","))
    return Terms(words.devices, origins, words.hold, kinds, words.every, idle=bool(words.little))


def options_of(words: argparse.Namespace) -> Options:
    """What a rig is given by a command line."""
    return Options(
        model=words.model.resolve(),
        logs=words.logs.resolve(),
        devices=words.devices,
        origins=words.origins,
        cpu=words.cpu,
        rate=words.rate,
        memory=words.memory,
        little=words.little,
        concurrency=words.concurrency,
        seed=words.seed,
        repeat=getattr(words, "repeat", 0),
        hold=words.hold,
    )


def _scenario(name: str, options: Options) -> Verdict:
    """One scenario; what it could not bear is a fault of its own."""
    began = time.monotonic()
    verdict = Verdict(name)
    try:
        SCENARIOS[name](options, verdict)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        verdict.faults.append(f"{type(error).__name__}: {error}")
    verdict.figures["took_s"] = round(time.monotonic() - began)
    print(verdict.line, flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
