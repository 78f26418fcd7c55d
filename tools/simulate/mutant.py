"""What a mutant is: a rule, and one line that breaks it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule, the line that keeps it, the line that breaks it, and the files of its tests (with spaces between)."""

    rule: str
    path: str
    line: str
    broken: str
    tests: str
