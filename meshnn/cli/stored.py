"""The models that a state folder keeps, read without the node that may run on it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from meshnn.device.records import load_record
from meshnn.errors import NodeError
from meshnn.node.messages import NameRecord


def saved_names(folder: Path) -> tuple[NameRecord, ...]:
    """The model names a state folder knows, removed ones too; NodeError where they cannot be read."""
    try:
        return msgspec.convert(load_record(folder, "names").get("records", []), tuple[NameRecord, ...])
    except msgspec.ValidationError:
        raise NodeError(f"{folder}/names.json is damaged or of another version: remove it to go on without") from None


def stored_names(folder: Path) -> dict[str, NameRecord]:
    """The models a state folder knows, by name, without those that were removed; NodeError."""
    return {record.name: record for record in saved_names(folder) if not record.removed}
