"""The plan: lanes of stages of groups of shards, and the epoch that fences it (DESIGN.md section 3)."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from meshnn.cluster.member import BootId, DeviceId

Split = Literal["none", "output", "input", "spatial"]
# The version of the bytes graph.writer gives: part of every recipe, so that two writers never share a shard.
WRITER_VERSION = 1


class Epoch(msgspec.Struct, frozen=True, order=True):
    """What fences a plan: totally ordered by (term, leader, number); `absent` names a contingency's missing device."""

    term: int
    leader: DeviceId
    number: int
    absent: str = ""

    def __str__(self) -> str:
        """`TERM.LEADER.NUMBER[-ABSENT]`, the form every output shows."""
        text = f"{self.term}.{self.leader}.{self.number}"
        return f"{text}-{self.absent}" if self.absent else text

    def without(self, device: DeviceId) -> Epoch:
        """The epoch of this plan's contingency for the death of `device`."""
        return Epoch(self.term, self.leader, self.number, device)

    @property
    def main(self) -> Epoch:
        """The epoch of the plan this one stands in for (itself, unless it is a contingency)."""
        return Epoch(self.term, self.leader, self.number)


class Recipe(msgspec.Struct, frozen=True, order=True):
    """What names a shard: enough for any holder of the model to cut the same bytes.

    `shares` are the parts' relative sizes as boundaries in elements (empty for `none`); `part` counts from 0.
    """

    digest: str
    first: int
    last: int
    split: Split = "none"
    part: int = 0
    shares: tuple[int, ...] = ()
    writer: int = WRITER_VERSION

    @property
    def key(self) -> str:
        """The hex name of the shard's file: a hash of the recipe's canonical JSON."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:40]


class Shard(msgspec.Struct, frozen=True):
    """One device's part of a group: the device, in the life (boot) that the plan was made for."""

    device: DeviceId
    boot: BootId


class Group(msgspec.Struct, frozen=True):
    """One replica of a stage: its split and its shards in part order; requests are dealt to groups by weight."""

    shards: tuple[Shard, ...]
    split: Split = "none"
    shares: tuple[int, ...] = ()
    weight: int = 1


class Stage(msgspec.Struct, frozen=True):
    """A contiguous run of operators (inclusive), served by one or more groups."""

    first: int
    last: int
    groups: tuple[Group, ...]


class Lane(msgspec.Struct, frozen=True):
    """A whole way through the model: stages in topological order."""

    stages: tuple[Stage, ...]
    weight: int = 1


class Plan(msgspec.Struct, frozen=True):
    """Who runs what of one model in one epoch. `window` bounds the requests inside it, `share` those of one origin."""

    epoch: Epoch
    model: str
    digest: str
    lanes: tuple[Lane, ...]
    window: int = 4
    share: int = 4
    pinned: bool = False

    def devices(self) -> tuple[DeviceId, ...]:
        """Every device that holds a shard of this plan, sorted."""
        return tuple(sorted({shard.device for _, shard in self.placements()}))

    def placements(self) -> tuple[tuple[Recipe, Shard], ...]:
        """Every shard with its recipe, in lane, stage, group and part order."""
        return tuple(
            (Recipe(self.digest, stage.first, stage.last, group.split, part, group.shares), shard)
            for lane in self.lanes
            for stage in lane.stages
            for group in stage.groups
            for part, shard in enumerate(group.shards)
        )

    def recipes_of(self, device: DeviceId) -> tuple[Recipe, ...]:
        """The distinct recipes that `device` must hold, sorted."""
        return tuple(sorted({recipe for recipe, shard in self.placements() if shard.device == device}))

    def lives(self) -> dict[DeviceId, BootId]:
        """The boot id the plan expects of each of its devices."""
        return {shard.device: shard.boot for _, shard in self.placements()}


class PlanSet(msgspec.Struct, frozen=True):
    """A plan with its contingencies: one plan for each single death that leaves the model servable."""

    main: Plan
    contingencies: tuple[Plan, ...] = ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan itself, then its contingencies."""
        return (self.main, *self.contingencies)

    def without(self, device: DeviceId) -> Plan | None:
        """The contingency for the death of `device`, where there is one."""
        return next((plan for plan in self.contingencies if plan.epoch.absent == device), None)
