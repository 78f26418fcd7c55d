"""The parameters of the membership by size of the mesh, as simulated; see the reliability notes in docs/."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

PROBE_INTERVAL_S = 1.0
PING_TIMEOUT_S = 0.5
PING_TIMEOUT_S_MIN = 0.2
STALL_S = PROBE_INTERVAL_S / 2
ISOLATION_S = 3 * PROBE_INTERVAL_S
ALONE_AFTER_S = 8.0
"""How long an isolated device forgives everybody's silence before it goes on alone."""
GRACE_S = PROBE_INTERVAL_S
VERIFY_S = 1.0
"""How long a device whose link was reset may take to be heard again before the reset counts as evidence."""
GOSSIP_INTERVAL_S = 0.2
GOSSIP_TO_DEAD_S = 30.0
ECHO_INTERVAL_S = 0.1
RETRY_INTERVAL_S = 10.0
RETRY_SOON_S = 4.0
FRESH_DEATH_S = 600.0
"""The dead of the last ten minutes may be the other half of a partition: they are tried more often."""
TOMBSTONE_S = 24 * 3600.0
SUSPICION_STRETCH = 3.0
LOAD_INTERVAL_S = 5.0
LOAD_GOSSIP_SIZE_MAX = 64
DIRECT_BEATS_MAX = 64


class Timing(msgspec.Struct, frozen=True):
    """How a mesh of some size probes and gossips; counts are of devices or transmissions."""

    relays: int
    suspicion_min_s: float
    confirmers: int
    health_max: int
    fanout: int
    transmits: int
    sync_interval_s: float
    sync_again_s: float
    """While the last exchange found a difference."""


def earliest(times: Iterable[float | None]) -> float | None:
    """The least of these times; None where there is none."""
    least: float | None = None
    for at in times:
        if at is not None and (least is None or at < least):
            least = at
    return least


_TINY = Timing(3, 8.0, 0, 4, 3, 8, 15.0, 15.0)
_SMALL = Timing(3, 6.0, 2, 8, 3, 8, 30.0, 30.0)
_LARGE = Timing(3, 7.0, 3, 8, 3, 12, 60.0, 3.0)
_HUGE = Timing(3, 8.0, 3, 8, 3, 16, 120.0, 3.0)


def timing_for(size: int) -> Timing:
    """The parameters for a mesh of `size` usable members, this one included."""
    if size <= 4:
        return _TINY
    if size <= 32:
        return _SMALL
    return _LARGE if size <= 200 else _HUGE
