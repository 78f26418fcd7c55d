"""Inside the rack: two devices, a small generated model added on one, asked from both. Run by `test_rack`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from meshnn.graph.builder import Builder
from meshnn.graph.writer import write
from tools.acceptance.field import Field, forget_settings
from tools.acceptance.probe import probe
from tools.acceptance.verdict import Setting


def main(folder: Path) -> int:
    """Meet, add, ask; print what came of it."""
    forget_settings()
    model = folder / "small.tflite"
    model.write_bytes(_small())
    question = probe(model, 1)
    said = []
    with Field(Setting(model, model, "", folder, cpu=1.0), "pair", count=2) as field:
        field.start()
        said.append("met")
        field.add(field.stations[0])
        for station in field.stations:
            reply = station.speak("POST", "/api/v1/ask", question.body, model=model.stem, tensors=1, deadline=60)
            said.append("right" if reply is not None and question.answered_by(reply.rest) else "wrong")
    sys.stdout.write(", ".join(said) + "\n")
    return 0


def _small() -> bytes:
    """A few convolutions."""
    builder = Builder(np.random.default_rng(7))
    x = builder.input(1, 16, 16, 3, name="image")
    for channels in (8, 8, 16):
        x = builder.conv(x, channels)
    return write(builder.graph(builder.mean(x))).to_bytes()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
