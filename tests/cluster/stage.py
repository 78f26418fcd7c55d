"""One real cluster machine on a stage: tests play its peers, its clock and its disk."""

from __future__ import annotations

import random
from typing import TypeVar

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.effects import Effect, PersistTerm, SendDatagram, SendStream
from meshnn.cluster.member import DeviceId, Member, MemberState
from meshnn.cluster.messages import Lead, Message, Ping, PreVote, PreVoteReply, Rumour, Sync, Vote, VoteReply
from tests.cluster.virtual_mesh import device_id, member

E = TypeVar("E")
M = TypeVar("M")


class Stage:
    """Device 0 (or `me`) with peers it knows; `now` starts at 0 and all effects gather in `effects`."""

    def __init__(self, *peers: int, me: int = 0, term: int = 0, voted_for: DeviceId | None = None) -> None:
        self.now = 0.0
        self._tick = 0.0
        self.me = member(me)
        self.cluster = Cluster(self.me, (), term, voted_for, random.Random(7), 0.0)
        self.effects: list[Effect] = list(self.cluster.start(0.0))
        for peer in peers:
            self.note(self.cluster.on_stream_message(device_id(peer), Sync((member(peer),)), 0.0))
            self.note(self.cluster.on_heard(device_id(peer), 0.0))
        self.effects.clear()

    def note(self, effects: list[Effect]) -> list[Effect]:
        """Keep effects; returns them."""
        self.effects += effects
        return effects

    def hear(self, peer: int, message: Message, boot: int = 0) -> list[Effect]:
        """A datagram from a peer; what the machine does at once."""
        return self.note(self.cluster.on_datagram(device_id(peer), member(peer, boot).boot_id, message, self.now))

    def tell(self, peer: int, rumour: Rumour) -> list[Effect]:
        """A rumour from a peer, riding on a ping."""
        return self.hear(peer, Ping(1, self.cluster.me.boot_id, (rumour,)))

    def wait(self, duration_s: float, heard: tuple[int, ...] = ()) -> None:
        """Let time pass with deadlines met on the dot; the `heard` peers are heard four times a second."""
        end = self.now + duration_s
        while self.now < end:
            deadline = self.cluster.deadline
            self._tick = self._tick if self._tick > self.now else self.now + 0.25
            self.now = min(end, self._tick, end if deadline is None else max(deadline, self.now))
            for peer in heard if self.now == self._tick else ():
                self.note(self.cluster.on_heard(device_id(peer), self.now))
            self.note(self.cluster.on_deadline(self.now))

    def suspend(self, duration_s: float) -> None:
        """Let time pass unnoticed, as under SIGSTOP, then wake."""
        self.now += duration_s
        self.note(self.cluster.on_deadline(self.now))

    def persist(self) -> list[Effect]:
        """The disk has stored the last term asked for."""
        last = self.all(PersistTerm)[-1]
        return self.note(self.cluster.on_persisted(last.term, self.now))

    def all(self, kind: type[E]) -> list[E]:
        """The effects of a kind so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def sent(self, kind: type[M], to: int | None = None) -> list[M]:
        """The messages of a kind sent so far, by datagram or stream."""
        return [
            effect.message
            for effect in self.effects
            if isinstance(effect, SendDatagram | SendStream)
            and isinstance(effect.message, kind)
            and (to is None or effect.to == device_id(to))
        ]

    def rumours(self, kind: type[M], to: int | None = None) -> list[M]:
        """The rumours of a kind sent so far."""
        return [
            rumour
            for effect in self.effects
            if isinstance(effect, SendDatagram) and (to is None or effect.to == device_id(to))
            for rumour in effect.message.rumours
            if isinstance(rumour, kind)
        ]

    def number(self, device: DeviceId) -> int:
        """The number of a device."""
        return next(index for index in range(2000) if device_id(index) == device)

    def row(self, peer: int) -> Member:
        """The machine's row of a device."""
        return self.cluster.members[device_id(peer)]

    def state(self, peer: int) -> MemberState:
        """What the machine believes of a device."""
        return self.row(peer).state

    def stand(self, *heard: int) -> None:
        """Wait until the machine asks for pre-votes."""
        begun = self.now
        while not self.sent(PreVote):
            assert self.now - begun < 20.0, "never stood"
            self.wait(0.1, heard)

    def win(self, *voters: int) -> None:
        """Let the machine stand and be elected by these peers."""
        self.stand(*voters)
        for voter in voters:
            self.hear(voter, PreVoteReply(self.sent(PreVote)[-1].term, True, 0))
        self.persist()
        for voter in voters:
            self.hear(voter, VoteReply(self.sent(Vote)[-1].term, True, 0))

    def follow(self, leader: int, term: int = 1) -> None:
        """Let the machine hear a leader."""
        self.hear(leader, Lead(term, 1, 9, 9))


def reborn(peer: int, incarnation: int = 2000) -> Member:
    """The next life of a device."""
    return member(peer, 1, incarnation)


def advanced(row: Member, **changes: object) -> Member:
    """A row with other fields."""
    return msgspec.structs.replace(row, **changes)
