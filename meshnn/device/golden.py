"""The golden vector: a seeded input through a loaded shard, and what must come out, before the shard may serve.

A file's digest proves the file, not the device: its memory may fail, a kernel or a driver compute something else. So
whoever cut a shard says what it makes of an input that follows from the recipe, and whoever loads it compares: byte
for byte where both compute alike, else by sums with random signs, in which a difference at any place shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import starmap

import numpy as np

from meshnn.device.ports import Port
from meshnn.device.runtime import Array
from meshnn.graph.seeded import drawn
from meshnn.plan.messages import Golden

# Sums an output, and how many standard deviations of what is allowed a sum may be off.
SKETCHES, SIGMAS = 4, 8.0
# What devices that compute differently may differ by at each place: of the largest value, in steps of an integer.
RELATIVE_BOUND, STEPS_BOUND = 1e-5, 2.0
SIGNS = np.array([-1.0, 1.0])


def inputs_for(ports: Sequence[Port], key: str) -> list[Array]:
    """The golden input of the shard with this key (hex), by its ports: the same on every device."""
    random = np.random.default_rng(int(key, 16))
    return [drawn(port.shape, port.dtype, random, quantised=bool(port.scale)) for port in ports]


def facts_of(outputs: Sequence[Array], numeric_class: str) -> Golden:
    """What a shard made of its golden input, small enough to travel."""
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(f"{output.dtype.name} {output.shape}".encode())
        digest.update(np.ascontiguousarray(output).tobytes())
    values = [_finite(output) for output in outputs]
    sketches = tuple(starmap(_sketch, enumerate(values)))
    largest = tuple(float(np.max(np.abs(value), initial=0.0)) for value in values)
    return Golden(numeric_class, digest.hexdigest(), sketches, largest)


def difference(found: Golden, wanted: Golden, outputs: Sequence[Array]) -> str | None:
    """Why a shard that made `outputs` (whose facts are `found`) is not to be trusted; None where it is."""
    if found.numeric_class == wanted.numeric_class:
        return None if found.digest == wanted.digest else "it computes other bytes than the device that cut it"
    if len(found.sketches) != len(wanted.sketches):
        return f"it gives {len(found.sketches)} outputs where {len(wanted.sketches)} were wanted"
    for place, output in enumerate(outputs):
        allowed = STEPS_BOUND if output.dtype.kind in "biu" else RELATIVE_BOUND * wanted.largest[place]
        bound = SIGMAS * allowed * max(1.0, output.size**0.5)
        pairs = zip(found.sketches[place], wanted.sketches[place], strict=False)
        if any(not abs(one - other) <= bound for one, other in pairs):
            return f"its output {place} is further from the cutter's than another kind of processor explains"
    return None


def _finite(output: Array) -> Array:
    """An output's values as numbers that can be summed; of complex ones the sum of both parts."""
    wide = output.astype(np.complex128) if output.dtype.kind == "c" else output.astype(np.float64)
    plain = np.asarray(wide.real + wide.imag if output.dtype.kind == "c" else wide, dtype=np.float64)
    return np.where(np.isfinite(plain), plain, 0.0).reshape(-1)


def _sketch(place: int, value: Array) -> tuple[float, ...]:
    """Sums of an output's values with random signs, the same signs on every device."""
    random = np.random.default_rng(place)
    return tuple(float(np.dot(random.choice(SIGNS, value.size), value)) for _ in range(SKETCHES))
