"""Push/pull: two members compare digests of their tables and exchange the rows of the buckets that differ."""

from __future__ import annotations

import random

from meshnn.cluster.member import DeviceId
from meshnn.cluster.messages import Digest, Sync
from meshnn.cluster.post import Post
from meshnn.cluster.roster import Roster

ROWS_PER_MESSAGE = 100
"""Some 35 kB: a control frame holds 64 KiB."""


class AntiEntropy:
    """Opens exchanges and answers them; what the rows mean is for the membership to say."""

    def __init__(self, roster: Roster, post: Post, rng: random.Random) -> None:
        self.deadline: float | None = None
        self._roster = roster
        self._post = post
        self._rng = rng
        self._differed = False

    def start(self, now: float) -> None:
        """Begin the periodic exchanges."""
        self.deadline = now + self._roster.timing.sync_interval_s * self._rng.uniform(0.5, 1.0)

    def open(self, device: DeviceId) -> None:
        """Open an exchange with a known or linked device."""
        self._post.stream(device, Digest(self._roster.digest()))

    def on_digest(self, source: DeviceId, digest: Digest) -> None:
        """Answer with our rows of the buckets that differ, asking for theirs."""
        pairs = zip(self._roster.digest(), digest.hashes, strict=True)
        differing = tuple(bucket for bucket, (ours, theirs) in enumerate(pairs) if ours != theirs)
        if differing:
            self._differed = True
            self._push(source, differing, differing)

    def on_wants(self, source: DeviceId, buckets: tuple[int, ...]) -> None:
        """Send our rows of the buckets another member asked for."""
        if buckets:
            self._differed = True
            self._push(source, buckets, ())

    def on_deadline(self, now: float) -> None:
        """Open the periodic exchange with a random member; soon again while tables differ."""
        if self.deadline is None or now < self.deadline:
            return
        others = self._roster.others
        if others:
            self.open(self._rng.choice(others))
        timing = self._roster.timing
        interval_s = timing.sync_again_s if self._differed else timing.sync_interval_s
        self._differed = False
        self.deadline = now + interval_s * self._rng.uniform(0.9, 1.1)

    def _push(self, to: DeviceId, buckets: tuple[int, ...], wants: tuple[int, ...]) -> None:
        rows = self._roster.rows_in(buckets)
        for start in range(0, max(1, len(rows)), ROWS_PER_MESSAGE):
            self._post.stream(to, Sync(tuple(rows[start : start + ROWS_PER_MESSAGE]), wants if start == 0 else ()))
