"""`python -m tools.build_models demo FILE`: write the seeded classifier."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.build_models.demo import demo_model


def main(arguments: list[str] | None = None) -> int:
    """Write the model named on the command line."""
    parser = argparse.ArgumentParser(prog="tools.build_models", description=__doc__)
    parser.add_argument("model", choices=["demo"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    data = demo_model()
    options.file.write_bytes(data)
    print(f"{options.file}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
