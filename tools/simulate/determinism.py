"""`python -m tools.simulate.determinism`: every seed twice, under two hash seeds; all traces must be equal."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HASH_SEEDS = ("1", "4242")


def main(arguments: Sequence[str]) -> int:
    """Run the seeds in two processes; a line for each that differs; exit 0 only where none does."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate.determinism", description=__doc__)
    parser.add_argument("--seeds", default="1-100", metavar="A-B", help="default 1-100")
    parser.add_argument("--nodes", default="5", help="devices (default 5)")
    parser.add_argument("--seconds", default="30", help="how long faults go on, simulated (default 30)")
    options = parser.parse_args(arguments)
    command = ["--seeds", options.seeds, "--nodes", options.nodes, "--seconds", options.seconds]
    one, other = traces(command)
    differing = [seed for seed in one if one[seed] != other.get(seed)]
    for seed in differing:
        print(f"FAILED {seed}: traces {one[seed]} and {other.get(seed)}")
    count, different = len(one), len(set(one.values()))
    print(f"{count} seeds twice, {len(differing)} with another trace; {different} different traces")
    return 0 if count == different and not differing else 1


def traces(command: Sequence[str]) -> list[dict[str, str]]:
    """The trace of each seed as two processes of different hash seeds print it. ValueError where a seed fails."""
    started = [_start(command, hash_seed) for hash_seed in HASH_SEEDS]
    printed = [process.communicate()[0] for process in started]
    return [_traces(text) for text in printed]


def _start(command: Sequence[str], hash_seed: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tools.simulate", *command, "--verbose"]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def _traces(printed: str) -> dict[str, str]:
    """`seed N: trace HASH, ...` by seed, the rest of the line (what became of it) included."""
    lines = [line for line in printed.splitlines() if line.startswith("seed ")]
    failed = [line for line in printed.splitlines() if line.startswith("FAILED seed")]
    if failed or not lines:
        raise ValueError(failed[0] if failed else "no seed was run")
    return dict(line.split(": ", 1) for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
