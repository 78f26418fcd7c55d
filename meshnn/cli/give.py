"""A model file given to the node of this device, or kept for it where none runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshnn.client import find
from meshnn.errors import ModelError

ADD_DEADLINE_S = 60.0
# What taking the file in and trying it may last beyond the deadline, in seconds.
SLACK_S = 30.0


@dataclass(frozen=True, slots=True)
class Manner:
    """How a model is to be added: as `models add` and `models pull` were told."""

    replace: bool
    no_wait: bool
    deadline_s: float


def give(folder: Path, file: Path, name: str, manner: Manner) -> str:
    """Add a model file by the node of a state folder, or store it there; the line to print. The errors of `add`."""
    node = find(folder)
    if node is None:
        from meshnn.cli.alone import store_model

        return store_model(folder, file, name, replace=manner.replace)
    query = {
        "name": name,
        "replace": int(manner.replace),
        "no_wait": int(manner.no_wait),
        "deadline": manner.deadline_s,
    }
    try:
        with file.open("rb") as body:
            told = node.request("POST", "/api/v1/models", body, query, timeout_s=manner.deadline_s + SLACK_S).json()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"{file} cannot be read: {reason}") from error
    said = "is taken" if manner.no_wait else "is served"
    return f"{told['name']} {said}: {told['bytes'] / 1e6:.1f} MB held by {len(told['holders'])} devices"
