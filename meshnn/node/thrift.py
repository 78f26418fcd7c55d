"""How much of its memory budget a device can keep to, as its real memory tells: less when memory is short. Pure.

The budget counts shards by the planner's formula; what the system has left counts everything that runs. Where the one
cannot be honoured out of the other, the budget shrinks, before the system kills this process; it grows back later and
slowly, so that a plan is not changed for every breath of another program.
"""

from __future__ import annotations

import msgspec

# What must stay free of the memory this process may use: a tenth, within bounds, for photos, loads and all the rest.
RESERVE_PART = 0.1
RESERVE_BYTES_MIN = 16 << 20
RESERVE_BYTES_MAX = 512 << 20
# How long memory must have been scarce, though not short, before the budget shrinks; and plentiful before it grows.
SCARCE_S = 10.0
PLENTY_S = 60.0
# A change by less than this part of the configured budget is no news.
NEWS_PART = 0.05


class Memory(msgspec.Struct, frozen=True):
    """A look at the real memory, in bytes: what this process may still take, out of how much; what it takes itself."""

    room_bytes: int
    limit_bytes: int
    own_bytes: int = 0

    @property
    def reserve_bytes(self) -> int:
        """What is to be kept free."""
        part = int(self.limit_bytes * RESERVE_PART)
        return min(max(part, RESERVE_BYTES_MIN), RESERVE_BYTES_MAX)

    @property
    def short(self) -> bool:
        """Whether less than the reserve is left: the system may soon end processes."""
        return self.room_bytes < self.reserve_bytes


class Thrift:
    """The budget in force, from looks at the memory some times a minute."""

    def __init__(self, configured_bytes: int) -> None:
        """`configured_bytes`: what the person allowed; never more."""
        self._configured_bytes = configured_bytes
        self.budget_bytes = configured_bytes
        self._since: float | None = None
        self._growing = False
        self._extreme_bytes = 0

    @property
    def configured_bytes(self) -> int:
        """What the person allowed."""
        return self._configured_bytes

    def on_look(self, memory: Memory, used_bytes: int, now: float) -> bool:
        """A look at the memory while the loaded shards count `used_bytes`; whether the budget is another now.

        Shards free less than they count (weights are counted twice), so shedding takes a look or two more; and growing
        by what is free never promises too much.
        """
        left_bytes = memory.room_bytes - memory.reserve_bytes
        affordable_bytes = max(0, min(self._configured_bytes, used_bytes + left_bytes))
        if memory.short and affordable_bytes < min(used_bytes, self.budget_bytes):
            self._since = None
            return self._settle(affordable_bytes)
        return self._weigh(affordable_bytes, now)

    def _weigh(self, affordable_bytes: int, now: float) -> bool:
        """Follow a lasting change: down to the most, up to the least that was affordable all the while."""
        change_bytes = affordable_bytes - self.budget_bytes
        whole = affordable_bytes == self._configured_bytes
        if abs(change_bytes) < NEWS_PART * self._configured_bytes and not (whole and change_bytes):
            self._since = None
            return False
        growing = change_bytes > 0
        if self._since is None or growing is not self._growing:
            self._since, self._growing, self._extreme_bytes = now, growing, affordable_bytes
        keep = min if growing else max
        self._extreme_bytes = keep(self._extreme_bytes, affordable_bytes)
        if now - self._since < (PLENTY_S if growing else SCARCE_S):
            return False
        self._since = None
        return self._settle(self._extreme_bytes)

    def _settle(self, budget_bytes: int) -> bool:
        before, self.budget_bytes = self.budget_bytes, budget_bytes
        return before != budget_bytes
