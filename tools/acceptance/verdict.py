"""What a scenario is given, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

Figure = float | int | str | list[float] | list[str]


@dataclass(frozen=True, slots=True)
class Setting:
    """What every scenario is about: a model, a photo and the word its best label must hold."""

    model: Path
    photo: Path
    label: str
    logs: Path
    seed: int = 0
    cpu: float = 0.2
    rate: str = "100mbit"

    @property
    def name(self) -> str:
        """What the model is called in the mesh: the file's stem."""
        return self.model.stem


@dataclass(slots=True)
class Verdict:
    """The figures of one scenario, and every rule it broke."""

    scenario: str
    figures: dict[str, Figure] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no rule was broken."""
        return not self.faults

    def check(self, true: bool, fault: str) -> None:
        """Note a broken rule where it does not hold."""
        if not true:
            self.faults.append(fault)

    @property
    def line(self) -> str:
        """Everything in one line."""
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.figures.items())
        return f"{self.scenario}: {'pass' if self.passed else 'FAIL: ' + '; '.join(self.faults)} ({told})"
