"""What an earlier life of a device wrote down, read at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.device.store import Store
from meshnn.errors import NodeError
from meshnn.node.messages import NameRecord
from meshnn.telemetry import logger

PEERS_MAX = 64

_log = logger(__name__)
StructT = TypeVar("StructT", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier life of this device wrote down."""

    term: int
    voted_for: DeviceId | None
    incarnation: int
    records: tuple[NameRecord, ...]
    peers: tuple[tuple[str, int], ...]


class _Term(msgspec.Struct, frozen=True):
    """The record of the election."""

    term: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0
    voted_for: DeviceId | None = None


class _Incarnation(msgspec.Struct, frozen=True):
    """The record of membership."""

    incarnation: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0


class _Names(msgspec.Struct, frozen=True):
    """The record of the catalogue; each row is read for itself."""

    records: list[object] = []


class _Peers(msgspec.Struct, frozen=True):
    """The record of where others were."""

    peers: Annotated[list[tuple[str, int]], msgspec.Meta(max_length=PEERS_MAX)] = []


def remember(store: Store) -> Past:
    """What an earlier life wrote down; what is damaged or of another version is told in a line and left out.

    Blocks on the disk.
    """
    term = _record(store, "term", _Term)
    records = []
    for row in _record(store, "names", _Names).records:
        try:
            records.append(msgspec.convert(row, NameRecord))
        except msgspec.ValidationError as error:
            _log.warning("model_name_not_understood", reason=str(error))
    peers = tuple(_record(store, "peers", _Peers).peers)
    return Past(
        term.term, term.voted_for, _record(store, "incarnation", _Incarnation).incarnation, tuple(records), peers
    )


def _record(store: Store, name: str, kind: type[StructT]) -> StructT:
    """A record in its form, or an empty one: a device on a shelf must come up again by itself."""
    try:
        return msgspec.convert(store.load_record(name), kind)
    except (NodeError, msgspec.ValidationError) as error:
        _log.warning("record_left_out", record=name, reason=str(error))
        return kind()
