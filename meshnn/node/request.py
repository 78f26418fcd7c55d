"""A request at its origin: its attempts, and what the ledger wants done about it. Pure data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from meshnn.cluster.member import DeviceId
from meshnn.plan.plan import Epoch, Plan


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the request's inputs on their way: attempt `attempt` through this lane and these groups of the plan."""

    request: str
    attempt: int
    plan: Plan
    lane: int
    groups: tuple[int, ...]
    devices: tuple[DeviceId, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Tell these devices that attempts up to this one are over."""

    request: str
    attempt: int
    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The request is answered by this attempt's result, `latency_s` after it was accepted."""

    request: str
    attempt: int
    plan: Plan
    attempts: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """The request ends with a named error: a code of `meshnn.errors` and one line."""

    request: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class GoAround:
    """A device of this plan is taken to be slow: requests go around it for a while. Worth a line in the log."""

    device: DeviceId
    epoch: Epoch


Effect = Dispatch | CancelAttempt | Answer | Fail | GoAround


@dataclass(slots=True)
class Attempt:
    """One way tried: `live` until it is superseded; its result is taken even after that.

    `inside` is how many attempts of this origin were in its plan when it was sent, itself included.
    From `late_at` on it takes far longer than others did, and is `late`; infinite where that is not known.
    """

    number: int
    plan: Plan
    lane: int
    groups: tuple[int, ...]
    devices: tuple[DeviceId, ...]
    sent_at: float
    patience_at: float
    late_at: float = math.inf
    inside: int = 1
    late: bool = False
    live: bool = True

    @property
    def in_time(self) -> bool:
        """Whether it is known not to be late."""
        return self.live and not self.late and self.late_at < math.inf


@dataclass(slots=True)
class Request:
    """An accepted request until it is answered or failed.

    `avoid` says of a device until when to go around it, and who could be gone around in its place.
    """

    name: str
    number: int
    model: str
    size_bytes: int
    accepted_at: float
    deadline: float
    waiting_since: float
    not_before: float = 0.0
    look_at: float = 0.0
    attempts: dict[int, Attempt] = field(default_factory=dict)
    avoid: dict[DeviceId, tuple[float, DeviceId]] = field(default_factory=dict)
    refused: dict[Epoch, float] = field(default_factory=dict)
    impatience: int = 0
    failures: int = 0
    model_errors: int = 0
    trouble: str = ""

    @property
    def plain(self) -> bool:
        """Whether nothing sets this request apart from the next one of its model."""
        return not self.avoid and not self.refused and not self.attempts

    @property
    def live(self) -> list[Attempt]:
        """The attempts that are not superseded: one while the request is in a plan."""
        return [attempt for attempt in self.attempts.values() if attempt.live]

    def cancels(self, winner: Attempt | None = None) -> list[Effect]:
        """What tells the devices of every live attempt but the winner that it is over."""
        losers = [attempt for attempt in self.live if attempt is not winner]
        return [CancelAttempt(self.name, attempt.number, attempt.devices) for attempt in losers]

    def late(self) -> str:
        """The line for a request whose deadline passed."""
        waited_s = self.deadline - self.accepted_at
        if not self.attempts:
            return f"no plan for {self.model} had room within {waited_s:.1f} s"
        trouble = f" (last: {self.trouble})" if self.trouble else ""
        return f"no answer from {self.model} within {waited_s:.1f} s after {len(self.attempts)} attempts{trouble}"
