"""`python -m tools.fuzz.coverage BORDER`: the same borders, led by coverage (atheris, of the dependency group `fuzz`).

What atheris finds worth keeping stays in `build/fuzz/BORDER` for the next run; an input that breaks a border is
written there as `crash-...` and can be given again as a file.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.fuzz.border import Border, Target

SEEDS = 200
LENGTH_MAX = 65_536


def main() -> int:
    """Fuzz one border for some seconds, or give it the inputs in some files."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.coverage", description=__doc__)
    parser.add_argument("border")
    parser.add_argument("files", nargs="*", type=Path, help="only these inputs, once each")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--corpus", type=Path, default=Path("build") / "fuzz")
    words = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install --group fuzz (Linux, CPython 3.11 to 3.14)", file=sys.stderr)
        return 2
    # What is to be led by must be imported under instrumentation, and so here.
    with atheris.instrument_imports(include=["meshnn"]):
        from tools.fuzz.__main__ import BORDERS
    if words.border not in BORDERS:
        parser.error(f"no border {words.border}; choose from {', '.join(BORDERS)}")
    from meshnn.telemetry import captured

    border, corpus = BORDERS[words.border], words.corpus / words.border
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={words.seconds}", f"-max_len={LENGTH_MAX}", f"-artifact_prefix={corpus}/"]
    with tempfile.TemporaryDirectory(prefix="meshnn-fuzz-") as folder, captured():
        target = border.begin(random.Random(1), Path(folder))
        _sow(target, corpus)
        plain = isinstance(target.draw(random.Random(1)), bytes)
        places = [str(path) for path in words.files] or [str(corpus)]
        atheris.Setup([sys.argv[0], *options, *places], lambda data: give(border, target, data, plain=plain))
        atheris.Fuzz()  # ends the process
    return 0


def give(border: Border, target: Target, data: bytes, *, plain: bool) -> None:
    """One input: the bytes themselves where the border takes bytes (`plain`), else what they draw as a seed."""
    drawn = data if plain else target.draw(random.Random(data))
    try:
        target.take(drawn)
    except border.refuses:
        return


def _sow(target: Target, corpus: Path) -> None:
    """Good inputs and slightly spoilt ones to begin with."""
    for number in range(SEEDS):
        drawn = target.draw(random.Random(number))
        seed = drawn if isinstance(drawn, bytes) else random.Random(number).randbytes(16)
        (corpus / f"seed-{number:03}").write_bytes(seed[:LENGTH_MAX])


if __name__ == "__main__":
    sys.exit(main())
