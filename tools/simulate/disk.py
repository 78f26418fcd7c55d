"""A device's disk: what is under way at a crash is lost, and with the power the files written a moment before."""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnn.cluster.member import DeviceId
from meshnn.graph.card import Card
from meshnn.node.messages import NameRecord
from tools.simulate.world import World

WRITE_S = 0.004
SLOW_WRITE_S = 0.5
SLOW_SHARE = 0.1
FLUSH_S = 5.0


class Disk:
    """Records are synced before they are reported; files are not, and a power loss takes the newest of them."""

    def __init__(self, world: World, chance: random.Random) -> None:
        """An empty disk."""
        self.term = 0
        self.vote: DeviceId | None = None
        self.incarnation = 0
        self.names: tuple[NameRecord, ...] = ()
        self.models: dict[str, Card] = {}
        self.shards: dict[str, float] = {}
        self.lost_writes = 0
        self._world = world
        self._chance = chance
        self._life = 0
        self._busy_until = 0.0
        self._under_way = 0

    def sync(self, write: Callable[[], None], done: Callable[[], None] | None = None) -> None:
        """Write a record, one after the other; `done` follows once it is safe. A crash before that loses it."""
        life = self._life
        mean_s = SLOW_WRITE_S if self._chance.random() < SLOW_SHARE else WRITE_S
        takes_s = WRITE_S + self._chance.expovariate(1 / mean_s)
        self._busy_until = max(self._busy_until, self._world.now) + takes_s
        self._under_way += 1

        def finish() -> None:
            if life != self._life:
                return
            self._under_way -= 1
            write()
            if done is not None:
                done()

        self._world.later(self._busy_until - self._world.now, finish)

    def crash(self, *, power: bool) -> None:
        """The process died; with `power` the machine did, and what the system had not flushed is gone."""
        self._life += 1
        self.lost_writes += self._under_way
        self._under_way = 0
        self._busy_until = 0.0
        if power:
            fresh = [key for key, at in self.shards.items() if self._world.now - at < FLUSH_S]
            self.lost_writes += len(fresh)
            for key in fresh:
                del self.shards[key]
