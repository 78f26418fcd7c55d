"""What is wrong with this device that a person should know: told loudly when it begins, shown while it lasts. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from meshnn.node.effects import Changed, Effect, note


class Health:
    """Troubles by subject, one line each; without any the device is in good health."""

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}

    @property
    def degraded(self) -> bool:
        """Whether something is wrong."""
        return bool(self._troubles)

    @property
    def troubles(self) -> Mapping[str, str]:
        """What is wrong, by subject in order."""
        return dict(sorted(self._troubles.items()))

    def tell(self, subject: str, reason: str) -> list[Effect]:
        """A subject is in trouble for this reason; an empty one: it is well again. Only news has effects."""
        before = self._troubles.get(subject, "")
        if reason == before:
            return []
        if not reason:
            del self._troubles[subject]
            return [note("health_restored", subject=subject, degraded=self.degraded), Changed()]
        self._troubles[subject] = reason
        return [note("health_degraded", warning=True, subject=subject, reason=reason), Changed()]
