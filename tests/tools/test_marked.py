"""Tables between marks: a command's own rows are replaced, everything else stays."""

from __future__ import annotations

from tools.marked import put

HEAD = ["| Network | Precision | Split | 2 |", "|---|---|---|---|"]
TEXT = "# Doc\n\n<!-- t -->\n\n{}\n\n<!-- end of t -->\n\nAfter.\n"


def rows(*lines: str) -> list[str]:
    """A table with these rows."""
    return [*HEAD, *lines]


def test_rows_about_the_same_give_way_and_others_stay() -> None:
    """What is about another network, precision or split is kept, in its place; a network's rows stand together."""
    old = rows("| a | int8 | x | 1 |", "| b | int8 | x | 2 |", "| b | int8 | y | 3 |")
    made = put(TEXT.format("\n".join(old)), "t", rows("| b | int8 | x | 9 |", "| a | int8 | z | 4 |"))
    wanted = rows("| a | int8 | x | 1 |", "| a | int8 | z | 4 |", "| b | int8 | x | 9 |", "| b | int8 | y | 3 |")
    assert made == TEXT.format("\n".join(wanted))


def test_a_cell_that_is_left_keeps_what_it_had() -> None:
    """A long table can be made in pieces; without an old row the mark itself stands there."""
    head = ["| Network | Precision | Split | 2 | 3 |", "|---|---|---|---|---|"]
    text = put("", "t", [*head, "| a | int8 | x | 1 | 2 |"])
    made = put(text, "t", [*head, "| a | int8 | x | - | 9 |", "| a | int8 | y | - | 4 |"])
    assert [line for line in made.splitlines() if line.startswith("| a")] == [
        "| a | int8 | x | 1 | 9 |",
        "| a | int8 | y | - | 4 |",
    ]


def test_a_table_of_another_head_is_replaced_whole() -> None:
    """Old rows mean nothing under new columns."""
    old = ["| Network | Precision | Split | 2 | 3 |", "|---|---|---|---|---|", "| a | int8 | x | 1 | 2 |"]
    made = put(TEXT.format("\n".join(old)), "t", rows("| b | int8 | x | 2 |"))
    assert made == TEXT.format("\n".join(rows("| b | int8 | x | 2 |")))


def test_a_text_without_marks_gets_them_at_its_end() -> None:
    """And the second time they are found there."""
    once = put("# Doc\n", "t", rows("| a | int8 | x | 1 |"))
    assert once.startswith("# Doc\n\n<!-- t -->\n\n| Network |")
    assert put(once, "t", rows("| a | int8 | x | 1 |")) == once
