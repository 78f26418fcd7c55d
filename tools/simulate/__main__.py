"""`python -m tools.simulate`: many seeds of a mesh under faults; exit 0 if all held and nothing stayed untested."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tools.simulate.faults import FAULTS
from tools.simulate.sweep import Report, Setting, missing, sweep
from tools.simulate.watch import SOMETIMES

ENOUGH_SEEDS = 20
"""With fewer seeds not everything need occur."""


def main(arguments: Sequence[str]) -> int:
    """Run the seeds; one line for each that failed, with its reproduction, and a summary."""
    options = _parse(arguments)
    setting = Setting(options.nodes, options.seconds, options.faults)
    begun = time.process_time()
    reports: list[Report] = []
    for report in sweep(options.seeds, setting):
        reports.append(report)
        if report.failure:
            print(report.failure if options.verbose else report.failure.strip().splitlines()[-1][:200])
            print(f"FAILED seed {report.seed}: {setting.reproduction(report.seed)} --verbose", flush=True)
        elif options.verbose:
            print(_line(report), flush=True)
    failed = [report for report in reports if report.failure]
    _summary(reports, time.process_time() - begun)
    full = setting.faults == tuple(FAULTS) and len(reports) >= ENOUGH_SEEDS
    unseen = missing(reports) if full else []
    if unseen:
        print(f"FAILED: never reached in this sweep: {', '.join(unseen)}")
    print(f"{len(reports)} seeds, {len(failed)} failed")
    return 1 if failed or unseen else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.simulate", description=__doc__)
    parser.add_argument("--nodes", type=int, default=5, help="devices (default 5)")
    parser.add_argument("--seeds", type=_seeds, default=range(1, 26), metavar="A-B", help="default 1-25")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults go on, simulated (default 60)")
    parser.add_argument("--faults", type=_faults, default=tuple(FAULTS), metavar="A,B", help=", ".join(FAULTS))
    parser.add_argument("--verbose", action="store_true", help="a line for every seed, and whole tracebacks")
    return parser.parse_args(arguments)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _faults(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name and name != "none")
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no fault is called {unknown[0]}; there are {', '.join(FAULTS)} and none")
    return names


def _line(report: Report) -> str:
    return (
        f"seed {report.seed}: trace {report.trace[:16]}, leader {report.leader_s:.1f} s, views {report.views_s:.1f} s, "
        f"plan {report.plan_s:.1f} s after the faults; {report.requests} requests, {report.answered} answered, "
        f"{report.errors} named errors"
    )


def _summary(reports: Sequence[Report], cpu_s: float) -> None:
    seen: Counter[str] = Counter()
    for report in reports:
        seen.update(report.seen)
    held = [report for report in reports if not report.failure]
    simulated_s = sum(report.simulated_s for report in reports)
    print(f"simulated {simulated_s:.0f} s in {cpu_s:.0f} s of CPU: {simulated_s / cpu_s:.0f} x real time")
    print("reached: " + ", ".join(f"{what} {seen[what]}" for what in SOMETIMES))
    asked, answered = sum(one.requests for one in reports), sum(one.answered for one in reports)
    print(f"requests: {asked}, answered {answered}, named errors {sum(one.errors for one in reports)}")
    if held:
        most = (max(one.leader_s for one in held), max(one.views_s for one in held), max(one.plan_s for one in held))
        print("after the faults, at most: one leader {:.1f} s, equal views {:.1f} s, one plan {:.1f} s".format(*most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
