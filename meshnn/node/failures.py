"""Which models could not be planned or prepared, and when each may be tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# After a failure the next attempt waits, twice as long each time, unless the devices or the model change.
BACKOFF_S = 2.0
BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """What was tried, and when it is worth another try though nothing has changed."""

    signature: tuple[object, ...]
    until: float
    tries: int
    by_choice: bool


class Failures:
    """The last failure of each model; its `signature` is all that it depends on."""

    def __init__(self) -> None:
        """Nothing failed."""
        self._rows: dict[str, _Failure] = {}

    @property
    def models(self) -> frozenset[str]:
        """The models that failed last."""
        return frozenset(self._rows)

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()

    def forget(self, model: str) -> None:
        """It went well, or is no model any more."""
        self._rows.pop(model, None)

    def add(
        self, model: str, signature: tuple[object, ...], now: float, *, hopeless: bool, by_choice: bool = False
    ) -> float:
        """It failed once more: when to try again, in the caller's clock. What was `by_choice` delays nothing needed."""
        old = self._rows.get(model)
        again = old is not None and (old.signature, old.by_choice) == (signature, by_choice)
        tries = old.tries + 1 if old is not None and again else 1
        wait_s = BACKOFF_MAX_S if hopeless else min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(tries - 1, 10))
        self._rows[model] = _Failure(signature, now + wait_s, tries, by_choice)
        return now + wait_s

    def stands(self, model: str, signature: tuple[object, ...], *, needed: bool) -> bool:
        """Whether this very thing failed last; where a plan is `needed`, a choice that failed does not count."""
        row = self._rows.get(model)
        return row is not None and row.signature == signature and not (needed and row.by_choice)

    def until(self, model: str) -> float:
        """When a model may be tried again as it is; 0.0 where nothing failed."""
        return self._rows[model].until if model in self._rows else 0.0

    def tries(self, model: str) -> int:
        """How often it failed in a row."""
        return self._rows[model].tries if model in self._rows else 0
