"""Tables in Markdown that a command keeps up to date: between two marks of a file, its own rows and no others."""

from __future__ import annotations

from collections.abc import Sequence

GROUP, KEY = 2, 3
"""The first columns that say what a row is about: network and precision, and with them the split."""


LEFT = "-"
"""What a cell says that was not made anew: an old row keeps its own there."""


def put(text: str, name: str, table: Sequence[str]) -> str:
    """The text with a table's rows between its marks; at its end where it has none.

    `table` is head, rule and rows. A row about the same network, precision and split as one of them gives way to it;
    others stay, where the head is still the same. A network's rows stand together.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, old, after = f"{text.rstrip()}\n\n", [], "\n"
    if begin in text and end in text:
        before, after = text[: text.index(begin)], text[text.index(end) + len(end) :]
        old = [line for line in text[text.index(begin) : text.index(end)].splitlines() if line.startswith("|")]
    kept = old[2:] if old[:2] == list(table[:2]) else []
    return before + "\n".join([begin, "", *table[:2], *_merged(kept, table[2:]), "", end]) + after


def _merged(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """All rows by what they are about, the new ones where there are two, each network's together."""
    rows = {_about(row, KEY): row for row in old}
    for row in new:
        rows[_about(row, KEY)] = _over(rows.get(_about(row, KEY), row), row)
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows.values():
        groups.setdefault(_about(row, GROUP), []).append(row)
    return [row for group in groups.values() for row in group]


def _over(old: str, new: str) -> str:
    """The new row, with the old one's cells where it leaves them."""
    pairs = zip(old.split("|"), new.split("|"), strict=True)
    return "|".join(before if after.strip() == LEFT else after for before, after in pairs)


def _about(row: str, columns: int) -> tuple[str, ...]:
    """What the first columns say."""
    return tuple(cell.strip() for cell in row.split("|")[1 : 1 + columns])
