"""The membership machine: SWIM with Lifeguard and the rules R1 to R7; takes what is heard, says what to do."""

from __future__ import annotations

import random

import msgspec

from meshnn.cluster.anti_entropy import AntiEntropy
from meshnn.cluster.effects import Evidence, IdentityClash, PersistIncarnation
from meshnn.cluster.health import Health
from meshnn.cluster.judging import Judge
from meshnn.cluster.member import INCARNATION_MAX, Address, BootId, Capability, DeviceId, Load, Member, MemberState
from meshnn.cluster.messages import (
    Ack,
    Alive,
    Beat,
    Dead,
    Digest,
    Leave,
    Left,
    LoadRow,
    Message,
    Nack,
    Ping,
    PingRequest,
    Rumour,
    Suspect,
    Sync,
)
from meshnn.cluster.post import Post
from meshnn.cluster.probing import Prober
from meshnn.cluster.roster import Roster
from meshnn.cluster.seeking import Seeker
from meshnn.cluster.timing import LOAD_GOSSIP_SIZE_MAX, earliest

LEAVE_DATAGRAMS_MAX = 64
LEAVE_STREAMS_MAX = 3


class Membership:
    """Who is here. Every method is total; effects gather in `post`, changes of rows in `roster.changes`."""

    def __init__(self, roster: Roster, post: Post, seeds: tuple[Address, ...], rng: random.Random, now: float) -> None:
        self.roster = roster
        self.post = post
        self.health = Health()
        self.prober = Prober(roster, post, self.health, rng)
        self.judge = Judge(roster, post, self.prober, self.health, now)
        self.anti_entropy = AntiEntropy(roster, post, rng)
        self.seeker = Seeker(roster, post, self.prober, seeds)
        self._rng = rng
        self._overtaken = 0

    @property
    def deadline(self) -> float | None:
        """When `on_deadline` is due next."""
        parts = (self.prober, self.judge, self.anti_entropy, self.seeker, self.post)
        return earliest([part.deadline for part in parts])

    def start(self, now: float) -> None:
        """Begin: announce this life, dial the seeds, probe."""
        self.post.effects.append(PersistIncarnation(self.roster.mine.incarnation))
        self.prober.start(now)
        self.anti_entropy.start(now)
        self.seeker.start(now)

    def on_deadline(self, now: float) -> None:
        """Do what is due."""
        failed = self.prober.on_deadline(now)
        self.judge.on_deadline(now)
        if failed is not None:
            self.judge.accuse(failed, now)
        self.anti_entropy.on_deadline(now)
        self.seeker.on_deadline(now)
        self.post.on_deadline(now)

    def on_stall(self, now: float) -> None:
        """R2: this device slept; no timer that ran meanwhile counts."""
        self.prober.abandon(now)
        self.judge.on_stall(now)

    def on_heard(self, device: DeviceId, now: float) -> None:
        """Anything came directly from the present life of a device."""
        if self.roster.get(device) is not None and device != self.roster.me:
            self.judge.on_heard(device, now)

    def hears(self, source: DeviceId, boot: BootId, rumours: tuple[Rumour, ...], now: float) -> bool:
        """Take in a datagram's rumours; True where the rest of it comes from the present life of a usable member."""
        if source == self.roster.me:
            return False
        for rumour in rumours:
            self.on_rumour(rumour, now)
        row = self.roster.get(source)
        if row is None:
            return False
        if row.boot_id != boot:
            # Another life: the older one is refused; the newer one learns what it must outbid.
            self.post.reply_with(source, Alive(row), now)
            return False
        self.judge.on_heard(source, now)
        if row.state is not MemberState.ALIVE:
            self.post.echo(source, now)
        return row.state is not MemberState.LEFT

    def on_message(self, source: DeviceId, message: Message, now: float, stream: bool = False) -> None:
        """A membership message of a usable member; others are ignored."""
        match message:
            case Ping():
                self._on_ping(source, message, now, stream)
            case Ack():
                self.prober.on_ack(source, message, now, stream)
            case PingRequest():
                self.prober.on_ping_request(source, message, now)
            case Nack():
                self.prober.on_nack(message)
            case Leave(incarnation):
                self.on_rumour(Left(source, incarnation), now)
            case Digest():
                self.anti_entropy.on_digest(source, message)
            case Sync():
                self._on_sync(source, message, now)
            case _:
                pass

    def on_rumour(self, rumour: Rumour, now: float) -> None:
        """Something told by anybody; news is passed on."""
        if isinstance(rumour, Suspect | Dead | Left) and rumour.incarnation >= INCARNATION_MAX:
            return
        match rumour:
            case Alive(member):
                self._on_alive(member, now)
            case LoadRow(device, incarnation, load):
                self._on_load(device, incarnation, load, now)
            case Beat():
                pass  # The election's affair.
            case Suspect() | Dead() | Left():
                if rumour.device_id == self.roster.me:
                    self._refute(rumour.incarnation, now)
                elif isinstance(rumour, Suspect):
                    self.judge.on_suspect(rumour, now)
                elif isinstance(rumour, Dead):
                    self.judge.on_dead(rumour, now)
                else:
                    self._on_left(rumour, now)

    def on_linked(self, device: DeviceId, boot: BootId, address: Address, now: float) -> None:
        """A link is up: the lower id opens the exchange of tables, one for both."""
        self.post.link(device, address)
        row = self.roster.get(device)
        if row is not None and row.boot_id == boot:
            self.judge.on_heard(device, now)
        if self.roster.me < device:
            self.anti_entropy.open(device)

    def on_unlinked(self, device: DeviceId, evidence: Evidence, now: float) -> None:
        """The last link to a device is gone."""
        self.post.unlink(device)
        self.judge.on_evidence(device, evidence, now)

    def publish(self, now: float, **changes: Address | Capability) -> None:
        """Change this device's own static row and tell everybody."""
        mine = msgspec.structs.replace(self.roster.mine, version=self.roster.mine.version + 1, **changes)
        self.roster.put(mine, now)
        self.post.spread(Alive(mine), now)

    def set_load(self, load: Load, now: float, leader: DeviceId | None) -> None:
        """Publish a load row: by gossip, or in large meshes to the leader alone."""
        mine = msgspec.structs.replace(self.roster.mine, load=load)
        self.roster.put(mine, now)
        rumour = LoadRow(mine.device_id, mine.incarnation, load)
        if len(self.roster.usable) <= LOAD_GOSSIP_SIZE_MAX:
            self.post.spread(rumour, now)
        elif leader is not None and leader != mine.device_id:
            self.post.reply_with(leader, rumour, now)

    def leave(self, now: float) -> None:
        """Say goodbye to all, to some of them reliably."""
        mine = self.roster.mine
        others = self.roster.others
        for device in self._rng.sample(others, min(LEAVE_STREAMS_MAX, len(others))):
            self.post.stream(device, Leave(mine.incarnation))
        for device in self._rng.sample(others, min(LEAVE_DATAGRAMS_MAX, len(others))):
            self.post.send(device, Leave(mine.incarnation))
        self.roster.mark(mine, MemberState.LEFT, now)

    def _on_ping(self, source: DeviceId, ping: Ping, now: float, stream: bool) -> None:
        if ping.boot_id != self.roster.mine.boot_id:
            self.post.reply_with(source, Alive(self.roster.mine), now)
        elif stream:
            self.post.stream(source, Ack(ping.number, self.roster.me, (Alive(self.roster.mine),)))
        else:
            self.post.send(source, Ack(ping.number, self.roster.me))

    def _on_sync(self, source: DeviceId, sync: Sync, now: float) -> None:
        for row in sync.rows:
            self._merge(source, row, now)
        self.anti_entropy.on_wants(source, sync.wants)

    def _merge(self, source: DeviceId, row: Member, now: float) -> None:
        # A remote death is a suspicion here, and a tombstone nobody here knows is no news: else it never ages.
        if row.state is MemberState.LEFT:
            self.on_rumour(Left(row.device_id, row.incarnation), now)
        elif row.state is MemberState.DEAD:
            self.on_rumour(Suspect(row.device_id, row.incarnation, source), now)
        else:
            self._on_alive(row, now)
            if row.state is MemberState.SUSPECT:
                self.on_rumour(Suspect(row.device_id, row.incarnation, source), now)

    def _on_alive(self, told: Member, now: float) -> None:
        if told.incarnation > INCARNATION_MAX:
            return
        if told.device_id == self.roster.me:
            self._on_told_of_myself(told, now)
            return
        row = self.roster.get(told.device_id)
        if row is None:
            if not self.roster.full:
                self._admit(told, now)
        elif told.incarnation > row.incarnation:
            if told.boot_id != row.boot_id:
                self.prober.forget(row.device_id)
            self.judge.clear(row.device_id)
            self._admit(told, now)
        elif (told.incarnation, told.boot_id) == (row.incarnation, row.boot_id):
            if told.version > row.version:
                newer = msgspec.structs.replace(told, state=row.state, load=row.load)
                self.roster.put(newer, now)
                self.post.spread(Alive(newer), now)
            self._on_load(told.device_id, told.incarnation, told.load, now)

    def _admit(self, told: Member, now: float) -> None:
        row = msgspec.structs.replace(told, state=MemberState.ALIVE)
        self.roster.put(row, now)
        self.prober.admit(row.device_id)
        self.post.spread(Alive(row), now)

    def _on_told_of_myself(self, told: Member, now: float) -> None:
        mine = self.roster.mine
        if told.boot_id == mine.boot_id:
            if told.incarnation > mine.incarnation:
                self._refute(told.incarnation, now)
        elif told.incarnation >= mine.incarnation:
            # Once it is a clock that went back; again and again it is another process with our key.
            self._overtaken += 1
            if self._overtaken > 1:
                self.post.effects.append(IdentityClash(told.boot_id, told.address))
            self._refute(told.incarnation, now)
        else:
            self.post.spread(Alive(mine), now)

    def _refute(self, incarnation: int, now: float) -> None:
        mine = self.roster.mine
        if mine.state is MemberState.LEFT or incarnation >= INCARNATION_MAX:
            return
        if incarnation >= mine.incarnation:
            mine = msgspec.structs.replace(mine, incarnation=incarnation + 1)
            self.roster.put(mine, now)
            self.health.note(1, self.roster.timing.health_max)
            self.post.effects.append(PersistIncarnation(mine.incarnation))
        self.post.spread(Alive(mine), now, first=True)

    def _on_load(self, device: DeviceId, incarnation: int, load: Load, now: float) -> None:
        row = self.roster.get(device)
        if row is None or device == self.roster.me or incarnation != row.incarnation:
            return
        if load.version > row.load.version:
            self.roster.put(msgspec.structs.replace(row, load=load), now)
            if len(self.roster.usable) <= LOAD_GOSSIP_SIZE_MAX:
                self.post.spread(LoadRow(device, incarnation, load), now)

    def _on_left(self, left: Left, now: float) -> None:
        row = self.roster.get(left.device_id)
        if row is None or left.incarnation < row.incarnation or row.state is MemberState.LEFT:
            return
        self.judge.clear(row.device_id)
        departed = msgspec.structs.replace(row, incarnation=left.incarnation, state=MemberState.LEFT)
        self.roster.put(departed, now)
        self.post.spread(left, now)
