"""`python -m tools.fuzz [BORDER...] --inputs N --seed S`: every border, so many inputs each, a line for each."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path

from meshnn.telemetry import captured
from tools.fuzz import downloads, files, live, machines, plans, requests, small, streams, wire
from tools.fuzz.border import Border, Result, fuzz

BORDERS: dict[str, Border] = {
    border.name: border
    for module in (wire, streams, files, plans, small, machines, downloads, requests, live)
    for border in module.BORDERS
}
HEADING = f"{'border':<10}{'inputs':>10}{'refused':>10}{'slowest':>10}{'memory':>11}{'wall':>9}  findings"


def main(arguments: list[str] | None = None) -> int:
    """Fuzz the named borders; 0 only where nothing was found."""
    options = _parser().parse_args(arguments)
    names = options.border or list(BORDERS)
    print(HEADING, flush=True)
    results = [_run(BORDERS[name], options) for name in names]
    for result in results:
        for fault, how in result.findings.items():
            print(f"\n{result.border}: {fault}\n  {how}")
    found = sum(len(result.findings) for result in results)
    print(f"\n{sum(result.inputs for result in results)} inputs, {found} findings (seed {options.seed})")
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.fuzz", description=__doc__)
    parser.add_argument("border", nargs="*", help=f"of {', '.join(BORDERS)}; all unless named")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each border; slow borders take a part of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episode", type=int, help="only this episode, to reproduce a finding")
    parser.add_argument("--exactly", action="store_true", help="slow borders take all inputs too")
    parser.add_argument("--limit", type=float, default=1e9, metavar="SECONDS", help="for each border")
    return parser


def _run(border: Border, options: argparse.Namespace) -> Result:
    """One border, and its line."""
    inputs = options.inputs if options.exactly else max(1, int(options.inputs * border.share))
    gc.collect()
    # In memory where that can be: creating a file is what takes the time of the borders of files.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="meshnn-fuzz-", dir=place) as folder, captured():
        result = fuzz(border, inputs, options.seed, Path(folder), options.episode, options.limit)
    largest = f"{result.largest_bytes / 2**20:.2f} MiB" if result.measured else "-"
    slowest = f"{result.slowest_s * 1000:.1f} ms"
    row = f"{result.border:<10}{result.inputs:>10}{result.refused:>10}{slowest:>10}{largest:>11}{result.wall_s:>7.0f} s"
    print(f"{row}  {len(result.findings)}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
