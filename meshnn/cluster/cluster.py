"""The cluster as one machine: membership and election behind one door; what the node and its driver talk to."""

from __future__ import annotations

import random
from collections.abc import Mapping

from meshnn.cluster.effects import Effect, Evidence
from meshnn.cluster.election import Election
from meshnn.cluster.load_gate import LoadGate
from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Load, Member, MemberState
from meshnn.cluster.membership import Membership
from meshnn.cluster.messages import Beat, Digest, Estimate, Message, Rumour, Sync, estimate_bytes
from meshnn.cluster.post import Post
from meshnn.cluster.roster import Roster
from meshnn.cluster.timing import STALL_S, earliest


class Cluster:
    """One device's part in the mesh. Every `on_` method is synchronous and total and returns effects in order.

    `now` is seconds on a monotonic clock that goes on during suspend; call `on_deadline` at `deadline`. Being called
    late is how the machine learns that it slept (R2), so never round `now` down. `me.incarnation` is the greater of
    the stored one plus 1 and the wall clock in milliseconds; `term` and `voted_for` are the stored ones.
    """

    def __init__(
        self,
        me: Member,
        seeds: tuple[Address, ...],
        term: int,
        voted_for: DeviceId | None,
        rng: random.Random,
        now: float,
        estimate: Estimate = estimate_bytes,
    ) -> None:
        self._roster = Roster(me, now)
        self._post = Post(self._roster, estimate, rng)
        self._membership = Membership(self._roster, self._post, seeds, rng, now)
        self._election = Election(self._roster, self._post, self._membership.judge, term, voted_for, rng, now)
        self._load = LoadGate(me.load, rng)
        self._gone = False
        self._started = False
        self._deadline: float | None = None

    # -- what is known --

    @property
    def deadline(self) -> float | None:
        """When `on_deadline` must be called next; None before the start and after leaving."""
        return self._deadline

    @property
    def members(self) -> Mapping[DeviceId, Member]:
        """All rows by id, this device, the dead and the departed included; a frozen snapshot."""
        return self._roster.snapshot

    @property
    def alive(self) -> tuple[DeviceId, ...]:
        """The usable members (ALIVE or SUSPECT), this device included, sorted."""
        return self._roster.usable

    @property
    def me(self) -> Member:
        """This device's own row."""
        return self._roster.mine

    @property
    def leader(self) -> DeviceId | None:
        """The leader this device follows, itself included, or None."""
        return self._election.leader

    @property
    def term(self) -> int:
        """The leader's term; without a leader the highest term known to this device."""
        return self._election.term

    @property
    def unreachable(self) -> tuple[DeviceId, ...]:
        """Usable members whose last probes were not answered directly, though they live: no neighbours for a plan."""
        return tuple(device for device in self.alive if self._membership.prober.cut_off(device))

    @property
    def isolated(self) -> bool:
        """Whether this device judges nobody, since it hears nobody (R1)."""
        return self._membership.judge.isolated

    @property
    def rumours(self) -> int:
        """How many rumours wait to be told: at most four for each row."""
        return self._post.waiting

    # -- what happens --

    def start(self, now: float) -> list[Effect]:
        """Begin: dial the seeds, start probing, and lead if nobody is met."""
        self._started = True
        self._membership.start(now)
        self._election.start(self._membership.seeker.hopeful, now)
        return self._settle(now)

    def on_datagram(self, source: DeviceId, source_boot: BootId, message: Message, now: float) -> list[Effect]:
        """A datagram from a device (its id and boot id as the net layer authenticated them)."""
        if not self._awake(now):
            return []
        rumours: tuple[Rumour, ...] = () if isinstance(message, Digest | Sync) else message.rumours
        usable = self._membership.hears(source, source_boot, rumours, now)
        self._beats(rumours, now)
        self._election.on_view(now)
        if usable:
            self._membership.on_message(source, message, now)
            self._election.on_message(source, message, now)
        return self._settle(now)

    def on_stream_message(self, source: DeviceId, message: Message, now: float) -> list[Effect]:
        """A control message over the link to a device."""
        if not self._awake(now) or source == self._roster.me:
            return []
        self._membership.on_heard(source, now)
        if not isinstance(message, Digest | Sync):
            for rumour in message.rumours:
                self._membership.on_rumour(rumour, now)
        self._membership.on_message(source, message, now, stream=True)
        self._election.on_view(now)
        self._election.on_message(source, message, now, stream=True)
        return self._settle(now)

    def on_seen(self, address: Address, now: float) -> list[Effect]:
        """An address to try, from mDNS, `--peer` or memory."""
        if not self._awake(now):
            return []
        if not self._roster.holds_usable(address):
            self._election.on_hope(now)
        self._membership.seeker.on_seen(address, now)
        return self._settle(now)

    def on_linked(
        self, device_id: DeviceId, boot_id: BootId, name: str, address: Address, http_port: int, now: float
    ) -> list[Effect]:
        """A link with its HELLO is up; `address` is where the device listens. The rest of its row comes by sync."""
        if not self._awake(now) or device_id == self._roster.me:
            return []
        self._membership.on_linked(device_id, boot_id, address, now)
        return self._settle(now)

    def on_unlinked(self, device_id: DeviceId, evidence: Evidence, now: float) -> list[Effect]:
        """The last link to a device is gone, and how."""
        if not self._awake(now):
            return []
        self._membership.on_unlinked(device_id, evidence, now)
        return self._settle(now)

    def on_evidence(self, device_id: DeviceId, kind: Evidence, now: float) -> list[Effect]:
        """Evidence from the data plane, or a Dial that was refused."""
        if not self._awake(now):
            return []
        self._membership.judge.on_evidence(device_id, kind, now)
        return self._settle(now)

    def on_heard(self, device_id: DeviceId, now: float) -> list[Effect]:
        """Anything at all came directly from the present life of a device."""
        if not self._awake(now):
            return []
        self._membership.on_heard(device_id, now)
        return self._settle(now)

    def on_interfaces(self, address: Address, now: float) -> list[Effect]:
        """The network of this device changed; `address` is where it listens now."""
        if not self._awake(now):
            return []
        if address != self._roster.mine.address:
            self._membership.publish(now, address=address)
        self._membership.seeker.on_interfaces(now)
        return self._settle(now)

    def on_deadline(self, now: float) -> list[Effect]:
        """The deadline came; early calls are harmless."""
        if not self._awake(now):
            return []
        self._membership.on_deadline(now)
        self._election.on_view(now)
        self._election.on_deadline(now)
        return self._settle(now)

    def on_persisted(self, term: int, now: float) -> list[Effect]:
        """The PersistTerm of this term is on disk."""
        if not self._awake(now):
            return []
        self._election.on_persisted(term, now)
        return self._settle(now)

    def on_unpersisted(self, term: int, now: float) -> list[Effect]:
        """The PersistTerm of this term failed: the disk refused."""
        if not self._awake(now):
            return []
        self._election.on_unpersisted(term, now)
        return self._settle(now)

    def outbid(self, term: int, now: float) -> list[Effect]:
        """This leader cannot outrank what another one made in this term: it stands for a higher one."""
        if not self._awake(now):
            return []
        self._election.outbid(term, now)
        return self._settle(now)

    def set_load(self, load: Load, now: float) -> list[Effect]:
        """What this device is doing now; told when it is worth telling."""
        if not self._awake(now):
            return []
        self._load.offer(load, now)
        return self._settle(now)

    def set_capability(self, capability: Capability, now: float) -> list[Effect]:
        """What this device can do."""
        if not self._awake(now):
            return []
        if capability != self._roster.mine.capability:
            self._membership.publish(now, capability=capability)
        return self._settle(now)

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye; afterwards this machine does nothing."""
        if not self._awake(now):
            return []
        self._membership.leave(now)
        self._gone = True
        return self._settle(now)

    # -- inside --

    def _awake(self, now: float) -> bool:
        """R2 at every door: an overdue deadline means that this device slept."""
        if self._deadline is not None and now - self._deadline > STALL_S:
            self._membership.on_stall(now)
            self._election.on_stall(now - self._deadline, now)
        return self._started and not self._gone

    def _beats(self, rumours: tuple[Rumour, ...], now: float) -> None:
        for rumour in rumours:
            if isinstance(rumour, Beat) and self._election.on_beat(rumour, now):
                self._post.spread(rumour, now)

    def _settle(self, now: float) -> list[Effect]:
        load = self._load.due(now)
        if load is not None:
            self._membership.set_load(load, now, self.leader)
        silent, self._election.unanswered = self._election.unanswered, []
        for device in silent:
            self._membership.judge.accuse(device, now)
        changes, self._roster.changes = self._roster.changes, []
        for change in changes:
            before, after = change.before, change.after
            if before is not None and after is not None and before.boot_id != after.boot_id:
                self._election.on_new_life(after.device_id, now)
        if self._roster.mine.state is not MemberState.LEFT:
            self._election.on_view(now)
        due = None if self._gone else self._due()
        # What an event makes due in the past is due now: a suspicion that a late confirmer cut short was not overslept.
        self._deadline = None if due is None else max(due, now)
        return [*changes, *self._post.drain()]

    def _due(self) -> float | None:
        return earliest((self._membership.deadline, self._election.deadline, self._load.deadline))
