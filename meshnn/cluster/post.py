"""The post office of a member: addresses messages, fills them with rumours, and paces the gossip."""

from __future__ import annotations

import random

import msgspec

from meshnn.cluster.effects import Effect, SendDatagram, SendStream
from meshnn.cluster.gossip import RUMOURS_MAX, RumourQueue
from meshnn.cluster.member import Address, DeviceId
from meshnn.cluster.messages import PAYLOAD_BYTES_MAX, Datagram, Estimate, Gossip, Message, Rumour
from meshnn.cluster.roster import Roster
from meshnn.cluster.timing import ECHO_INTERVAL_S, GOSSIP_INTERVAL_S, GOSSIP_TO_DEAD_S

BACKLOG_FANOUT = 2
"""While more waits than a message holds, each round goes to so many times as many members."""


class Post:
    """Collects effects; every datagram carries first what we hold against its receiver, then the queued rumours."""

    def __init__(self, roster: Roster, estimate: Estimate, rng: random.Random) -> None:
        self.effects: list[Effect] = []
        self._roster = roster
        self._estimate = estimate
        self._rng = rng
        self._queue = RumourQueue(estimate)
        self._gossip_at: float | None = None
        self._gossiped_at = -GOSSIP_INTERVAL_S
        self._echoed_at: dict[DeviceId, float] = {}
        self._links: dict[DeviceId, Address] = {}

    @property
    def deadline(self) -> float | None:
        """When the next round of gossip is due; None where nothing presses."""
        return self._gossip_at

    @property
    def waiting(self) -> int:
        """How many rumours wait to be told."""
        return len(self._queue)

    def send(self, to: DeviceId, message: Datagram, first: tuple[Rumour, ...] = ()) -> None:
        """Send a datagram to a known device, with `first` before all other rumours."""
        row = self._roster.get(to)
        if row is None:
            return
        accusation = self._roster.accusation(to)
        if accusation is not None:
            first = (accusation, *first)
        budget = PAYLOAD_BYTES_MAX - self._estimate(message) - sum(self._estimate(rumour) for rumour in first)
        told = self._queue.take(budget, self._roster.timing.transmits, RUMOURS_MAX - len(first))
        filled = msgspec.structs.replace(message, rumours=first + told)
        self.effects.append(SendDatagram(to, row.address, filled))

    def stream(self, to: DeviceId, message: Message) -> None:
        """Send a message over the control link of a device that is known or linked."""
        row = self._roster.get(to)
        address = self._links.get(to) if row is None else row.address
        if address is not None:
            self.effects.append(SendStream(to, message, address))

    def insist(self, to: DeviceId, message: Datagram) -> None:
        """Say something both ways: by datagram, and over the link where there is one, since UDP may be blocked."""
        self.send(to, message)
        if to in self._links:
            self.stream(to, message)

    def reply(self, to: DeviceId, message: Datagram, stream: bool) -> None:
        """Answer the way the question came: that way is open."""
        if stream:
            self.stream(to, message)
        else:
            self.send(to, message)

    def link(self, device: DeviceId, address: Address) -> None:
        """A control link to a device is up, though it may have no row yet."""
        self._links[device] = address

    def unlink(self, device: DeviceId) -> None:
        """The control link to a device is gone."""
        self._links.pop(device, None)

    def spread(self, rumour: Rumour, now: float, first: bool = False) -> None:
        """Tell everybody, by and by; a first rumour after a pause leaves at once."""
        self._queue.add(rumour, first)
        if self._queue.pressing and self._gossip_at is None:
            self._gossip_at = max(now, self._gossiped_at + GOSSIP_INTERVAL_S)

    def withdraw(self, device: DeviceId) -> None:
        """Stop telling anything about a device's state."""
        self._queue.forget(device)

    def echo(self, to: DeviceId, now: float) -> None:
        """R4: tell a device at once what we hold against it, ten times a second at most, so that it can refute."""
        row = self._roster.get(to)
        if row is None or now - self._echoed_at.get(to, -ECHO_INTERVAL_S) < ECHO_INTERVAL_S:
            return
        self._echoed_at[to] = now
        self.send(to, Gossip())

    def reply_with(self, to: DeviceId, rumour: Rumour, now: float) -> None:
        """Answer a device with one rumour, under the same limit as an echo."""
        if now - self._echoed_at.get(to, -ECHO_INTERVAL_S) >= ECHO_INTERVAL_S:
            self._echoed_at[to] = now
            self.send(to, Gossip(), (rumour,))

    def on_deadline(self, now: float) -> None:
        """One round of gossip, to a few members and to those who died lately (they may live)."""
        if self._gossip_at is None or now < self._gossip_at:
            return
        ears = list(self._roster.others) + self._roster.recently_dead(now, GOSSIP_TO_DEAD_S)
        fanout = self._roster.timing.fanout * (BACKLOG_FANOUT if self._queue.crowded else 1)
        for device in self._rng.sample(ears, min(fanout, len(ears))):
            if self._queue.pressing:
                self.send(device, Gossip())
        self._gossiped_at = now
        self._gossip_at = now + GOSSIP_INTERVAL_S if self._queue.pressing and ears else None

    def drain(self) -> list[Effect]:
        """The effects since the last call."""
        effects, self.effects = self.effects, []
        return effects
