"""Judging: who is suspected, who is buried, and when this device must not judge at all (rules R1, R2, R6, R7)."""

from __future__ import annotations

import msgspec

from meshnn.cluster.effects import Dial, Evidence
from meshnn.cluster.health import Health
from meshnn.cluster.member import DeviceId, Member, MemberState
from meshnn.cluster.messages import Dead, Suspect
from meshnn.cluster.post import Post
from meshnn.cluster.probing import Prober
from meshnn.cluster.roster import Roster
from meshnn.cluster.suspicion import Suspicion, suspicion_of
from meshnn.cluster.timing import ALONE_AFTER_S, GRACE_S, ISOLATION_S, PROBE_INTERVAL_S, VERIFY_S, earliest


class Judge:
    """Holds the suspicions and the watch over this device's own hearing."""

    def __init__(self, roster: Roster, post: Post, prober: Prober, health: Health, now: float) -> None:
        self._roster = roster
        self._post = post
        self._prober = prober
        self._health = health
        self._suspicions: dict[DeviceId, Suspicion] = {}
        self._watched: dict[DeviceId, float] = {}
        self._heard_at = now
        self._isolated_at: float | None = None
        self._reprobe_at: float | None = None

    @property
    def isolated(self) -> bool:
        """R1: nobody was heard for three intervals in a mesh of more than two."""
        return self._isolated_at is not None

    @property
    def doubted(self) -> int:
        """How many members are suspected by others too; of two, this device's own word is all there is."""
        enough = 1 if len(self._roster.usable) == 2 else 2
        return sum(len(one.accusers | {self._roster.me}) >= enough for one in self._suspicions.values())

    @property
    def deadline(self) -> float | None:
        """When something is due next."""
        due = [self._reprobe_at] if self._suspicions else []
        if self._isolated_at is not None:
            due.append(self._isolated_at + ALONE_AFTER_S)
        else:
            due += [suspicion.deadline for suspicion in self._suspicions.values()]
            due += list(self._watched.values())
            if len(self._roster.usable) > 2:
                due.append(self._heard_at + ISOLATION_S)
        return earliest(due)

    def on_heard(self, device: DeviceId, now: float) -> None:
        """Something came directly from a member: it lives, and this device can hear."""
        self._roster.hear(device, now)
        self._heard_at = now
        self._watched.pop(device, None)
        if self._isolated_at is not None:
            self._isolated_at = None
            self._restart(now)

    def on_stall(self, now: float) -> None:
        """R2: this device slept, so it judges nobody by the silence meanwhile."""
        self._heard_at = now
        self._isolated_at = None
        self._watched.clear()
        self._restart(now)

    def clear(self, device: DeviceId) -> None:
        """The device refuted, left or began a new life: nothing is held against it."""
        self._suspicions.pop(device, None)
        self._watched.pop(device, None)

    def on_evidence(self, device: DeviceId, kind: Evidence, now: float) -> None:
        """Evidence from the data plane: refusal counts at once, a broken link when nothing is heard after it."""
        row = self._roster.live(device)
        if row is None or device == self._roster.me:
            return
        if kind == "refused":
            self.accuse(device, now, refused=True)
        elif kind == "silent":
            self._prober.hasten(device, now)
        elif device not in self._watched:
            # A broken link may be our own doing (a corrupt frame): redial, and count it only if silence follows.
            self._watched[device] = now + VERIFY_S
            self._post.effects.append(Dial(row.address, device))
            self._prober.ping(device)

    def accuse(self, device: DeviceId, now: float, refused: bool = False) -> None:
        """This device's own accusation; withheld while isolated (R1)."""
        row = self._roster.live(device)
        if row is not None and not self.isolated:
            self.on_suspect(Suspect(device, row.incarnation, self._roster.me, refused), now)

    def on_suspect(self, rumour: Suspect, now: float) -> None:
        """An accusation of another device, ours or a rumour."""
        row = self._roster.live(rumour.device_id)
        if row is None or rumour.incarnation < row.incarnation:
            return
        suspicion = self._suspicions.get(row.device_id)
        if suspicion is None or suspicion.incarnation != rumour.incarnation:
            suspicion = self._begin(row, rumour.incarnation, now)
        if suspicion.confirm(rumour.accuser, rumour.refused):
            self._post.spread(rumour, now)
        if len(suspicion.observers) >= 2 and suspicion.certain_at is None:
            # R7: two independent observers. What was under way when the process died may still have come after.
            if not self._heard_since(suspicion):
                self._bury(row.device_id, now)
            else:
                suspicion.certain_at = now + VERIFY_S

    def on_dead(self, rumour: Dead, now: float) -> None:
        """Another member buried the device."""
        row = self._roster.live(rumour.device_id)
        if row is None or rumour.incarnation < row.incarnation:
            return
        self.clear(row.device_id)
        buried = msgspec.structs.replace(row, incarnation=rumour.incarnation, state=MemberState.DEAD)
        self._roster.put(buried, now)
        self._post.spread(rumour, now)

    def on_deadline(self, now: float) -> None:
        """Do what is due."""
        if self._isolated_at is None and len(self._roster.usable) > 2 and now >= self._heard_at + ISOLATION_S:
            self._isolated_at = now
            self._health.note(1, self._roster.timing.health_max)
        if self._reprobe_at is not None and now >= self._reprobe_at:
            self._reprobe(now)
        if self._isolated_at is not None:
            if now >= self._isolated_at + ALONE_AFTER_S:
                self._go_alone(now)
            return
        for device in sorted(device for device, at in self._watched.items() if at <= now):
            del self._watched[device]
            self.accuse(device, now, refused=True)
        for device in sorted(device for device, one in self._suspicions.items() if one.deadline <= now):
            self._expire(self._suspicions[device], now)

    def _begin(self, row: Member, incarnation: int, now: float) -> Suspicion:
        size = len(self._roster.usable)
        suspicion = suspicion_of(row.device_id, incarnation, size, self._roster.timing, now)
        self._suspicions[row.device_id] = suspicion
        suspect = msgspec.structs.replace(row, incarnation=incarnation, state=MemberState.SUSPECT)
        self._roster.put(suspect, now)
        if self._reprobe_at is None:
            self._reprobe_at = now
        return suspicion

    def _reprobe(self, now: float) -> None:
        # Our own suspects hear of it every interval, however unwell this device feels.
        for device in sorted(self._suspicions):
            if self._roster.me in self._suspicions[device].accusers:
                self._prober.ping(device)
        self._reprobe_at = now + PROBE_INTERVAL_S if self._suspicions else None

    def _expire(self, suspicion: Suspicion, now: float) -> None:
        # R6: bury nobody who was heard since the accusation, nor without a last word to him.
        device = suspicion.device_id
        heard = self._heard_since(suspicion)
        if heard and suspicion.certain_at is not None:
            # Only what came after the in-flight rest counts against two hosts' word.
            last_at = self._roster.heard_at(device)
            heard = last_at is not None and now - last_at < VERIFY_S / 2
        if heard:
            suspicion.restart(now)
            self._post.spread(Suspect(device, suspicion.incarnation, self._roster.me), now)
            self._prober.ping(device)
        elif suspicion.certain_at is not None:
            self._bury(device, now)
        elif suspicion.grace_until is None:
            suspicion.grace_until = now + GRACE_S
            self._prober.ping_both(device)
        else:
            self._bury(device, now)

    def _heard_since(self, suspicion: Suspicion) -> bool:
        heard_at = self._roster.heard_at(suspicion.device_id)
        return heard_at is not None and heard_at > suspicion.started_at

    def _bury(self, device: DeviceId, now: float) -> None:
        row = self._roster.live(device)
        self.clear(device)
        if row is not None:
            self._roster.mark(row, MemberState.DEAD, now)
            self._post.spread(Dead(device, row.incarnation, self._roster.me), now)

    def _go_alone(self, now: float) -> None:
        # R1 forgives outages, not partitions: a device cut off for long serves alone. It tells nobody of these
        # burials, since all are one and the same event at its own end.
        self._isolated_at = None
        self._suspicions.clear()
        for device in self._roster.others:
            row = self._roster.live(device)
            assert row is not None
            self._post.withdraw(device)
            self._roster.mark(row, MemberState.DEAD, now)

    def _restart(self, now: float) -> None:
        for suspicion in self._suspicions.values():
            suspicion.restart(now)
