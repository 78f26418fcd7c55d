"""A candidacy: one round of questions to the members of a view, and the order in which members stand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from meshnn.cluster.member import DeviceId, Member

ROUND_S = 1.2
RESEND_S = 0.3
STORING_S = 10.0
RANK_S = 0.3
RANK_MAX = 8

Stage = Literal["asking", "storing", "voting"]


@dataclasses.dataclass(slots=True)
class Candidacy:
    """The pre-vote, the storing of the term, or the vote; `asked` is the view without the candidate.

    `needed` yeses beside the candidate's own are a majority of the members that no two suspect.
    """

    stage: Stage
    term: int
    asked: tuple[DeviceId, ...]
    needed: int
    begun_at: float
    ends_at: float
    resend_at: float
    granted: set[DeviceId] = dataclasses.field(default_factory=set)
    refused: set[DeviceId] = dataclasses.field(default_factory=set)

    @property
    def won(self) -> bool:
        """Whether enough said yes."""
        return len(self.granted) >= self.needed

    @property
    def lost(self) -> bool:
        """Whether a vote is split: too many said no, and waiting for the rest is of no use.

        A pre-vote waits all the same: its no means that somebody leads, and the next question may as well be later.
        """
        return self.stage == "voting" and len(self.asked) - len(self.refused) < self.needed

    @property
    def silent(self) -> list[DeviceId]:
        """Those who have not answered, in order."""
        return [device for device in self.asked if device not in self.granted and device not in self.refused]

    @property
    def deadline(self) -> float | None:
        """When something is due; storing may take long on a slow disk."""
        return self.ends_at if self.stage == "storing" else min(self.resend_at, self.ends_at)


def candidacy(stage: Stage, term: int, asked: tuple[DeviceId, ...], trusted: int, now: float) -> Candidacy:
    """A fresh round in a view of `trusted` members, the candidate included, beside those that many suspect."""
    return Candidacy(stage, term, asked, trusted // 2, now, now + ROUND_S, now + RESEND_S)


def turn_s(me: DeviceId, rows: Sequence[Member], ages_s: Mapping[DeviceId, float]) -> float:
    """How long a member lets the fitter ones of its view go first, seconds; who is not in it waits as the eighth.

    In large views the many after the first few must hear of a winner, which takes gossip some seconds, before they ask
    everybody themselves: a thousand candidates would send a million questions.
    """
    order = sorted(rows, key=lambda row: fitness(row, ages_s[row.device_id]))
    rank = next((place for place, row in enumerate(order) if row.device_id == me), RANK_MAX)
    return RANK_S * (min(rank, RANK_MAX) + math.log2(1 + max(0, rank - RANK_MAX)))


def fitness(member: Member, age_s: float) -> tuple[bool, bool, int, str]:
    """Sorts the fittest first: mains before battery, wired before wireless, long present, lower id."""
    age = int(math.log2(max(age_s, 1.0)))
    return (not member.capability.on_mains, not member.capability.wired, -age, member.device_id)


def merit(view_size: int, age: int, device: DeviceId) -> tuple[int, int, str]:
    """Sorts the better of two leaders first: larger view, then longer up, then lower id."""
    return (-view_size, -age, device)
