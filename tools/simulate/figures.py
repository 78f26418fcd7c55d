"""`python -m tools.simulate.figures SCENARIO`: the figures of docs/reliability.md, each beside its criterion."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from tools.simulate import lives, oneway, silence, turmoil, views
from tools.simulate.figure import Figure

Measure = Callable[[range], list[Figure]]

SCENARIOS: dict[str, tuple[str, Measure]] = {
    "outages": ("1001-1020", views.outages),
    "heavy-outages": ("2001-2010", lambda seeds: views.outages(seeds, law=views.heavy_outage)),
    "stalls": ("1001-1010", views.stalls),
    "stalls-128": ("1001-1001", lambda seeds: views.stalls(seeds, 128, 5.0)),
    "loss": ("1001-1002", views.losses),
    "loss-300": ("1001-1001", lambda seeds: views.losses(seeds, (300,), 1.0)),
    "spread": ("1001-1003", views.spread),
    "spread-1000": ("1001-1001", lambda seeds: views.spread(seeds, (1000,))),
    "restart-100": ("1001-1005", lambda seeds: views.mass_restart(seeds, 100)),
    "restart-1000": ("1001-1001", views.mass_restart),
    "partitions": ("1001-1003", lives.partitions),
    "power-loss": ("1001-1005", silence.deaths),
    "power-loss-100": ("1001-1002", lambda seeds: silence.deaths(seeds, 100, 10)),
    "power-loss-1000": ("1001-1001", lambda seeds: silence.deaths(seeds, 1000, 4)),
    "power-loss-requests": ("1001-1005", silence.reroutes),
    "power-loss-requests-16": ("1001-1002", lambda seeds: silence.reroutes(seeds, 16)),
    "one-way": ("1001-1002", oneway.pairs),
    "one-way-leader": ("1001-1005", oneway.leaders),
    "flapping": ("1001-1003", turmoil.flapping),
    "swizzle": ("1001-1003", turmoil.swizzle),
    "churn": ("1001-1002", turmoil.churn),
    "churn-day": ("2001-2024", lambda seeds: turmoil.churn(seeds, minutes=60.0)),
    "corrupt": ("1001-1002", turmoil.corrupt),
    "clocks": ("1001-1003", turmoil.clocks),
    "speed": ("1001-1005", turmoil.speed),
    "switch-deaths": ("1001-1003", lives.switch_deaths),
    "request-deaths": ("1001-1003", lives.request_deaths),
    "sleepers": ("1001-1003", lives.sleepers),
}
"""Each with the seeds of its published figure: none of them was looked at while the rules were made."""


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for; exit 0 only if every criterion is met."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate.figures", description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--seeds", metavar="A-B", help="other seeds than the published figure's")
    options = parser.parse_args(arguments)
    seeds, measure = SCENARIOS[options.scenario]
    first, _, last = (options.seeds or seeds).partition("-")
    begun = time.process_time()
    figures = measure(range(int(first), int(last or first) + 1))
    for figure in figures:
        print(figure, flush=True)
    print(f"{options.scenario}: seeds {options.seeds or seeds}, {time.process_time() - begun:.0f} s of CPU")
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
