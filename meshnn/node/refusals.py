"""Which devices refused a model's plan of late, and why: the next plans do without them for a while. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from meshnn.cluster.member import BootId, DeviceId, Member

# A device that refused a plan of a model is planned without for so long, in seconds.
REFUSED_S = 30.0


class Refusals:
    """What devices said, by model and in the life they said it in."""

    def __init__(self) -> None:
        """Nobody refused anything."""
        self._said: dict[tuple[str, DeviceId, BootId], tuple[float, str]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._said.clear()

    def lapse(self, now: float) -> float | None:
        """Forget what is old; when the next is."""
        self._said = {key: word for key, word in self._said.items() if word[0] > now}
        return min((until for until, _ in self._said.values()), default=None)

    def add(self, model: str, member: Member, reason: str, now: float) -> None:
        """A device refused, or is to blame for what another refused."""
        self._said[model, member.device_id, member.boot_id] = (now + REFUSED_S, reason)

    def forgive(self, fault: str) -> None:
        """Nobody is held to what was refused for this fault any more."""
        self._said = {key: word for key, word in self._said.items() if fault not in word[1]}

    def usable(self, model: str, alive: Mapping[DeviceId, Member]) -> tuple[Member, ...]:
        """The alive devices that have not refused this model of late, sorted by id."""
        rows = (member for _, member in sorted(alive.items()))
        return tuple(row for row in rows if (model, row.device_id, row.boot_id) not in self._said)

    def reasons(self, model: str) -> list[str]:
        """What devices said that are planned without, one line each, sorted."""
        return sorted({reason for (name, _, _), (_, reason) in self._said.items() if name == model})
