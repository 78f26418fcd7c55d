"""`python -m tools.build_models`: the paper's networks as TFLite files in the cache, or the small demo classifier.

    python -m tools.build_models demo FILE
    python -m tools.build_models paper [NETWORK...] [--precision float32 --precision int8]

The second needs TensorFlow (dependency group `build-models`) and takes 20 to 160 s a file; what is there is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import platformdirs

from tools.build_models.demo import demo_model

SEED = 20
NAMES = ("alexnet", "vgg16", "xception", "c3d", "mobilenet_v2", "resnet50", "inception_v3")


def cache() -> Path:
    """Where the built networks lie."""
    return Path(os.environ.get("MODELS_CACHE") or platformdirs.user_cache_path("meshnn", appauthor=False) / "networks")


def main(arguments: list[str] | None = None) -> int:
    """Write the models named on the command line."""
    options = _parser().parse_args(arguments)
    if options.kind == "demo":
        data = demo_model()
        options.file.write_bytes(data)
        print(f"{options.file}: {len(data):,} bytes")
        return 0
    for name in options.networks or NAMES:
        _build(name, options.precisions or ["float32", "int8"])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools.build_models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("demo", help="the seeded classifier").add_argument("file", type=Path)
    paper = kinds.add_parser("paper", help="the networks of the paper, and three more")
    paper.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NAMES)} (default: all)")
    paper.add_argument(
        "--precision", dest="precisions", action="append", choices=["float32", "int8", "float16", "dynamic"]
    )
    return parser


def _build(name: str, precisions: list[str]) -> None:
    """One network in the precisions that are not there yet."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [each for each in precisions if not (folder / f"{name}_{each}.tflite").exists()]
    if not missing:
        return
    try:
        from tools.build_models.convert import convert
        from tools.build_models.networks import NETWORKS, enliven
    except ImportError as error:
        sys.exit(f"building {name} needs TensorFlow ({error}): install the dependency group `build-models`")
    if name not in NETWORKS:
        sys.exit(f"no network {name!r}: choose from {', '.join(NAMES)}")
    model = NETWORKS[name]()
    enliven(model, SEED)
    for precision in missing:
        began = time.monotonic()
        data = convert(model, name, precision, SEED)
        path = folder / f"{name}_{precision}.tflite"
        path.with_suffix(".part").write_bytes(data)
        path.with_suffix(".part").replace(path)
        print(f"{path.name}: {len(data):,} bytes, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
