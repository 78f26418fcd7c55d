"""Random messages that are valid by their schema: any struct's fields drawn by type, names drawn from small pools.

Small pools make strangers' messages meet: the same devices, epochs, requests and digests come again and again.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_args

import msgspec
from msgspec import inspect

from meshnn.cluster import messages as cluster_messages
from meshnn.node import messages as node_messages
from meshnn.plan import messages as plan_messages
from tools.fuzz.mutate import edge

StructT = TypeVar("StructT", bound=msgspec.Struct)

DEVICES = tuple(letter * 26 for letter in "abcdefgh")
BOOTS = tuple(f"{number:016x}" for number in range(1, 6))
DIGESTS = tuple(digit * 64 for digit in "123")
NAMES = ("cat", "dog", "")
REQUESTS = ("r1", "r2", "r3", "")
_DEVICE_FIELDS = [
    "device",
    "device_id",
    "leader",
    "origin",
    "accuser",
    "subject",
    "target",
    "culprit",
    "voted_for",
    "holders",
    "absent",
]
POOLS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(_DEVICE_FIELDS, DEVICES),
    **dict.fromkeys(("boot", "boot_id", "origin_boot"), BOOTS),
    **dict.fromkeys(("digest", "sha256", "models", "key"), DIGESTS),
    **dict.fromkeys(("model", "name"), NAMES),
    **dict.fromkeys(("request", "ask"), REQUESTS),
    "host": ("127.0.0.1", "10.0.0.7", "::1", "x", "0.0.0.0", "255.255.255.255", "pi.local"),  # noqa: S104
    "dtype": ("float32", "int8", "uint8", "object", ""),
    "names": (f"cat@1@{DIGESTS[0]}", f"dog@2@{DIGESTS[1]}", "x@y", "@@", ""),
}
_TEXTS = ("", "a", "busy", "\u00e9", "\0", "x" * 63)
_FLOATS = (0.0, -0.0, 1.0, 0.5, 1e-300, 5e-324, 1e9, 1e300, -1.0, -1e300)
_ITEMS = (0, 1, 1, 2, 2, 3)


def message_types() -> tuple[type[msgspec.Struct], ...]:
    """Every message a node knows, as the node's own codec lists them."""
    named = [value for module in (plan_messages, node_messages) for value in vars(module).values()]
    structs = [value for value in named if isinstance(value, type) and issubclass(value, msgspec.Struct)]
    tagged = [kind for kind in structs if kind.__struct_config__.tag is not None]
    return (*get_args(cluster_messages.Message), *dict.fromkeys(tagged))


@functools.cache
def _type_of(kind: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(kind)


def message(rng: random.Random, kind: type[StructT]) -> StructT:
    """A random value of a struct type, valid by its schema."""
    for _ in range(20):
        try:
            return msgspec.convert(_value(rng, _type_of(kind), ""), kind, builtin_types=(bytes,))
        except msgspec.ValidationError:
            continue
    raise AssertionError(f"no valid {kind.__name__} was found in 20 tries")


def _value(rng: random.Random, kind: inspect.Type, name: str) -> object:
    drawn: object = None
    match kind:
        case inspect.StructType():
            drawn = _struct(rng, kind)
        case inspect.IntType():
            drawn = _whole(rng, kind, name)
        case inspect.FloatType():
            drawn = _real(rng, kind)
        case inspect.StrType():
            drawn = _text(rng, kind, name)
        case inspect.BytesType():
            drawn = rng.randbytes(rng.choice((0, 1, 8, 60)))
        case inspect.BoolType():
            drawn = rng.random() < 0.5
        case inspect.UnionType(types):
            drawn = _value(rng, rng.choice(types), name)
        case _ if not isinstance(kind, inspect.NoneType):
            drawn = _chosen(rng, kind, name)
    return drawn


def _chosen(rng: random.Random, kind: inspect.Type, name: str) -> object:
    match kind:
        case inspect.LiteralType(values):
            return rng.choice(values)
        case inspect.EnumType(enum):
            return rng.choice(list(enum)).value
        case _:
            return _several(rng, kind, name)


def _several(rng: random.Random, kind: inspect.Type, name: str) -> object:
    match kind:
        case inspect.VarTupleType() | inspect.ListType():
            least, most = kind.min_length or 0, kind.max_length
            count = max(least, rng.choice(_ITEMS) if rng.random() < 0.97 else 20)
            return [_value(rng, kind.item_type, name) for _ in range(count if most is None else min(count, most))]
        case inspect.TupleType(items):
            return [_value(rng, item, name) for item in items]
        case inspect.DictType():
            pairs = range(rng.choice(_ITEMS))
            drawn: dict[int | str, object] = {}
            for _ in pairs:
                drawn[_key(rng, kind.key_type)] = _value(rng, kind.value_type, name)
            return drawn
        case _:
            raise AssertionError(f"no way to draw {kind}")


def _key(rng: random.Random, kind: inspect.Type) -> int | str:
    drawn = _value(rng, kind, "")
    assert isinstance(drawn, (int, str))
    return drawn


def _struct(rng: random.Random, kind: inspect.StructType) -> object:
    config = kind.cls.__struct_config__
    drawn = {
        field.encode_name: _value(rng, field.type, field.name)
        for field in kind.fields
        if field.required or config.array_like or rng.random() < 0.7
    }
    if not config.array_like:
        tagged: dict[object, object] = {} if config.tag is None else {config.tag_field: config.tag}
        return tagged | drawn
    return [*([config.tag] if config.tag is not None else []), *drawn.values()]


def _whole(rng: random.Random, kind: inspect.IntType, name: str) -> int:
    least = kind.ge if kind.ge is not None else -(2**63)
    most = kind.le if kind.le is not None else (kind.lt - 1 if kind.lt is not None else 2**64 - 1)
    if rng.random() < 0.6 or name in {"first", "last", "part", "stage", "source_stage", "lane"}:
        return max(least, min(most, rng.randint(-1 if least < 0 else 0, 8)))
    value = edge(rng) if rng.random() < 0.8 else -edge(rng)
    return max(least, min(most, value))


def _real(rng: random.Random, kind: inspect.FloatType) -> float:
    value = rng.choice(_FLOATS) if rng.random() < 0.5 else rng.uniform(0, 100)
    low = -1e308 if kind.ge is None else kind.ge
    return max(low, value if kind.le is None else min(value, kind.le))


def _text(rng: random.Random, kind: inspect.StrType, name: str) -> str:
    pool = POOLS.get(name)
    if pool is None and kind.pattern is not None:
        pool = DEVICES if "26" in kind.pattern else BOOTS
    if pool is not None and (kind.pattern is not None or rng.random() < 0.95):
        return rng.choice(pool)
    return rng.choice(_TEXTS)
