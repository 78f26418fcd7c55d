"""Why no plan fits: what is needed, what the devices offer, what is missing, in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from meshnn.plan.devices import DeviceInfo
from meshnn.plan.outline import Model, outline
from meshnn.plan.plan import Recipe
from meshnn.plan.ranges import memory_bytes


def shortage(card: Model, devices: Sequence[DeviceInfo], budget: Callable[[DeviceInfo], int], window: int) -> str:
    """One line that names what is missing for a plan of this model with `window` requests in it."""
    model = outline(card)
    if not devices:
        return f"no plan for {card.name}: no live device"
    whole = memory_bytes(model, Recipe(card.digest, 0, len(card.operators) - 1), window)
    offers = [budget(info) for info in devices]
    count = f"the {len(devices)} devices offer" if len(devices) > 1 else "the one device offers"
    text = f"no plan for {card.name}: it needs {_megabytes(whole)}, {count} {_megabytes(sum(offers))}"
    positions = (0, *model.legal_cuts, len(card.operators))
    pieces = [Recipe(card.digest, first, after - 1) for first, after in pairwise(positions)]
    largest = max(pieces, key=lambda piece: memory_bytes(model, piece, 0))
    size = memory_bytes(model, largest, 0)
    if size > max(offers):
        place = (
            f"operators {largest.first}-{largest.last}" if largest.first < largest.last else f"operator {largest.first}"
        )
        text += f"; {place} cannot be cut and alone needs {_megabytes(size)}, the largest device offers "
        text += _megabytes(max(offers))
    elif sum(offers) >= whole:
        text += "; no division of it fits every device's part of that"
    return f"{text}; give devices more --memory or add devices"


def _megabytes(size_bytes: int) -> str:
    """Bytes as people read them: 1 MB = 10^6 bytes."""
    return f"{size_bytes / 1e6:.1f} MB"
