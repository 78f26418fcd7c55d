"""The machines behind the borders: valid messages from anybody, in any order; they must stay whole and bounded."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from meshnn.cluster import messages as cluster_messages
from meshnn.cluster.cluster import Cluster
from meshnn.cluster.effects import Evidence, PersistTerm, SendDatagram, SendStream
from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Load, Member
from meshnn.errors import BusyError, PeerError
from meshnn.graph.describe import card_of
from meshnn.node.assembly import Assembly, Key
from meshnn.node.catalogue import Catalogue
from meshnn.node.core import Core
from meshnn.node.effects import Effect, Send
from meshnn.node.inputs import Arrival, Target
from meshnn.node.shards import Shards
from meshnn.node.slices import Passage, Piece
from meshnn.node.switchboard import codec
from meshnn.plan.boxes import Box
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch
from meshnn.plan.routes import ORIGIN, Need, Source
from meshnn.plan.shipments import At
from meshnn.wire.datagram import BODY_LIMIT_BYTES
from tools.fuzz.border import Border
from tools.fuzz.files import small_graph
from tools.fuzz.mutate import edge
from tools.fuzz.values import BOOTS, DEVICES, DIGESTS, message, message_types

ME = DeviceId("m" * 26)
BOOT = BootId("f" * 16)
HELD_BYTES_MAX = 1 << 16
# How many messages of the episode are kept, to be said again.
REPEATED_MAX = 200
ENCODED_EVERY = 5
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)
DATAGRAMS = get_args(cluster_messages.Datagram)


def member() -> Member:
    """This device."""
    capability = Capability(10**9, 10**9, 1.0, 1, "x", can_cut=True)
    return Member(ME, BOOT, "me", Address("127.0.0.1", 7766), 7767, 1_000, capability=capability)


def cluster(rng: random.Random) -> Cluster:
    """A machine that has just started."""
    return Cluster(member(), (Address("10.0.0.9", 7766),), 0, None, random.Random(rng.random()), 0.0)


class Said:
    """Messages drawn fresh or said again."""

    def __init__(self, kinds: tuple[type[msgspec.Struct], ...]) -> None:
        """Of these types."""
        self._kinds = kinds
        self._kept: list[msgspec.Struct] = []

    def draw(self, rng: random.Random) -> msgspec.Struct:
        """A message."""
        if len(self._kept) >= REPEATED_MAX and rng.random() < 0.6:
            return rng.choice(self._kept)
        drawn = message(rng, rng.choice(self._kinds))
        if len(self._kept) < REPEATED_MAX:
            self._kept.append(drawn)
        else:
            self._kept[rng.randrange(REPEATED_MAX)] = drawn
        return drawn


Step = tuple[str, DeviceId, object, float]


class Machine:
    """A core (with its cluster) under random events; what it wants sent must be sendable."""

    def __init__(self, rng: random.Random, *, alone: bool) -> None:
        """`alone`: the cluster's own messages only."""
        card = card_of(small_graph(), DIGESTS[0], 1000, "cat")
        self._codec = codec()
        self._cluster = cluster(rng)
        self.core = Core(
            self._cluster,
            Catalogue(ME, (), {DIGESTS[0]: card}),
            Shards(10**6, lambda recipe: recipe.part == 0),
            ME,
            BOOT,
        )
        self._now = 1.0
        self._steps = 0
        self._datagrams = Said(DATAGRAMS)
        own = (*DATAGRAMS, cluster_messages.Digest, cluster_messages.Sync)
        self._messages = Said(own if alone else message_types())
        self.core.start(self._now)

    def draw(self, rng: random.Random) -> Step:
        """What happens next, from whom, and how much time passes before."""
        who = DeviceId(rng.choice(DEVICES))
        waits_s = rng.choice((0.0, 0.0, 0.01, 0.2, 0.2, 1.0, 1.0, rng.uniform(0, 40)))
        share = rng.random()
        if share < 0.35:
            return "datagram", who, (BootId(rng.choice(BOOTS)), self._datagrams.draw(rng)), waits_s
        if share < 0.8:
            return "message", who, self._messages.draw(rng), waits_s
        event = rng.choice(("deadline", "deadline", "linked", "unlinked", "seen", "unreachable", "load", "persisted"))
        told = (rng.choice(BOOTS), rng.choice((*EVIDENCE, "timeout")), rng.randrange(65536), edge(rng) % 2**63)
        return event, who, told, waits_s

    def take(self, given: object) -> None:
        """Let it happen, and look at what the machine makes of it."""
        assert isinstance(given, tuple)
        event, who, told, waits_s = given
        self._now += waits_s
        self._steps += 1
        self._look(self._happen(event, who, told))
        deadline = self.core.deadline
        assert deadline is None or math.isfinite(deadline), "a deadline that is no time"
        if deadline is not None and deadline <= self._now:
            self._look(self.core.on_deadline(self._now))

    def _happen(self, event: str, who: DeviceId, told: object) -> list[Effect]:
        now, core = self._now, self.core
        if event == "message":
            assert isinstance(told, msgspec.Struct)
            return core.on_message(who, told, now)
        assert isinstance(told, tuple)
        if event == "datagram":
            return core.on_datagram(who, told[0], told[1], now)
        boot, evidence, port, number = told
        address = Address("10.0.0.1", port)
        events = {
            "deadline": lambda: core.on_deadline(now),
            "linked": lambda: core.on_linked(who, boot, "x", address, port, now),
            "unlinked": lambda: core.on_unlinked(who, evidence, now),
            "seen": lambda: core.on_seen(address, now),
            "unreachable": lambda: core.on_unreachable(address, evidence, now),
            "load": lambda: core.set_load(Load(number % 100, 1.0, number), now),
            "persisted": lambda: core.on_persisted(number, now),
        }
        return events[event]()

    def _look(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, PersistTerm):
                self._look(self.core.on_persisted(effect.term, self._now))
            if self._steps % ENCODED_EVERY:
                continue
            match effect:
                case SendDatagram(_, _, said):
                    assert len(self._sendable(said)) <= BODY_LIMIT_BYTES, "a datagram over the limit"
                case SendStream(_, said) | Send(_, said):
                    self._sendable(said)
                case _:
                    continue

    def _sendable(self, said: msgspec.Struct) -> bytes:
        """The bytes of a message; a peer of the same version takes them."""
        data = self._codec.encode(said)
        assert type(self._codec.decode(data)) is type(said)
        return data

    def close(self) -> None:
        """Nothing is left."""


