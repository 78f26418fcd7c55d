"""A measured figure beside its criterion."""

from __future__ import annotations

import math
from dataclasses import dataclass

NO_BOUND = math.inf


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, the figure, and what it must not exceed (or, `at_least`, fall below)."""

    what: str
    value: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the criterion is met."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        """One line."""
        verdict = "pass" if self.passed else "FAIL"
        criterion = "no criterion" if math.isinf(self.bound) else f"{'>=' if self.at_least else '<='} {self.bound:g}"
        return f"{verdict}  {self.what}: {self.value:.3g} {self.unit} ({criterion})"
