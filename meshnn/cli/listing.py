"""What `meshnn models list` prints: the mesh's models, or what this device has and could fetch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnn.client import find

if TYPE_CHECKING:
    from meshnn.known_models import KnownModel


def rows(folder: Path, *, catalogue: bool) -> list[dict[str, Any]]:
    """One row a model: `name`, `digest`, `bytes` (null where unknown), `holders` (device ids) and `where`.

    `where` is "mesh" for a model of the mesh, "stored" for one that waits here for a node, "ships" for the default,
    "catalogue" for one that can be pulled. The catalogue is listed where it is asked for, or where no node runs.
    """
    node = find(folder)
    found = _stored(folder) if node is None else [{**row, "where": "mesh"} for row in node.get("/api/v1/models")]
    if node is None or catalogue:
        from meshnn import known_models

        here = {row["name"] for row in found}
        found += [_row(entry) for entry in known_models.catalogue() if entry.name not in here]
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print rows for a person."""
    for row in found:
        size = "size unknown" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f} MB"
        click.echo(f"{row['name']}\t{size}\t{_place(row)}\t{row['digest'][:12]}")


def _place(row: dict[str, Any]) -> str:
    if row["where"] == "mesh":
        return f"{len(row['holders'])} holders"
    words = {"stored": "stored here", "ships": "ships with meshnn", "catalogue": "meshnn models pull"}
    return words[row["where"]]


def _stored(folder: Path) -> list[dict[str, Any]]:
    from meshnn.cli.stored import stored_names

    return [
        {
            "name": record.name,
            "digest": record.digest,
            "bytes": record.size_bytes,
            "holders": [],
            "where": "stored",
        }
        for record in stored_names(folder).values()
    ]


def _row(entry: KnownModel) -> dict[str, Any]:
    return {
        "name": entry.name,
        "digest": entry.sha256,
        "bytes": entry.size_bytes,
        "holders": [],
        "where": "catalogue" if entry.url else "ships",
    }
