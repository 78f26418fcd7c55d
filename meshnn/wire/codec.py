"""Messages as CBOR: a closed set of msgspec structs, each tagged by its class name, decoded within bounds.

On the wire a message is the array [tag, fields]. Before the library sees a byte, one scan checks depth, number of
items, lengths, and that there are no tags, indefinite lengths, duplicate keys, odd numbers or trailing bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast

import cbor2
import msgspec
from msgspec import inspect

from meshnn.errors import PeerError

# A plan with its contingencies is the deepest thing that travels: 15 levels.
DEPTH_LIMIT = 24
# Empty maps cost 64 bytes each: this many stay under 8 MB, however few bytes announced them.
ITEMS_LIMIT = 100_000
MESSAGE_LIMIT_BYTES = 512 * 1024
TAG_LIMIT_CHARACTERS = 64

StructT = TypeVar("StructT", bound=msgspec.Struct)


class Unknown(msgspec.Struct, frozen=True):
    """A message of a type that this version does not know; to be ignored."""

    tag: str


class Codec:
    """Encodes and decodes messages of the given struct types.

    What is unknown to this version is ignored: fields, and parts of another type in a list of tagged parts.
    """

    def __init__(self, types: Iterable[type[msgspec.Struct]]) -> None:
        self._types: dict[str, type[msgspec.Struct]] = {}
        self._parts: dict[str, dict[int, frozenset[object]]] = {}
        for kind in types:
            if self._types.setdefault(kind.__name__, kind) is not kind:
                raise ValueError(f"two message types are named {kind.__name__}")
            self._parts[kind.__name__] = _tags_of_parts(kind)

    def encode(self, message: msgspec.Struct) -> bytes:
        """The bytes of a message of one of our types.

        Raises PeerError over 512 KiB, ValueError where it cannot travel (no type of ours, a number not finite).
        """
        tag = type(message).__name__
        if self._types.get(tag) is not type(message):
            raise ValueError(f"{tag} is no message type of this codec")
        data = pack([tag, builtins(message)])
        if len(data) > MESSAGE_LIMIT_BYTES:
            raise PeerError(f"a {tag} of {len(data)} bytes exceeds {MESSAGE_LIMIT_BYTES}")
        try:
            Scan(data).run()
        except PeerError as error:
            raise ValueError(f"{tag} cannot travel: {error}") from error
        return data

    def decode(self, data: bytes | bytearray | memoryview) -> msgspec.Struct:
        """The message in `data`, or `Unknown` for a tag we do not know. Raises PeerError for anything else."""
        value = load(data)
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
            raise PeerError("a message is not an array of tag and fields")
        tag = value[0]
        if len(tag) > TAG_LIMIT_CHARACTERS:
            raise PeerError("a message's tag is too long")
        kind = self._types.get(tag)
        if kind is None:
            return Unknown(tag)
        return convert(self._known(tag, value[1]), kind)

    def _known(self, tag: str, fields: object) -> object:
        """The fields of a message without the parts whose tags this version does not know."""
        if isinstance(fields, list):
            for place, tags in self._parts[tag].items():
                if place < len(fields) and isinstance(fields[place], list):
                    fields[place] = [part for part in fields[place] if not _is_strange(part, tags)]
        return fields


def _tags_of_parts(kind: type[msgspec.Struct]) -> dict[int, frozenset[object]]:
    """For an array-shaped message: at which places there are lists of tagged parts, and the tags they may have."""
    if not kind.__struct_config__.array_like:
        return {}
    found: dict[int, frozenset[object]] = {}
    tagged = kind.__struct_config__.tag is not None
    for number, field in enumerate(msgspec.structs.fields(kind)):
        shape = inspect.type_info(field.type)
        while isinstance(shape, inspect.Metadata):
            shape = shape.type
        item = shape.item_type if isinstance(shape, inspect.VarTupleType) else None
        if isinstance(item, inspect.UnionType) and all(isinstance(one, inspect.StructType) for one in item.types):
            found[number + tagged] = frozenset(one.tag for one in item.types if isinstance(one, inspect.StructType))
    return found


def _is_strange(part: object, tags: frozenset[object]) -> bool:
    """Whether something is a part of a type to come: array-shaped, with a tag that is none of these."""
    return isinstance(part, list) and bool(part) and isinstance(part[0], str) and part[0] not in tags


def load(data: bytes | bytearray | memoryview) -> object:
    """The builtins in one CBOR item, checked. Raises PeerError."""
    data = bytes(data)
    if len(data) > MESSAGE_LIMIT_BYTES:
        raise PeerError(f"a message of {len(data)} bytes exceeds {MESSAGE_LIMIT_BYTES}")
    Scan(data).run()
    try:
        return cast("object", cbor2.loads(data))
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PeerError(f"not a message: {type(error).__name__}") from error


def pack(value: object) -> bytes:
    """CBOR of builtins."""
    return cbor2.dumps(value)


def builtins(message: msgspec.Struct) -> object:
    """A struct as what CBOR knows: maps, arrays, text, bytes, numbers; sets in a fixed order."""
    fields = msgspec.to_builtins(message, builtin_types=(bytes, bytearray, memoryview), order="deterministic")
    tag_field = type(message).__struct_config__.tag_field
    if tag_field is not None and isinstance(fields, dict):
        del fields[tag_field]  # the message's tag says it already
    return cast("object", fields)


def convert(value: object, kind: type[StructT]) -> StructT:
    """Builtins as one struct. Raises PeerError with the place of the first fault, in one short printable line."""
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes, bytearray, memoryview))
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError) as error:
        fault = ascii(str(error))[1:161]
        raise PeerError(f"not a {kind.__name__}: {fault}") from error


class Scan:
    """One pass over CBOR bytes that proves them bounded before a decoder allocates anything for them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._items = 0
        # Per open container: items still to come, and for a map the keys seen so far (None for an array).
        self._open: list[tuple[int, set[bytes] | None]] = []

    def run(self) -> None:
        """Raises PeerError unless the data is exactly one item within the bounds of this module."""
        try:
            self._item()
            while self._open:
                left, keys = self._open[-1]
                if not left:
                    self._open.pop()
                    continue
                self._open[-1] = (left - 1, keys)
                if keys is not None and left % 2 == 0:
                    self._key(keys)
                else:
                    self._item()
        except IndexError:
            raise PeerError("a message ends too early") from None
        if self._at != len(self._data):
            raise PeerError("bytes follow a message")

    def _key(self, keys: set[bytes]) -> None:
        """A key is a number or a text or bytes; the same key twice is refused, however it is written."""
        begin = self._at
        if self._data[begin] >> 5 > 3:
            raise PeerError("a map has a key that is neither number, text nor bytes")
        self._item(minimal=True)
        key = self._data[begin : self._at]
        if key in keys:
            raise PeerError("a map has the same key twice")
        keys.add(key)

    def _item(self, minimal: bool = False) -> None:
        self._items += 1
        if self._items > ITEMS_LIMIT:
            raise PeerError(f"a message has more than {ITEMS_LIMIT} items")
        initial = self._data[self._at]
        major, info = initial >> 5, initial & 31
        self._at += 1
        if major == 7:
            self._simple(info)
            return
        argument = self._argument(info, minimal)
        if major in {2, 3}:
            self._at += argument
            if self._at > len(self._data):
                raise PeerError("a message ends too early")
        elif major in {4, 5}:
            self._enter(argument, is_map=major == 5)
        elif major == 6:
            raise PeerError("a message has a CBOR tag")

    def _argument(self, info: int, minimal: bool) -> int:
        if info < 24:
            return info
        if info > 27:
            raise PeerError("a message has an indefinite or reserved length")
        width = 1 << (info - 24)
        raw = self._data[self._at : self._at + width]
        if len(raw) < width:
            raise PeerError("a message ends too early")
        self._at += width
        argument = int.from_bytes(raw, "big")
        if minimal and argument < (24 if width == 1 else 1 << (4 * width)):
            raise PeerError("a map key is not written in its shortest form")
        return argument

    def _enter(self, count: int, is_map: bool) -> None:
        if len(self._open) >= DEPTH_LIMIT:
            raise PeerError(f"a message is nested deeper than {DEPTH_LIMIT}")
        items = 2 * count if is_map else count
        if items > len(self._data) - self._at:
            raise PeerError("a message ends too early")
        self._open.append((items, set() if is_map else None))

    def _simple(self, info: int) -> None:
        """False, true, null and finite floats; nothing else of major type 7."""
        if info in {20, 21, 22}:
            return
        if info not in {25, 26, 27}:
            raise PeerError("a message has a value that is neither number, text, bytes, boolean nor null")
        raw = self._data[self._at : self._at + (1 << (info - 24))]
        self._at += len(raw)
        if len(raw) < 1 << (info - 24):
            raise PeerError("a message ends too early")
        exponent_mask = {25: 0x7C00, 26: 0x7F80, 27: 0x7FF0}[info]
        if int.from_bytes(raw[:2], "big") & exponent_mask == exponent_mask:
            raise PeerError("a message has a number that is not finite")
