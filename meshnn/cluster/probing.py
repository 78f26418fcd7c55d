"""Probing: one member after another is pinged, directly, then through relays and over its stream."""

from __future__ import annotations

import dataclasses
import random

from meshnn.cluster.health import Health
from meshnn.cluster.member import BootId, DeviceId
from meshnn.cluster.messages import Ack, Nack, Ping, PingRequest
from meshnn.cluster.post import Post
from meshnn.cluster.roster import Roster
from meshnn.cluster.timing import ISOLATION_S, PING_TIMEOUT_S, PING_TIMEOUT_S_MIN, PROBE_INTERVAL_S, earliest

NACK_SHARE = 0.8
"""A relay says no after this share of the timeout, so that its no arrives before the asker gives up."""
RELAYED_MAX = 1024
CUT_OFF_PROBES = 2


@dataclasses.dataclass(slots=True)
class _Probe:
    target: DeviceId
    boot_id: BootId
    number: int
    sent_at: float
    relays_at: float | None
    ends_at: float
    relays: int = 0
    nacks: int = 0
    answered: bool = False
    reached: bool = False


@dataclasses.dataclass(slots=True)
class _Relayed:
    asker: DeviceId
    number: int
    target: DeviceId
    nack_at: float


class Prober:
    """Shuffled round-robin probing; `on_deadline` returns the member whose probe failed."""

    def __init__(self, roster: Roster, post: Post, health: Health, rng: random.Random) -> None:
        self._missed: dict[DeviceId, int] = {}
        self._roster = roster
        self._post = post
        self._health = health
        self._rng = rng
        self._order: list[DeviceId] = []
        self._next = 0
        self._number = 0
        self._probe: _Probe | None = None
        self._probe_at: float | None = None
        self._relayed: dict[int, _Relayed] = {}
        self._round_trip: dict[DeviceId, tuple[float, float]] = {}

    @property
    def deadline(self) -> float | None:
        """When something is due next."""
        due = [self._probe_at]
        if self._relayed:
            due += [relayed.nack_at for relayed in self._relayed.values()]
        if self._probe is not None:
            due += [self._probe.relays_at, self._probe.ends_at]
        return earliest(due)

    def cut_off(self, device: DeviceId) -> bool:
        """Whether a device did not answer this one directly, by datagram or stream, in its last probes."""
        return self._missed.get(device, 0) >= CUT_OFF_PROBES

    def start(self, now: float) -> None:
        """Begin, at a random point of the interval."""
        self._probe_at = now + self._rng.uniform(0.0, PROBE_INTERVAL_S)

    def admit(self, device: DeviceId) -> None:
        """Let a member take part, from a random place of the round on."""
        if device not in self._order:
            self._order.insert(self._rng.randint(self._next, len(self._order)), device)

    def hasten(self, device: DeviceId, now: float) -> None:
        """Probe this member next, at once where no probe is under way."""
        if self._probe is not None and self._probe.target == device:
            return
        self._order.insert(self._next, device)
        if self._probe is None:
            self._probe_at = now

    def abandon(self, now: float) -> None:
        """Drop the probe under way without judging by it, and begin anew."""
        self._probe = None
        self._relayed.clear()
        self._probe_at = now

    def forget(self, device: DeviceId) -> None:
        """Drop what was measured of a device whose life ended."""
        self._round_trip.pop(device, None)
        self._missed.pop(device, None)

    def ping(self, device: DeviceId) -> None:
        """One ping outside the rounds, its answer counting only as being heard."""
        row = self._roster.get(device)
        if row is not None:
            self._number += 1
            self._post.send(device, Ping(self._number, row.boot_id))

    def ping_both(self, device: DeviceId) -> None:
        """One ping by datagram and one over the stream."""
        row = self._roster.get(device)
        if row is not None:
            self.ping(device)
            self._post.stream(device, self._stream_ping(device, self._number))

    def on_ack(self, source: DeviceId, ack: Ack, now: float, stream: bool = False) -> None:
        """An answer: to our own probe, or to a ping sent for another."""
        relayed = self._relayed.pop(ack.number, None)
        if relayed is not None and relayed.target == source:
            self._post.send(relayed.asker, Ack(relayed.number, relayed.target))
        probe = self._probe
        if probe is None or probe.number != ack.number or probe.target != ack.subject:
            return
        if source == probe.target:
            probe.reached = True
            if probe.relays_at is not None and not stream:
                self._measure(source, now - probe.sent_at)
        if not probe.answered:
            probe.answered = True
            probe.relays_at = None
            self._health.note(-1, self._roster.timing.health_max)

    def on_nack(self, nack: Nack) -> None:
        """A relay could not reach the target, but is there itself."""
        if self._probe is not None and self._probe.number == nack.number:
            self._probe.nacks += 1

    def on_ping_request(self, source: DeviceId, request: PingRequest, now: float) -> None:
        """Ping the target for the asker."""
        row = self._roster.get(request.target)
        if row is None or len(self._relayed) >= RELAYED_MAX:
            return
        self.ping(request.target)
        self._relayed[self._number] = _Relayed(
            source, request.number, request.target, now + NACK_SHARE * PING_TIMEOUT_S
        )

    def on_deadline(self, now: float) -> DeviceId | None:
        """Do what is due; the member that answered nobody, if a probe ended so."""
        for number in [key for key, relayed in self._relayed.items() if relayed.nack_at <= now]:
            relayed = self._relayed.pop(number)
            self._post.send(relayed.asker, Nack(relayed.number))
        probe = self._probe
        failed = None
        if probe is not None and probe.relays_at is not None and probe.relays_at <= now:
            self._ask_relays(probe)
        if probe is not None and probe.ends_at <= now:
            failed = self._finish(probe)
            self._probe, self._probe_at = None, now
        if self._probe_at is not None and self._probe_at <= now:
            self._begin(now)
        return failed

    def _begin(self, now: float) -> None:
        target = self._next_target()
        interval = PROBE_INTERVAL_S * self._health.stretch
        if target is None:
            self._probe_at = now + interval
            return
        row = self._roster.live(target)
        assert row is not None
        self.ping(target)
        # Relays must have time to answer before the interval ends, however slow the round trip is.
        timeout = min(self._timeout_s(target), 0.6 * PROBE_INTERVAL_S) * self._health.stretch
        self._probe = _Probe(target, row.boot_id, self._number, now, now + timeout, now + interval)
        self._probe_at = None

    def _ask_relays(self, probe: _Probe) -> None:
        probe.relays_at = None
        row = self._roster.live(probe.target)
        if row is None:
            return
        able = [device for device in self._roster.trusted if device not in (probe.target, self._roster.me)]
        relays = self._rng.sample(able, min(self._roster.timing.relays, len(able)))
        # A relay that was silent before says nothing about our own health when it stays silent.
        probe.relays = sum(1 for relay in relays if self._heard_lately(relay, probe.sent_at))
        for relay in relays:
            self._post.send(relay, PingRequest(probe.number, probe.target))
        self._post.stream(probe.target, self._stream_ping(probe.target, probe.number))

    def _heard_lately(self, device: DeviceId, now: float) -> bool:
        heard_at = self._roster.heard_at(device)
        return heard_at is not None and now - heard_at < ISOLATION_S

    def _stream_ping(self, device: DeviceId, number: int) -> Ping:
        row = self._roster.get(device)
        assert row is not None
        accusation = self._roster.accusation(device)
        return Ping(number, row.boot_id, () if accusation is None else (accusation,))

    def _finish(self, probe: _Probe) -> DeviceId | None:
        row = self._roster.live(probe.target)
        if row is None or row.boot_id != probe.boot_id:
            return None
        heard_at = self._roster.heard_at(probe.target)
        # Whoever was heard lives, whatever became of our ping: an accusation that R6 would never let end is noise.
        lives = probe.answered or (heard_at is not None and heard_at >= probe.sent_at)
        self._missed[probe.target] = 0 if probe.reached else self._missed.get(probe.target, 0) + 1
        if lives:
            return None
        self._health.note(max(0, probe.relays - probe.nacks), self._roster.timing.health_max)
        return probe.target

    def _next_target(self) -> DeviceId | None:
        for _ in range(2):
            while self._next < len(self._order):
                device = self._order[self._next]
                self._next += 1
                if self._roster.live(device) is not None:
                    return device
            self._order = list(self._roster.others)
            self._rng.shuffle(self._order)
            self._next = 0
        return None

    def _measure(self, device: DeviceId, round_trip_s: float) -> None:
        mean, deviation = self._round_trip.get(device, (round_trip_s, round_trip_s / 2))
        deviation += (abs(round_trip_s - mean) - deviation) / 4
        self._round_trip[device] = (mean + (round_trip_s - mean) / 8, deviation)

    def _timeout_s(self, device: DeviceId) -> float:
        if device not in self._round_trip:
            return PING_TIMEOUT_S
        mean, deviation = self._round_trip[device]
        return max(PING_TIMEOUT_S_MIN, mean + 4 * deviation)
