"""Never forget (R5): addresses where members may be, and the dead who may live, are tried again and again."""

from __future__ import annotations

from meshnn.cluster.effects import Dial
from meshnn.cluster.member import Address
from meshnn.cluster.post import Post
from meshnn.cluster.probing import Prober
from meshnn.cluster.roster import Roster
from meshnn.cluster.timing import FRESH_DEATH_S, RETRY_INTERVAL_S, RETRY_SOON_S

ADDRESSES_MAX = 256
EAGER_S = (1.0, 2.0, 3.0, 5.0)
"""Alone after the start, the known addresses are all tried again after these waits."""
AGAIN_S = 5.0


class Seeker:
    """Remembers addresses to try; seen ones are dialled at once, one of the rest every ten seconds."""

    def __init__(self, roster: Roster, post: Post, prober: Prober, seeds: tuple[Address, ...]) -> None:
        self.deadline: float | None = None
        self._roster = roster
        self._post = post
        self._prober = prober
        self._tried_at: dict[Address, float | None] = dict.fromkeys(seeds[:ADDRESSES_MAX])
        self._eager = list(EAGER_S)
        self._turn = 0

    @property
    def hopeful(self) -> bool:
        """Whether any address outside the mesh is known."""
        return any(not self._roster.holds_usable(address) for address in self._tried_at)

    def start(self, now: float) -> None:
        """Dial all seeds."""
        self._dial_all(now)
        self._rest(now)

    def on_seen(self, address: Address, now: float) -> None:
        """An address from mDNS, `--peer` or memory: dial it unless a member or a recent try is there."""
        if address not in self._tried_at and len(self._tried_at) >= ADDRESSES_MAX:
            del self._tried_at[next(iter(self._tried_at))]
        tried_at = self._tried_at.setdefault(address, None)
        if tried_at is None or now - tried_at >= AGAIN_S:
            self._dial(address, now)

    def on_interfaces(self, now: float) -> None:
        """The network changed: try everything at once."""
        self._dial_all(now)
        for row in self._roster.dead():
            self._post.effects.append(Dial(row.address, row.device_id))

    def on_deadline(self, now: float) -> None:
        """Try one tombstone and one address outside the mesh; all addresses while alone after the start."""
        if self.deadline is None or now < self.deadline:
            return
        self._roster.expire(now)
        if self._eager and not self._roster.others:
            self._dial_all(now)
        else:
            self._try_one(now)
        self._rest(now)

    def _try_one(self, now: float) -> None:
        dead = self._roster.dead()
        self._turn += 1
        if dead:
            row = dead[self._turn % len(dead)]
            self._prober.ping(row.device_id)
            self._post.effects.append(Dial(row.address, row.device_id))
        outside = [address for address in self._tried_at if not self._roster.holds_usable(address)]
        if outside:
            self._dial(outside[self._turn % len(outside)], now)

    def _dial_all(self, now: float) -> None:
        for address in list(self._tried_at):
            self._dial(address, now)

    def _dial(self, address: Address, now: float) -> None:
        if not self._roster.holds_usable(address):
            self._tried_at[address] = now
            self._post.effects.append(Dial(address))

    def _rest(self, now: float) -> None:
        fresh = bool(self._roster.recently_dead(now, FRESH_DEATH_S))
        usual_s = RETRY_SOON_S if fresh else RETRY_INTERVAL_S
        self.deadline = now + (self._eager.pop(0) if self._eager else usual_s)
