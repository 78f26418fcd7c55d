"""Which fault befalls whom and when: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

FIRST_S = 3.0
GAP_S = (2.0, 6.0)
# A device that was killed is counted as away until its node has started again.
BOOT_S = 15.0
TRIES = 50
LOSSES = (0.01, 0.03, 0.1)


class Kind(StrEnum):
    """What can befall devices."""

    KILL = "kill"
    UNPLUG = "unplug"
    PARTITION = "partition"
    LOSS = "loss"
    STOP = "stop"
    RESTART = "restart"


# How long each lasts before it is healed, never no time at all. A killed node is started again then.
LASTS_S = {
    Kind.KILL: (0.1, 3.0),
    Kind.UNPLUG: (3.0, 14.0),
    Kind.PARTITION: (8.0, 15.0),
    Kind.LOSS: (5.0, 12.0),
    Kind.STOP: (1.0, 12.0),
    Kind.RESTART: (0.1, 2.0),
}
_AWAY = frozenset({Kind.KILL, Kind.UNPLUG, Kind.STOP, Kind.RESTART})
_ENDS_NODES = frozenset({Kind.KILL, Kind.RESTART})


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: it begins `at_s` seconds into the run and is healed `lasts_s` later.

    Of a partition, `devices` is one side. `loss` is the share of packets dropped on the devices' cables.
    """

    at_s: float
    kind: Kind
    devices: tuple[int, ...]
    lasts_s: float
    loss: float = 0.0

    @property
    def healed_s(self) -> float:
        """When it is healed."""
        return self.at_s + self.lasts_s

    @property
    def line(self) -> str:
        """The fault in a few words."""
        named = ",".join(f"d{index:02d}" for index in self.devices)
        loss = f" {self.loss:.0%}" if self.loss else ""
        return f"{self.at_s:6.1f} s {self.kind}{loss} {named} for {self.lasts_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the schedule keeps to: how many devices, which of them ask, how many hold the model together.

    Origins that are `idle` have no memory for a part of it.
    `every_s` above 0 begins a fault at every such interval; 0 leaves a random gap after each.
    """

    devices: int
    origins: tuple[int, ...]
    hold: int
    kinds: tuple[Kind, ...] = tuple(Kind)
    every_s: float = 0.0
    idle: bool = False

    @property
    def mortals(self) -> tuple[int, ...]:
        """The devices that may be killed, stopped and unplugged."""
        return tuple(index for index in range(self.devices) if index not in self.origins)


def schedule(seed: int, seconds: float, terms: Terms) -> tuple[Fault, ...]:
    """The faults of a run in the order of their beginning, all healed within `seconds`; the same for the same seed.

    Every kind of the terms comes before any comes again. No two overlap, except that devices killed before still
    start. At every moment each part of the network with an origin in it keeps enough devices to hold the model.
    """
    rng = random.Random(seed)
    faults: list[Fault] = []
    bag: list[Kind] = []
    at_s = FIRST_S
    while at_s < seconds:
        if not bag:
            bag = rng.sample(terms.kinds, len(terms.kinds))
        fault = _draw(rng, bag.pop(), at_s, terms, _away(faults, at_s))
        if fault is not None and fault.healed_s > seconds:
            break
        if fault is not None:
            faults.append(fault)
        at_s = _next(rng, at_s, fault, terms)
    return tuple(faults)


def servable(fault: Fault, terms: Terms, away: frozenset[int] = frozenset()) -> bool:
    """Whether every part with an origin keeps enough devices during a fault, `away` being gone anyway."""
    here = set(range(terms.devices)) - away
    side = set(fault.devices)
    if fault.kind is Kind.PARTITION:
        parts = [here & side, here - side]
    else:
        parts = [here - side] if fault.kind in _AWAY else [here]
    asked = [part for part in parts if part & set(terms.origins)]
    asking = {origin for part in asked for origin in part & set(terms.origins)}
    holders = set(terms.mortals) if terms.idle else here
    return asking == set(terms.origins) and all(len(part & holders) >= terms.hold for part in asked)


def _draw(rng: random.Random, kind: Kind, at_s: float, terms: Terms, away: frozenset[int]) -> Fault | None:
    """A fault of a kind that leaves the model servable; None where none was found."""
    for _ in range(TRIES):
        lasts_s = round(rng.uniform(*LASTS_S[kind]), 1)
        loss = rng.choice(LOSSES) if kind is Kind.LOSS else 0.0
        fault = Fault(round(at_s, 1), kind, _victims(rng, kind, terms), lasts_s, loss)
        if fault.devices and servable(fault, terms, away):
            return fault
    return None


def _victims(rng: random.Random, kind: Kind, terms: Terms) -> tuple[int, ...]:
    everyone = range(terms.devices)
    if kind is Kind.RESTART:
        return terms.mortals
    if kind is Kind.PARTITION:
        return _sorted(rng.sample(everyone, terms.devices // 2))
    if kind is Kind.LOSS:
        return _sorted(rng.sample(everyone, rng.randint(1, terms.devices)))
    return (rng.choice(terms.mortals),) if terms.mortals else ()


def _away(faults: Iterable[Fault], at_s: float) -> frozenset[int]:
    """The devices whose nodes were ended and may still be starting."""
    ended = [fault for fault in faults if fault.kind in _ENDS_NODES and fault.healed_s + BOOT_S > at_s]
    return frozenset(index for fault in ended for index in fault.devices)


def _next(rng: random.Random, at_s: float, fault: Fault | None, terms: Terms) -> float:
    """When the next fault begins."""
    if terms.every_s:
        return at_s + max(terms.every_s, fault.lasts_s if fault is not None else 0.0)
    return (at_s if fault is None else fault.healed_s) + rng.uniform(*GAP_S)


def _sorted(indices: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(indices))
