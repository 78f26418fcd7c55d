"""What makes an origin go another way: doubts about devices, patience with plans, a budget of retries. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from operator import itemgetter

from meshnn.cluster.member import BootId, DeviceId
from meshnn.node.request import Attempt
from meshnn.node.served import Served
from meshnn.plan.plan import Epoch, Plan

# What attempts took that says what is late, and the latest of it that patience goes by. The former must outlast the few
# answers of a device that just became slow.
RECENT, PATIENT = 256, 64


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    """The bounds and patience of a ledger; times in seconds.

    The least patience outlasts the evidence of a death, three pings: to start again would only begin to ping anew.
    An attempt is late that takes `late_factor` times the ninth decile of its plan's latest, and `late_s` more, where
    `late_known` of them are known. A plan that refused less than `asked_first` times is taken to be on its way into
    memory: no other is tried meanwhile, and before twice as many refusals none that must be loaded too.
    """

    queue: int = 1024
    queue_bytes: int = 256_000_000
    least_patience_s: float = 1.5
    unknown_patience_s: float = 2.0
    most_patience_s: float = 30.0
    late_factor: float = 1.5
    late_s: float = 0.05
    late_known: int = 64
    evidence_s: float = 30.0
    report_s: float = 5.0
    grace_s: float = 0.5
    recheck_s: float = 1.0
    asked_first: int = 3
    backoff_s: float = 0.05
    most_backoff_s: float = 1.0
    budget: float = 16.0
    budget_per_request: float = 0.2
    budget_per_s: float = 0.2


class Budget:
    """A bucket of retries: filled by accepted requests and slowly by time, so that a brown-out is no storm."""

    def __init__(self, limits: LedgerLimits) -> None:
        """A full bucket."""
        self._limits = limits
        self._tokens = limits.budget
        self._at = 0.0

    def earn(self, now: float, tokens: float) -> None:
        """Add what the time since the last call and `tokens` bring, up to the bucket's size."""
        grown = max(0.0, now - self._at) * self._limits.budget_per_s
        self._at = max(self._at, now)
        self._tokens = min(self._limits.budget, self._tokens + grown + tokens)

    def spend(self, now: float, *, forced: bool, least: float = 1.0) -> bool:
        """Take one retry; false where not even `least` are left, unless it is forced."""
        self.earn(now, 0.0)
        if self._tokens < least and not forced:
            return False
        self._tokens = max(0.0, self._tokens - 1.0)
        return True


class Doubts:
    """Which devices are not to be used now, and for which plan: own evidence by life, reports by plan."""

    def __init__(self, me: DeviceId, boot: BootId, limits: LedgerLimits) -> None:
        """No doubts; this node itself lives in `boot`."""
        self._me = me
        self._limits = limits
        self._lives: dict[DeviceId, BootId] = {me: boot}
        self._evidence: dict[DeviceId, tuple[BootId | None, float]] = {}
        self._reports: dict[tuple[Epoch, DeviceId], tuple[float, DeviceId]] = {}

    def on_evidence(self, device: DeviceId, now: float) -> None:
        """This node saw the device gone or mute."""
        self._evidence[device] = (self._lives.pop(device, None), now + self._limits.evidence_s)

    def on_linked(self, device: DeviceId, boot: BootId) -> None:
        """The device is linked, in this life; what others reported of it stands."""
        self._evidence.pop(device, None)
        self._lives[device] = boot

    def on_report(self, epoch: Epoch, device: DeviceId, reporter: DeviceId, now: float) -> None:
        """A stage of this plan, on `reporter`, cannot hand on to the device."""
        self._reports = {key: said for key, said in self._reports.items() if said[0] > now}
        self._reports[epoch, device] = (now + self._limits.report_s, reporter)

    def accuses(self, device: DeviceId, now: float) -> bool:
        """Whether this node has evidence against the device."""
        return self._evidence.get(device, (None, 0.0))[1] > now

    def other_life(self, plan: Plan, device: DeviceId) -> bool:
        """Whether the device is known in another life than the plan was made for."""
        known = self._lives.get(device)
        return known is not None and known != plan.lives()[device]

    def hard(self, plan: Plan, now: float) -> set[DeviceId]:
        """The plan's devices that this node has evidence against, or that live another life."""
        found = set()
        for device, life in plan.lives().items():
            boot, until = self._evidence.get(device, (None, 0.0))
            gone = until > now and (boot is None or boot == life)
            if gone or self.other_life(plan, device):
                found.add(device)
        return found

    def soft(self, plan: Plan, now: float) -> list[tuple[DeviceId, DeviceId]]:
        """The plan's devices that a stage of the same plan reported lately, each with who did."""
        return [
            (device, reporter)
            for (epoch, device), (until, reporter) in self._reports.items()
            if epoch == plan.epoch and until > now
        ]


class Latencies:
    """What requests took, per plan: the ground of an origin's patience."""

    def __init__(self, served: Served, limits: LedgerLimits) -> None:
        """Nothing observed yet."""
        self._served = served
        self._limits = limits
        self._recent: dict[tuple[str, Epoch], deque[tuple[float, int]]] = {}

    def observe(self, attempt: Attempt, now: float) -> None:
        """An attempt took until now."""
        recent = self._recent.setdefault((attempt.plan.model, attempt.plan.epoch), deque(maxlen=RECENT))
        recent.append((now - attempt.sent_at, attempt.inside))

    def prune(self) -> None:
        """Forget plans that are no longer served."""
        self._recent = {key: recent for key, recent in self._recent.items() if self._served.plan(*key) is not None}

    def late_after_s(self, plan: Plan, inside: int) -> float:
        """After what time an attempt is late, with so many `inside` its plan; infinite where too little is known.

        The ninth decile is the usual: under a processor quota one in a few takes long as a rule. Load makes all slow,
        as many times as there are more of them at most. A contingency not known itself may take half as long again.
        """
        limits = self._limits
        for epoch in dict.fromkeys((plan.epoch, plan.epoch.main)):
            known, factor = self._known(plan.model, epoch), limits.late_factor
            took = sorted(took_s for took_s, beside in known if beside >= inside)
            if len(took) < limits.late_known <= len(known):
                most = sorted(known, key=itemgetter(1))[-limits.late_known :]
                took = sorted(took_s for took_s, _ in most)
                factor *= inside / most[0][1]
            if len(took) >= limits.late_known:
                usual_s = took[math.ceil(0.9 * len(took)) - 1]
                return (factor if epoch == plan.epoch else 1.5 * factor) * usual_s + limits.late_s
        return math.inf

    def patience_s(self, plan: Plan, doublings: int) -> float:
        """How long an attempt may stay without answer and without evidence."""
        limits = self._limits
        recent = sorted(took_s for took_s, _ in self._known(plan.model, plan.epoch)[-PATIENT:])
        predicted = self._served.predicted_s(plan)
        if recent:
            usual = max(recent[int(0.95 * (len(recent) - 1))], predicted)
            patience = max(limits.least_patience_s, 4 * usual)
        else:
            # A prediction may be several times off: a busy processor, cold pages. Running twice would double that.
            patience = max(limits.unknown_patience_s, 12 * predicted)
        return min(limits.most_patience_s, patience * 2.0 ** min(doublings, 10))

    def _known(self, model: str, epoch: Epoch) -> list[tuple[float, int]]:
        """What the latest attempts of a plan took, and how many were inside it, in the order of their ends."""
        return list(self._recent.get((model, epoch), ()))
