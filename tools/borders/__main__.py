"""`python -m tools.borders [SCENARIO...]`: against real nodes on loopback, a line of figures each; 0 if all pass."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools.acceptance.verdict import Verdict
from tools.borders import descriptors, disk, memory, oversize, slow, stranger
from tools.borders.ground import Ground

SCENARIOS: dict[str, Callable[[Ground, Verdict], None]] = {
    "stranger": stranger.stranger,
    "forged": stranger.forged,
    "oversize": oversize.oversize,
    "slow-peers": slow.peers,
    "slow-http": slow.http,
    "descriptors": descriptors.descriptors,
    "disk-full": disk.full,
    "disk-read-only": disk.read_only,
    "memory": memory.memory,
    "memory-trial": memory.trial,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the named scenarios, all unless named."""
    parser = argparse.ArgumentParser(prog="python -m tools.borders", description=__doc__)
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--model", type=Path, help="a large model, for the scenarios of memory")
    words = parser.parse_args(arguments)
    unknown = set(words.scenario) - set(SCENARIOS)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; choose from {', '.join(SCENARIOS)}")
    passed = [_run(name, words.model) for name in words.scenario or SCENARIOS]
    return 0 if all(passed) else 1


def _run(name: str, model: Path | None) -> bool:
    """One scenario; what it could not bear is a fault of its own."""
    verdict, began = Verdict(name), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="meshnn-borders-") as folder, Ground(Path(folder), model) as ground:
        try:
            SCENARIOS[name](ground, verdict)
        except (RuntimeError, OSError, ValueError, KeyError, IndexError, AssertionError) as error:
            verdict.faults.append(f"{type(error).__name__}: {error}")
        for node in ground.mesh.devices.values():
            at = node.log.find("Traceback")
            verdict.check(at < 0, f"{node.name} logged a fault: {node.log[max(0, at - 300) : at + 1500]}")
    verdict.figures["took_s"] = round(time.monotonic() - began)
    print(verdict.line, flush=True)
    return verdict.passed


if __name__ == "__main__":
    sys.exit(main())
