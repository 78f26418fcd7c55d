"""A model's operators and cheapest cuts, as tables or JSON."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from meshnn.device.mapping import mapped
from meshnn.device.part import digest_of_file
from meshnn.device.trial import attempt
from meshnn.graph import table
from meshnn.graph.card import Card
from meshnn.graph.vet import vet

CUTS_SHOWN = 8


def card_of_file(path: Path) -> Card:
    """The card of a model file, its shapes as the runtime reports them; ModelError."""
    from meshnn.graph.describe import card_of
    from meshnn.graph.reader import read
    from meshnn.graph.shapes import with_shapes

    graph = read(mapped(path), name=path.stem)
    return card_of(with_shapes(graph, attempt(path).shapes), digest_of_file(path), path.stat().st_size, path.stem)


def card_of_json(line: bytes) -> Card:
    """The card a node gave; ModelError where it is not coherent."""
    card = msgspec.json.decode(line, type=Card)
    vet(card)
    return card


def show(card: Card, *, as_json: bool) -> None:
    """Print the operator table and the cheapest cuts."""
    rows, cuts = table.rows(card), table.cheapest_cuts(card, CUTS_SHOWN)
    if as_json:
        told = {
            "name": card.name,
            "digest": card.digest,
            "operators": [row._asdict() for row in rows],
            "cheapest_cuts": [cut._asdict() for cut in cuts],
        }
        click.echo(msgspec.json.encode(told).decode())
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    printed = Table("#", "operator", "output shape", "dtype", "MACs", "weight bytes", "activation bytes", "work ms")
    for row in rows:
        *facts, work = row
        printed.add_row(*(str(fact) for fact in facts), f"{work:.3f}")
    console.print(printed)
    for cut in cuts:
        before = f"{100 * cut.work_before:.0f} % of the work before it"
        console.print(f"cut before operator {cut.position}: {cut.size_bytes} bytes cross, {before}")
