"""The borders of plans: JSON that a person wrote, and plans a peer sends, for a model whose card is known."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import NoPlanError, UsageError
from meshnn.graph.describe import card_of
from meshnn.graph.writer import write
from meshnn.node.jobs import memory_taken
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.explicit import bound, decode
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Shard, Stage
from meshnn.plan.routes import derive, ways
from meshnn.plan.verify import check, check_form
from tools.fuzz.border import Border
from tools.fuzz.files import small_graph
from tools.fuzz.mutate import mutated, spoilt
from tools.fuzz.values import BOOTS, DEVICES, DIGESTS

DERIVED_MAX = 4
DEEP = (b"[" * 3000, b'{"plan":' * 3000, b'{"lanes":[{"stages":[' * 900, b"9" * 5000)


def _plans() -> list[Plan]:
    """Legal plans for the small network: whole, in two stages, with every split, in two lanes and groups."""
    epoch = Epoch(1, DeviceId(DEVICES[0]), 1)
    seats = [Shard(DeviceId(device), BootId(BOOTS[0])) for device in DEVICES]
    one = [Group((seat,)) for seat in seats]
    total = len(small_graph().operators)
    whole = Lane((Stage(0, total - 1, (one[0],)),))
    halves = Lane((Stage(0, 4, (one[1],)), Stage(5, total - 1, (one[2], one[3]))), 2)
    split = Lane(
        (
            Stage(0, 0, (Group((seats[0], seats[1]), "spatial", (2, 3)),)),
            Stage(1, 1, (Group((seats[0], seats[2]), "output", (3, 3)),)),
            Stage(2, total - 1, (one[3],)),
        )
    )
    return [Plan(epoch, "cat", DIGESTS[0], lanes) for lanes in ((whole,), (halves,), (split,), (whole, halves))]


class Written:
    """JSON of plans, spoilt as text and as values; what is a plan is looked at in full."""

    def __init__(self) -> None:
        """The card, the devices, some good files."""
        graph = small_graph()
        self._card = card_of(graph, DIGESTS[0], len(write(graph).to_bytes()), "cat")
        self._devices = [
            DeviceInfo(DeviceId(device), BootId(BOOTS[0]), 10**9, 1.0, name=device[:1]) for device in DEVICES
        ]
        self._values: list[object] = [msgspec.to_builtins(plan) for plan in _plans()]
        self._values += [{"plan": self._values[1]}, [{"model": "cat", "plan": self._values[2]}]]
        self._good = [json.dumps(value).encode() for value in self._values]

    def draw(self, rng: random.Random) -> bytes:
        """The file's bytes."""
        if rng.random() < 0.5:
            return mutated(rng, rng.choice(self._good), (*self._good, *DEEP))
        value: object = rng.choice(self._values)
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = spoilt(rng, value)
        return json.dumps(value, default=repr).encode()

    def take(self, given: object) -> None:
        """Read, seat and check it."""
        assert isinstance(given, bytes)
        plan = bound(decode(given, "cat"), outline(self._card), self._devices, name="cat")
        check(plan, self._card, self._devices)

    def close(self) -> None:
        """Nothing is left."""


class Sent:
    """Plans as a peer sends them, spoilt as values; what has the form of a plan can be computed with."""

    def __init__(self) -> None:
        """The card and some good plans."""
        graph = small_graph()
        self._card = card_of(graph, DIGESTS[0], len(write(graph).to_bytes()), "cat")
        self._values = [msgspec.to_builtins(plan) for plan in _plans()]

    def draw(self, rng: random.Random) -> object:
        """A plan's values."""
        value: object = rng.choice(self._values)
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = spoilt(rng, value)
        return value

    def take(self, given: object) -> None:
        """Look at its form; then count memory as a leader does, and derive routes as a stage does."""
        plan = msgspec.convert(given, Plan)
        check_form(plan, self._card)
        memory_taken([(PlanSet(plan), None)], lambda digest: self._card if digest == DIGESTS[0] else None)
        model = outline(self._card)
        for number, (lane, groups, _) in enumerate(ways(plan)):
            if number < DERIVED_MAX:
                derive(model, plan.lanes[lane], groups)

    def close(self) -> None:
        """Nothing is left."""


def _written(rng: random.Random, folder: Path) -> Written:
    return Written()


def _sent(rng: random.Random, folder: Path) -> Sent:
    return Sent()


BORDERS = (
    Border("plan-json", _written, (UsageError, NoPlanError), episode=20_000),
    Border("plan", _sent, (UsageError, NoPlanError, msgspec.ValidationError), episode=20_000),
)