# -- the assembly

SHAPE: Box = ((0, 1), (0, 4), (0, 6), (0, 2))
EPOCHS = (Epoch(1, DeviceId(DEVICES[0]), 1), Epoch(2, DeviceId(DEVICES[1]), 1))


def _rows(low: int, high: int) -> Box:
    return ((0, 1), (low, high), (0, 6), (0, 2))


HERE = (1, 0)


def _target(*needs: Need, window: int = 4, neighbour: bool = False) -> Target:
    """What these needs say; with a neighbour on the device the rows from 2 on come with its parcels."""
    owed: dict[tuple[At, At], tuple[tuple[int, Box], ...]] = {}
    for need in needs:
        for one in need.sources:
            ways = [(HERE, _rows(0, 2)), ((1, 1), _rows(2, 4))] if neighbour else [(HERE, one.box)]
            for address, box in ways:
                owed[(one.stage, one.part), address] = (
                    *owed.get(((one.stage, one.part), address), ()),
                    (need.tensor, box),
                )
    return Target(needs, {need.tensor: "float32" for need in needs}, owed or {((ORIGIN, 0), HERE): ()}, window, HERE)


_SUMS = Need(7, SHAPE, tuple(Source(0, part, SHAPE) for part in range(3)), sums=True)
TARGETS = (
    _target(Need(7, SHAPE, (Source(0, 0, SHAPE),))),
    _target(Need(7, SHAPE, (Source(0, 0, _rows(0, 1)), Source(0, 1, _rows(1, 4)))), window=2),
    _target(_SUMS, Need(3, SHAPE, (Source(ORIGIN, 0, SHAPE),))),
    _target(_SUMS, neighbour=True),
    _target(window=1),
)


