"""Spoils bytes and values the way that finds faults: at lengths, counts, edges and joints, from a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

EDGES = (0, 1, 2, 7, 8, 15, 16, 23, 24, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 4096, 32767, 32768, 65535)
HUGE = (65536, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}
ROUNDS_MAX = 6
INSERTED_MAX = 64

Change = Callable[[random.Random, bytearray], None]


def edge(rng: random.Random) -> int:
    """A whole number where code breaks: small ones, powers of two and their neighbours, huge ones."""
    return rng.choice(EDGES) if rng.random() < 0.6 else rng.choice(HUGE)


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to six changes; once in a while as it was, or joined to a part of one of `others`."""
    if rng.random() < 0.02:
        return data
    spoilt = bytearray(data)
    for _ in range(1 if rng.random() < 0.5 else rng.randint(2, ROUNDS_MAX)):
        rng.choice(_CHANGES)(rng, spoilt)
    if others and rng.random() < 0.1:
        other = rng.choice(others)
        spoilt[_place(rng, spoilt) :] = other[rng.randrange(len(other) + 1) :]
    return bytes(spoilt)


def _place(rng: random.Random, data: bytearray) -> int:
    return rng.randrange(len(data) + 1)


def _span(rng: random.Random, data: bytearray) -> slice:
    begin = _place(rng, data)
    return slice(begin, begin + rng.randrange(1, 9 if rng.random() < 0.7 else INSERTED_MAX))


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray) -> None:
    """An edge written over what is there, in any width and order of bytes, mostly aligned."""
    width = rng.choice((1, 2, 4, 4, 8))
    if len(data) < width:
        return
    at = rng.randrange(len(data) - width + 1)
    if rng.random() < 0.7:
        at -= at % width
    value = edge(rng) & ((1 << 8 * width) - 1)
    struct.pack_into((">" if rng.random() < 0.5 else "<") + WIDTHS[width], data, at, value)


def _nudge(rng: random.Random, data: bytearray) -> None:
    """A little-endian number a little larger or smaller: offsets that point beside what they meant."""
    if len(data) < 4:
        return
    at = rng.randrange(len(data) // 4) * 4
    (value,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, (value + rng.randint(-8, 8)) & 0xFFFFFFFF)


def _delete(rng: random.Random, data: bytearray) -> None:
    del data[_span(rng, data)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data)
    data[span.start : span.start] = data[span]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(rng.randrange(1, INSERTED_MAX))


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[_place(rng, data) :]


def _move(rng: random.Random, data: bytearray) -> None:
    part = data[_span(rng, data)]
    at = _place(rng, data)
    data[at : at + len(part)] = part


_CHANGES: tuple[Change, ...] = (
    _flip,
    _flip,
    _set,
    _number,
    _number,
    _nudge,
    _delete,
    _repeat,
    _insert,
    _truncate,
    _move,
)


def spoilt(rng: random.Random, value: object) -> object:
    """A value of builtins with one place changed to something of another kind or size."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {other: item for other, item in value.items() if other != key}
        return value | {key: spoilt(rng, value[key])}
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.85:
        items = list(value)
        at = rng.randrange(len(items))
        if rng.random() < 0.1:
            return items[:at] + items[at + 1 :] if rng.random() < 0.5 else items + items[at:]
        items[at] = spoilt(rng, items[at])
        return items
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.6:
        return rng.choice((edge(rng), -edge(rng), value + 1, -value, 0, 1e300, -1e-300))
    if isinstance(value, str) and rng.random() < 0.4:
        return rng.choice((value + value[:1], value[:-1], value.upper(), "", "\0", value * 9, "\u00e9\U0001f600"))
    return anything(rng)


def anything(rng: random.Random, depth: int = 2) -> object:
    """Any builtin at all."""
    kind = rng.randrange(9 if depth else 7)
    if kind == 7:
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {str(anything(rng, 0)): anything(rng, depth - 1) for _ in range(rng.randrange(4))}
    simple = (None, True, edge(rng), -edge(rng), rng.uniform(-1e6, 1e6), rng.randbytes(rng.randrange(9)))
    return simple[kind] if kind < 6 else rng.choice(("", "a", "\0", "a" * 26, "0" * 16, "\u20ac" * 40, "../../x"))
