"""A model's operators and cheapest cuts, as tables or JSON."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from meshnn.device.mapping import mapped
from meshnn.device.part import digest_of_file
from meshnn.device.trial import attempt
from meshnn.graph.card import Card, CardTensor

CUTS_SHOWN = 8


def card_of_file(path: Path) -> Card:
    """The card of a model file, its shapes as the runtime reports them; ModelError."""
    from meshnn.graph.describe import card_of
    from meshnn.graph.reader import read
    from meshnn.graph.shapes import with_shapes

    graph = read(mapped(path), name=path.stem)
    return card_of(with_shapes(graph, attempt(path).shapes), digest_of_file(path), path.stat().st_size, path.stem)


def card_of_json(line: bytes) -> Card:
    """The card a node gave."""
    return msgspec.json.decode(line, type=Card)


def cheapest_cuts(card: Card) -> list[dict[str, int]]:
    """The legal cuts that move the fewest bytes, cheapest first: position and bytes."""
    sizes = {tensor.index: tensor.size_bytes for tensor in card.tensors}
    rows = [
        {"before_operator": position, "bytes": sum(sizes[index] for index in card.crossing(position))}
        for position in range(1, len(card.operators))
        if card.cuttable(position) is None
    ]
    return sorted(rows, key=lambda row: (row["bytes"], row["before_operator"]))[:CUTS_SHOWN]


def show(card: Card, *, as_json: bool) -> None:
    """Print the operator table and the cheapest cuts."""
    rows = _rows(card)
    if as_json:
        told = {"name": card.name, "digest": card.digest, "operators": rows, "cheapest_cuts": cheapest_cuts(card)}
        click.echo(msgspec.json.encode(told).decode())
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("#", "operator", "output shape", "dtype", "MACs", "weight bytes", "activation bytes")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    for cut in cheapest_cuts(card):
        console.print(f"cut before operator {cut['before_operator']}: {cut['bytes']} bytes cross")


def _rows(card: Card) -> list[dict[str, object]]:
    produced: dict[int, CardTensor] = {tensor.producer: tensor for tensor in reversed(card.tensors)}
    written: dict[int, int] = {}
    for tensor in card.tensors:
        written[tensor.producer] = written.get(tensor.producer, 0) + tensor.size_bytes
    rows: list[dict[str, object]] = []
    for position, operator in enumerate(card.operators):
        made = produced.get(position)
        rows.append(
            {
                "index": position,
                "kind": operator.kind,
                "shape": list(made.shape) if made is not None else [],
                "dtype": made.dtype if made is not None else "",
                "macs": operator.macs,
                "weight_bytes": operator.weight_bytes,
                "activation_bytes": written.get(position, 0),
            }
        )
    return rows