class Slices:
    """Slices of a few attempts in any order, right ones and wrong ones; the count of bytes always comes out."""

    def __init__(self) -> None:
        """An empty assembly."""
        self._assembly = Assembly(HELD_BYTES_MAX)
        self._now = 0.0

    def draw(self, rng: random.Random) -> tuple[str, Key, Target, Arrival, float]:
        """What happens, to which key, with which slice, after how long."""
        stage = rng.randrange(len(TARGETS))
        target = TARGETS[stage]
        passage = Passage(
            rng.choice("rst"),
            rng.randrange(4),
            "cat",
            rng.choice(EPOCHS),
            DeviceId(rng.choice(DEVICES[:3])),
            BootId(BOOTS[0]),
            0,
            (0,),
        )
        source, address = rng.choice(sorted(target.owed))
        pieces = self._pieces(rng, target, (source, address))
        if rng.random() < 0.1:
            source = (rng.randint(-2, 3), rng.randint(-1, 4))
        arrival = Arrival(source, address, pieces, edge(rng), self._times(rng))
        events = ("add",) * 8 + ("cancel", "begin", "spend", "finish", "finish", "drop", "origin", "expire")
        return rng.choice(events), Key(passage, stage, 0), target, arrival, rng.choice((0.0, 0.1, 2.0))

    def _times(self, rng: random.Random) -> tuple[StageTime, ...]:
        return (StageTime(rng.randint(-1, 3), 0, DeviceId(DEVICES[0]), 1.0, 1),)

    def _pieces(self, rng: random.Random, target: Target, way: tuple[At, At]) -> tuple[Piece, ...]:
        mine = [self._piece(rng, tensor, box) for tensor, box in target.owed[way]]
        if rng.random() < 0.1 and mine:
            mine.append(rng.choice(mine))
        return tuple(mine)

    def _piece(self, rng: random.Random, tensor: int, box: Box) -> Piece:
        box = box if rng.random() < 0.95 else _rows(rng.randint(-2, 3), rng.randint(0, 9))
        shape = [max(0, stop - start) for start, stop in box]
        dtype = "float32" if rng.random() < 0.95 else rng.choice(("int8", "float64"))
        tensor = tensor if rng.random() < 0.95 else rng.randint(-1, 9)
        return Piece(tensor, box, np.zeros(shape, dtype))

    def take(self, given: object) -> None:
        """Let it happen."""
        assert isinstance(given, tuple)
        event, key, target, arrival, waits_s = given
        self._now += waits_s
        try:
            self._happen(event, key, target, arrival)
        finally:
            assert 0 <= self._assembly.held_bytes <= HELD_BYTES_MAX, "bytes were lost count of"
            if not self._assembly.keys:
                assert self._assembly.held_bytes == 0, "bytes without a key"

    def _happen(self, event: str, key: Key, target: Target, arrival: Arrival) -> None:
        assembly, now = self._assembly, self._now
        match event:
            case "add":
                done = assembly.add(key, target, arrival, now + 5.0, now)
                assert done is None or set(done.tensors) == {need.tensor for need in target.needs}
            case "cancel":
                assembly.cancel(key.origin, key.passage.request, key.passage.attempt, now)
            case "begin":
                assembly.begin(next(iter(assembly.keys[::-1]), key))
            case "spend":
                assembly.spend(next(iter(assembly.keys[::-1]), key))
            case "finish":
                assembly.finish(next(iter(assembly.keys[::-1]), key))
            case "drop":
                assembly.drop(key)
            case "origin":
                assembly.drop_origin(key.origin)
            case _:
                assembly.expire(now)

    def close(self) -> None:
        """When everything is over nothing is held."""
        self._assembly.expire(math.inf)
        for key in self._assembly.keys:
            self._assembly.finish(key)
        assert self._assembly.held_bytes == 0, "something is held for nobody"


def _alone(rng: random.Random, folder: Path) -> Machine:
    return Machine(rng, alone=True)


def _core(rng: random.Random, folder: Path) -> Machine:
    return Machine(rng, alone=False)


def _assembly(rng: random.Random, folder: Path) -> Slices:
    return Slices()


BORDERS = (
    Border("cluster", _alone, (), episode=5000, share=0.3, again=False),
    Border("core", _core, (), episode=5000, share=0.3, again=False),
    Border("assembly", _assembly, (PeerError, BusyError), again=False),
)
