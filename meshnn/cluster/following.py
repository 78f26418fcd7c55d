"""Whether a leader is still followed: which of the members it asked lately answered its heartbeats (CheckQuorum)."""

from __future__ import annotations

from collections.abc import Iterable

from meshnn.cluster.member import DeviceId

QUORUM_S = 3.0
"""A leader that a majority of those asked in so many seconds did not answer steps down; half a follower's lease."""


class Following:
    """When each member was asked, and when it last answered; empty while this device does not lead."""

    def __init__(self, now: float) -> None:
        self._led_since = now
        self._acked_at: dict[DeviceId, float] = {}
        self._asked_at: dict[DeviceId, float] = {}

    def begin(self, now: float) -> None:
        """This device leads from now on."""
        self._led_since = now

    def clear(self) -> None:
        """This device leads no longer."""
        self._acked_at.clear()
        self._asked_at.clear()

    def forget(self, device: DeviceId) -> None:
        """A device restarted: what its former life answered is void."""
        self._acked_at.pop(device, None)

    def on_ask(self, device: DeviceId, now: float) -> bool:
        """A heartbeat leaves; whether the one before was not answered."""
        unanswered = self._acked_at.get(device, 0.0) < self._asked_at.get(device, 0.0)
        self._asked_at[device] = now
        return unanswered

    def on_ack(self, device: DeviceId, now: float) -> None:
        """A member follows, or was met just now and is given the time to."""
        self._acked_at[device] = now

    def holds(self, others: Iterable[tuple[DeviceId, float]], now: float) -> bool:
        """Whether a majority answers, of the others asked lately; each comes with when it became usable here.

        A device met lately has not had the time to answer.
        """
        if now - self._led_since < QUORUM_S:
            return True
        asked = [(d, since) for d, since in others if now - self._asked_at.get(d, -QUORUM_S) < QUORUM_S]
        answered = [d for d, since in asked if now - max(self._acked_at.get(d, 0.0), since) < QUORUM_S]
        return 2 * (len(answered) + 1) >= len(asked) + 1
