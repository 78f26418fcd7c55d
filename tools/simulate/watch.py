"""What must hold after every step, and what must have happened somewhere in a sweep."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from meshnn.cluster.effects import LeaderChanged, MemberChanged, PersistIncarnation, SendDatagram
from meshnn.cluster.member import DeviceId, MemberState
from meshnn.cluster.messages import PreVoteReply, VoteReply, Yield
from meshnn.cluster.roster import ROWS_MAX
from meshnn.node.core import Core
from meshnn.node.effects import Effect, Send
from meshnn.node.plans import DRAIN_S
from meshnn.node.request import Answer, Fail
from meshnn.node.slices import Passage
from meshnn.plan.messages import Activate, Failed, Retire
from meshnn.plan.plan import Epoch, Lane, Plan
from tools.simulate.host import Host
from tools.simulate.plane import ASSEMBLY_BYTES
from tools.simulate.values import answer_of
from tools.simulate.world import World

QUEUE_MAX = 1024
RUMOURS_PER_ROW = 4
SLACK_S = 0.001

SOMETIMES = (
    "refutation",
    "burial",
    "isolation freeze",
    "pre-vote refused",
    "two leaders at once",
    "a leader yields",
    "abort after prepare",
    "stale-epoch retry",
    "contingency used",
    "a new leader goes on with a plan",
    "retried and answered",
    "late result dropped",
    "write lost in a crash",
    "death",
    "named error",
)
"""What every sweep must reach; what it does not reach it did not test."""


@dataclass(slots=True)
class Asked:
    """A request: who asked, when, what must come, and what came."""

    host: int
    life: int
    at: float
    deadline: float
    expected: int
    answers: int = 0
    attempts: int = 0
    error: str = ""
    ended_at: float | None = None


class Watch:
    """Looks at every effect and every state; breaks off at the first thing that may not be."""

    def __init__(self, world: World, hosts: Mapping[DeviceId, Host]) -> None:
        """Nothing was seen yet."""
        self.seen: Counter[str] = Counter()
        self.deaths: list[tuple[float, DeviceId, DeviceId]] = []
        self.false_deaths: list[tuple[float, DeviceId, DeviceId]] = []
        self.leader_changes = 0
        self.asked: dict[str, Asked] = {}
        self.activations: Counter[str] = Counter()
        self.epochs: dict[str, dict[Epoch, tuple[Lane, ...]]] = defaultdict(dict)
        self.elections: list[tuple[float, DeviceId, int]] = []
        # A script's finger on the end of every request.
        self.ended: Callable[[str], None] = lambda request: None
        self._world = world
        self._hosts = hosts
        self.cut_off = False
        self._leaders: dict[int, DeviceId] = {}
        self._votes: dict[tuple[DeviceId, int], DeviceId] = {}
        self._incarnations: dict[DeviceId, int] = {}
        self._boots: dict[DeviceId, int] = {}
        self._active: dict[tuple[DeviceId, int, str], tuple[Epoch, float]] = {}
        self._activated: set[Epoch] = set()
        self._rows: dict[DeviceId, int] = {}

    # -- a device's life --

    def on_started(self, host: Host) -> None:
        """A device begins a life; its incarnation exceeds all that it ever had."""
        mine = host.cluster.me.incarnation
        before = self._incarnations.get(host.id, -1)
        assert mine > before, f"device {host.index} starts with incarnation {mine} after {before}"
        self._incarnations[host.id] = mine
        self._boots[host.id] = host.boot
        self._rows[host.id] = 1

    def on_effect(self, host: Host, effect: Effect) -> None:
        """An effect, before it is performed."""
        match effect:
            case MemberChanged():
                self._on_member(host, effect)
            case LeaderChanged(leader, term):
                self._on_leader(host, leader, term)
            case PersistIncarnation(incarnation):
                if incarnation > self._incarnations[host.id]:
                    self.seen["refutation"] += 1
                self._incarnations[host.id] = max(incarnation, self._incarnations[host.id])
            case SendDatagram(to, _, message):
                self._on_datagram(host, to, message)
            case Send(_, Activate(plans)):
                self._activated.add(plans.main.epoch)
                self.seen["a new leader goes on with a plan"] += (
                    host.cluster.leader == host.id != plans.main.epoch.leader
                )
            case Send(_, Retire(_, epoch)):
                self.seen["abort after prepare"] += epoch not in self._activated
            case _:
                return

    def _on_member(self, host: Host, change: MemberChanged) -> None:
        before, after = change.before, change.after
        if after is None:
            return
        self._rows[host.id] += before is None
        known = self._incarnations.get(after.device_id, -1)
        assert after.device_id == host.id or after.incarnation <= known, (
            f"device {host.index} believes in incarnation {after.incarnation} of {after.device_id}, "
            f"which never exceeded {known}"
        )
        if before is not None and before.usable and after.state is MemberState.DEAD:
            self.seen["burial"] += 1
            self.deaths.append((self._world.now, host.id, after.device_id))
            subject = self._hosts[after.device_id]
            if subject.running and subject.boot_id == after.boot_id:
                self.false_deaths.append(self.deaths[-1])
            else:
                self.seen["death"] += 1

    def _on_leader(self, host: Host, leader: DeviceId | None, term: int) -> None:
        self.leader_changes += 1
        if leader != host.id:
            return
        if not self.elections or self.elections[-1][1:] != (host.id, host.boot):
            self.elections.append((self._world.now, host.id, host.boot))
        others = [one for one in self._hosts.values() if one is not host and one.running]
        self.seen["two leaders at once"] += any(one.cluster.leader == one.id for one in others)
        self._vote(host, term, host.id)
        first = self._leaders.setdefault(term, host.id)
        # Halves that do not hear each other may choose the same term: the leader's id fences their plans then.
        assert first == host.id or self.cut_off, f"two leaders in term {term} of a mesh that was never cut"
        assert host.disk.term >= term, f"device {host.index} leads in a term that is not on its disk"

    def _vote(self, host: Host, term: int, candidate: DeviceId) -> None:
        """Nobody has two votes in one term, in all its lives: so no two leaders of a term share a voter."""
        first = self._votes.setdefault((host.id, term), candidate)
        assert first == candidate, f"device {host.index} voted for {first} and {candidate} in term {term}"

    def _on_datagram(self, host: Host, to: DeviceId, message: object) -> None:
        match message:
            case PreVoteReply(_, False):
                self.seen["pre-vote refused"] += 1
            case VoteReply(asked, True):
                disk = (host.disk.term, host.disk.vote)
                assert disk[0] > asked or disk == (asked, to), f"device {host.index} voted before it was on disk"
                self._vote(host, asked, to)
            case Yield():
                self.seen["a leader yields"] += 1
            case _:
                return

    # -- after every event --

    def on_event(self, host: Host) -> None:
        """A device has taken an event in: what must hold of it."""
        mind = host.mind
        if mind is None:
            return
        cluster = mind.cluster
        if cluster.isolated:
            self.seen["isolation freeze"] += 1
        waiting = cluster.rumours
        assert waiting <= RUMOURS_PER_ROW * self._rows[host.id], f"{waiting} rumours wait at device {host.index}"
        assert len(cluster.members) <= ROWS_MAX, f"device {host.index} keeps {len(cluster.members)} rows"
        if isinstance(mind, Core):
            self._check_core(host, mind)

    def _check_core(self, host: Host, core: Core) -> None:
        assert core.shards.used_bytes <= host.memory_bytes, f"device {host.index} is over its memory"
        lost = core.shards.handles() ^ host.runtime.loaded.keys()
        assert not lost, f"device {host.index} has lost count of its shards: {sorted(lost)}"
        for model in core.book.models:
            plans = core.book.active(model)
            assert plans is not None
            self._check_epoch(host, plans.main)

    def on_work(self, host: Host) -> None:
        """A device's data plane has taken an event in: what must hold of it."""
        plane = host.plane
        if plane is None:
            return
        assert plane.ledger.queued <= QUEUE_MAX
        assert 0 <= plane.assembly.held_bytes <= ASSEMBLY_BYTES
        assert 0 <= plane.results.held_bytes <= ASSEMBLY_BYTES

    def _check_epoch(self, host: Host, plan: Plan) -> None:
        model, epoch = plan.model, plan.epoch
        key = (host.id, host.boot, model)
        before = self._active.get(key)
        if before is None or (before[0] is not epoch and before[0] != epoch):
            assert before is None or before[0] < epoch, f"device {host.index} went back from {before} to {epoch}"
            self._active[key] = (epoch, self._world.now)
            self.activations[model] += 1
            self.epochs[model].setdefault(epoch, plan.lanes)

    def moves(self, model: str, first: int) -> int:
        """How many of the plans from the `first` on move what serves; the others renew contingencies beside it."""
        ways = [lanes for _, lanes in sorted(self.epochs[model].items())][max(0, first - 1) :]
        return sum(before != after for before, after in pairwise(ways))

    # -- requests --

    def expect(self, host: Host, request: str, digest: str, last: int, value: int, deadline_s: float) -> None:
        """A request was accepted: it must be answered with what one device alone would answer."""
        now = self._world.now
        right = answer_of(value, digest, 0, last)
        self.asked[request] = Asked(host.index, host.boot, now, now + deadline_s, right)

    def on_answer(self, host: Host, answer: Answer, value: int) -> None:
        """An answer: the first and only, in this very life, and right."""
        self._end(host, answer.request, "")
        asked = self.asked[answer.request]
        asked.attempts = answer.attempts
        assert value == asked.expected, f"{answer.request} was answered {value}, right is {asked.expected}"
        self.seen["contingency used"] += bool(answer.plan.epoch.absent)
        self.seen["retried and answered"] += answer.attempts > 1

    def on_fail(self, host: Host, fail: Fail) -> None:
        """A named error ends a request, by its deadline."""
        self.seen["named error"] += 1
        self._end(host, fail.request, fail.code)

    def _end(self, host: Host, request: str, error: str) -> None:
        asked = self.asked.get(request)
        assert asked is not None, f"{request} ended and was never asked"
        assert (asked.host, asked.life) == (host.index, host.boot), f"{request} ended in another life"
        assert asked.ended_at is None, f"{request} ended twice"
        asked.answers += not error
        asked.error, asked.ended_at = error, self._world.now
        self.ended(request)

    def on_trouble(self, host: Host, message: Failed) -> None:
        """A stage ended an attempt."""
        self.seen["stale-epoch retry"] += message.code == "stale_epoch_error"

    def on_late(self, host: Host, passage: Passage) -> None:
        """A result of a superseded attempt, or of a request that is over."""
        self.seen["late result dropped"] += 1

    def on_run(self, host: Host, passage: Passage, handle: int) -> None:
        """A shard runs: of a plan that this device serves, or that drains since a moment ago."""
        newer = self._active.get((host.id, host.boot, passage.model))
        core = host.core
        assert core.book.plan(passage.model, passage.epoch) is not None, f"device {host.index} runs what it retired"
        if newer is not None and passage.epoch.main < newer[0]:
            # Who was stopped takes in what waited before it looks at the clock.
            overdue = core.book.deadline is not None and core.book.deadline < self._world.now - SLACK_S
            age_s = 0.0 if overdue else self._world.now - newer[1]
            assert age_s <= DRAIN_S + SLACK_S, f"device {host.index} runs {passage.epoch}, {age_s:.1f} s after {newer}"
