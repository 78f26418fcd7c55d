"""The origin's requests: numbered attempts, windows, retries on evidence, one answer each. Pure.

A request is accepted, waits until a plan has room for it, and lives through attempts until the first whole result
answers it or its deadline fails it. Two kinds of trouble are told apart: what this node itself saw of a device
(evidence: it holds until the device is linked again), and what a stage reported of another (a report: it holds a few
seconds, for this plan only, since the reporter's link may be broken where ours is not).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import BusyError
from meshnn.node.chooser import Chooser, Way
from meshnn.node.doubts import Budget, Doubts, Latencies, LedgerLimits
from meshnn.node.lags import Lags
from meshnn.node.request import Answer, Attempt, CancelAttempt, Dispatch, Effect, Fail, GoAround, Request
from meshnn.node.served import Served
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch, Plan

STALE = "stale_epoch_error"
FATAL = frozenset({"input_error", "unknown_model_error", "usage_error"})


class Ledger:
    """The machine: events in, effects out; `deadline` says when to call `on_deadline`."""

    def __init__(self, me: DeviceId, boot: BootId, served: Served, limits: LedgerLimits | None = None) -> None:
        """An empty ledger of the origin `me` in its life `boot`."""
        self._me = me
        self._served = served
        self._limits = limits or LedgerLimits()
        self._requests: dict[str, Request] = {}
        self._fresh: dict[str, dict[str, Request]] = {}
        self._retries: dict[str, dict[str, Request]] = {}
        self._inside: dict[Epoch, int] = {}
        self._wakes: list[tuple[float, int, str]] = []
        self._count = 0
        self._held_bytes = 0
        self._budget = Budget(self._limits)
        self._doubts = Doubts(me, boot, self._limits)
        self._latencies = Latencies(served, self._limits)
        self._lags = Lags(served)
        self._chooser = Chooser(served, self._doubts, self._lags, self._limits)

    # What is there.

    @property
    def deadline(self) -> float:
        """When `on_deadline` is next due; infinite while nothing waits for time."""
        while self._wakes and self._wakes[0][2] not in self._requests:
            heapq.heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else float("inf")

    @property
    def queued(self) -> int:
        """How many accepted requests are in no plan now."""
        return sum(len(queue) for table in (self._fresh, self._retries) for queue in table.values())

    @property
    def open(self) -> int:
        """How many accepted requests have no answer yet."""
        return len(self._requests)

    def in_flight(self, epoch: Epoch) -> int:
        """How many live attempts this origin has in the plan of `epoch`."""
        return self._inside.get(epoch, 0)

    def attempt(self, request: str, number: int) -> Attempt | None:
        """A dispatched attempt of a request that is not answered yet, superseded ones included."""
        found = self._requests.get(request)
        return found.attempts.get(number) if found else None

    def deadline_of(self, request: str) -> float:
        """The deadline of an open request; 0 where it is not open."""
        found = self._requests.get(request)
        return found.deadline if found else 0.0

    # Events.

    def accept(self, request: str, model: str, size_bytes: int, deadline: float, now: float) -> list[Effect]:
        """Take a request in, to be answered or failed by `deadline`. BusyError when the queue is full."""
        held = self._held_bytes + size_bytes
        if self.queued >= self._limits.queue or (self._requests and held > self._limits.queue_bytes):
            raise BusyError(f"this device has {self.queued} requests waiting already; try again later")
        self._count += 1
        entry = Request(request, self._count, model, size_bytes, now, deadline, waiting_since=now)
        self._requests[request] = entry
        self._held_bytes = held
        self._fresh.setdefault(model, {})[request] = entry
        self._budget.earn(now, self._limits.budget_per_request)
        self._wake(entry, deadline)
        return self._pump(model, now)

    def on_plans(self, now: float) -> list[Effect]:
        """The served plans changed: attempts in plans that are gone start again, waiting requests may go."""
        effects: list[Effect] = []
        for entry in list(self._requests.values()):
            for attempt in entry.live:
                if self._served.plan(entry.model, attempt.plan.epoch) is None:
                    effects += self._supersede(entry, attempt, now, f"plan {attempt.plan.epoch} was retired")
        self._chooser.prune()
        self._latencies.prune()
        self._lags.prune()
        return effects + self._pump_all(now)

    def on_evidence(self, device: DeviceId, now: float) -> list[Effect]:
        """This node has evidence against a device: every attempt that goes through it starts again at once."""
        if device == self._me:
            return []
        self._doubts.on_evidence(device, now)
        effects: list[Effect] = []
        for entry in list(self._requests.values()):
            for attempt in entry.live:
                if device in attempt.devices and device in self._doubts.hard(attempt.plan, now):
                    effects += self._supersede(entry, attempt, now, f"device {device} went away")
        return effects + self._pump_all(now)

    def on_linked(self, device: DeviceId, boot: BootId, now: float) -> list[Effect]:
        """The device is linked in life `boot`: its evidence is cleared; attempts that need another life start again."""
        if device == self._me:
            return []
        self._doubts.on_linked(device, boot)
        effects: list[Effect] = []
        for entry in list(self._requests.values()):
            for attempt in entry.live:
                if device in attempt.devices and self._doubts.other_life(attempt.plan, device):
                    effects += self._supersede(entry, attempt, now, f"device {device} restarted")
        return effects + self._pump_all(now)

    def on_failed(
        self, request: str, number: int, reporter: DeviceId, code: str, message: str, culprit: str, now: float
    ) -> list[Effect]:
        """A stage on `reporter` ended an attempt; `culprit` is the device it blames, "" for none."""
        entry = self._requests.get(request)
        attempt = entry.attempts.get(number) if entry else None
        if entry is None or attempt is None or reporter not in (self._me, *attempt.devices):
            return []
        # A stage that cannot reach this origin is itself the one to go around.
        blamed = reporter if culprit == self._me else DeviceId(culprit)
        if blamed and blamed != self._me and blamed in attempt.devices:
            # Either end of a path that carries nothing can be the one to go around.
            other = reporter if reporter not in (self._me, blamed) else blamed
            self._doubts.on_report(attempt.plan.epoch, blamed, other, now)
            entry.avoid[blamed] = (now + self._limits.report_s, other)
        if not attempt.live:
            return []
        if code in FATAL:
            return self._fail(entry, code, message) + self._pump(entry.model, now)
        effects = self._supersede(entry, attempt, now, message)
        if culprit:
            return effects + self._pump(entry.model, now)
        return effects + self._retry_without_culprit(entry, attempt, reporter, code, message, now)

    def on_output(
        self, request: str, number: int, epoch: Epoch, now: float, times: Sequence[StageTime] = ()
    ) -> list[Effect]:
        """A whole result came: the first of any attempt answers, whatever has become of that attempt.

        `times` are those of the shards on its way: they say who may be slow where requests become late.
        """
        entry = self._requests.get(request)
        attempt = entry.attempts.get(number) if entry else None
        if entry is None or attempt is None or attempt.plan.epoch != epoch:
            return []
        self._latencies.observe(attempt, now)
        effects = entry.cancels(attempt)
        effects.append(Answer(request, number, attempt.plan, len(entry.attempts), now - entry.accepted_at))
        self._forget(entry)
        self._lags.on_answer(attempt, times)
        return effects + self._pump(entry.model, now)

    def on_unwanted(self, request: str, now: float) -> list[Effect]:
        """Whoever asked is gone: the request's attempts are cancelled and nothing is answered."""
        entry = self._requests.get(request)
        if entry is None:
            return []
        effects = entry.cancels()
        self._forget(entry)
        return effects + self._pump(entry.model, now)

    def on_refused(self, request: str, code: str, message: str, now: float) -> list[Effect]:
        """This node itself cannot send the request (its inputs do not fit the model): it fails."""
        entry = self._requests.get(request)
        return self._fail(entry, code, message) + self._pump(entry.model, now) if entry else []

    def on_deadline(self, now: float) -> list[Effect]:
        """Time passed: deadlines fail, patience ends, waits are over."""
        effects: list[Effect] = []
        models: set[str] = set()
        while self._wakes and self._wakes[0][0] <= now:
            entry = self._requests.get(heapq.heappop(self._wakes)[2])
            if entry is None:
                continue
            models.add(entry.model)
            if now >= entry.deadline:
                effects += self._fail(entry, "deadline_error", entry.late())
                continue
            for attempt in entry.live:
                if now >= attempt.late_at and not attempt.late:
                    effects += self._on_late(entry, attempt, now, stuck=False)
                if now >= attempt.patience_at:
                    effects += self._on_impatience(entry, attempt, now)
        for model in sorted(models):
            effects += self._restart_late(model, now)
            effects += self._pump(model, now)
        return effects

    # Inside.

    def _retry_without_culprit(
        self, entry: Request, attempt: Attempt, reporter: DeviceId, code: str, message: str, now: float
    ) -> list[Effect]:
        """An attempt failed and no device is to blame: a retired plan, a full device, or the model itself."""
        limits = self._limits
        wait_s = min(limits.most_backoff_s, limits.backoff_s * 2.0 ** min(entry.failures, 10))
        entry.failures += 1
        if code == STALE:
            entry.refused[attempt.plan.epoch] = now + wait_s
            self._wake(entry, now + wait_s)
        elif code == "model_error":
            # One device may fail at what another can do (memory, a kernel); two say that it is the model.
            entry.model_errors += 1
            entry.avoid[reporter] = (now + limits.report_s, reporter)
            # A way around whoever is slow leaves the ordinary one to be tried.
            around = self._lags.suspected(attempt.plan, now).difference(attempt.devices)
            if entry.model_errors > 1 or not (around or self._chooser.others(entry, now)):
                return self._fail(entry, code, message) + self._pump(entry.model, now)
        else:
            entry.not_before = now + wait_s
            self._wake(entry, entry.not_before)
        return self._pump(entry.model, now)

    def _on_impatience(self, entry: Request, attempt: Attempt, now: float) -> list[Effect]:
        """No answer and no evidence in time: try again, as far as the budget goes; else wait once more."""
        entry.impatience += 1
        effects = self._on_late(entry, attempt, now, stuck=True) if attempt.late_at < math.inf else []
        if self._budget.spend(now, forced=False):
            return effects + self._supersede(entry, attempt, now, "no answer in time", spend=False)
        attempt.patience_at = now + self._latencies.patience_s(attempt.plan, entry.impatience)
        self._wake(entry, attempt.patience_at)
        return effects

    def _on_late(self, entry: Request, attempt: Attempt, now: float, *, stuck: bool) -> list[Effect]:
        """An attempt takes far longer than others did: find whom to go around, if it is not on a way around already.

        That is the likeliest device for which there is a way; else nobody is gone around for a while.
        """
        attempt.late = True
        if not self._lags.suspected(attempt.plan, now).isdisjoint(attempt.devices):
            return []
        suspects = self._lags.on_late(attempt, now, stuck=stuck)
        if suspects is None:
            return []
        found = next((one for one in suspects if self._chooser.around(entry, {one}, now) is not None), None)
        self._lags.go_around(attempt.plan, found, now)
        return [GoAround(found, attempt.plan.epoch)] if found is not None else []

    def _restart_late(self, model: str, now: float) -> list[Effect]:
        """Late attempts through a suspect start again around it, as far as there is room, and half the budget goes."""
        effects: list[Effect] = []
        least = max(1.0, self._limits.budget / 2)
        late = [
            (entry, attempt)
            for entry in self._requests.values()
            if entry.model == model and not entry.failures
            for attempt in entry.live
            if attempt.late and not self._lags.suspected(attempt.plan, now).isdisjoint(attempt.devices)
        ]
        for entry, attempt in late:
            way = self._chooser.around(entry, self._lags.suspected(attempt.plan, now), now)
            if way is None or not (way[0].epoch == attempt.plan.epoch or self._has_room(way)):
                continue
            if not self._budget.spend(now, forced=False, least=least):
                break
            effects += self._supersede(entry, attempt, now, "it took far longer than others", spend=False)
            effects.append(self._dispatch(entry, *way, now))
        return effects

    def _supersede(
        self, entry: Request, attempt: Attempt, now: float, trouble: str, *, spend: bool = True
    ) -> list[Effect]:
        """End a live attempt and put its request among the retries."""
        if spend:
            self._budget.spend(now, forced=True)
        self._leave(attempt)
        entry.trouble = trouble
        entry.waiting_since = now
        entry.look_at = now
        self._retries.setdefault(entry.model, {})[entry.name] = entry
        return [CancelAttempt(entry.name, attempt.number, attempt.devices)]

    def _pump_all(self, now: float) -> list[Effect]:
        """Let go what may go, of every model."""
        effects: list[Effect] = []
        for model in sorted({*self._fresh, *self._retries}):
            effects += self._pump(model, now)
        return effects

    def _pump(self, model: str, now: float) -> list[Effect]:
        """Let go what may go of one model, in the order of acceptance (retries were accepted first)."""
        effects: list[Effect] = []
        retries = sorted(self._retries.get(model, {}).values(), key=lambda entry: entry.number)
        for entry in (*retries, *self._fresh.get(model, {}).values()):
            if entry.not_before > now:
                continue
            ways = self._chooser.ways(entry, now, patient=now < self._grace_end(entry))
            way = next((way for way in ways if self._has_room(way)), None)
            if way is not None:
                effects.append(self._dispatch(entry, *way, now))
                continue
            if not ways or now < self._grace_end(entry):
                self._look_again(entry, now)
            if entry.plain:
                # Every later request of this model would find the same.
                break
        self._drop_empty(model)
        return effects

    def _grace_end(self, entry: Request) -> float:
        """Until when a waiting request goes around what was only reported."""
        return entry.waiting_since + self._limits.grace_s

    def _has_room(self, way: Way) -> bool:
        """Whether this origin's share of a way's plan is not used up."""
        return self._inside.get(way[0].epoch, 0) < way[0].share

    def _dispatch(
        self, entry: Request, plan: Plan, lane: int, groups: tuple[int, ...], devices: tuple[DeviceId, ...], now: float
    ) -> Effect:
        """Start the request's next attempt on this way."""
        number = len(entry.attempts) + 1
        patience_at = now + self._latencies.patience_s(plan, entry.impatience)
        inside = self._inside[plan.epoch] = self._inside.get(plan.epoch, 0) + 1
        late_at = now + self._latencies.late_after_s(plan, inside)
        entry.attempts[number] = Attempt(number, plan, lane, groups, devices, now, patience_at, late_at, inside)
        self._chooser.took(plan)
        for table in (self._fresh, self._retries):
            table.get(entry.model, {}).pop(entry.name, None)
        self._wake(entry, patience_at)
        if late_at < patience_at:
            self._wake(entry, late_at)
        return Dispatch(entry.name, number, plan, lane, groups, devices, entry.deadline)

    def _fail(self, entry: Request, code: str, message: str) -> list[Effect]:
        """End a request with an error."""
        effects = entry.cancels()
        self._forget(entry)
        return [*effects, Fail(entry.name, code, message)]

    def _forget(self, entry: Request) -> None:
        """Drop everything that is known of a request."""
        for attempt in entry.live:
            self._leave(attempt)
        del self._requests[entry.name]
        self._held_bytes -= entry.size_bytes
        for table in (self._fresh, self._retries):
            table.get(entry.model, {}).pop(entry.name, None)
        self._drop_empty(entry.model)

    def _drop_empty(self, model: str) -> None:
        """Keep no queue of a model that nothing waits for."""
        for table in (self._fresh, self._retries):
            if not table.get(model, True):
                del table[model]

    def _leave(self, attempt: Attempt) -> None:
        """An attempt's place in its plan's window is free."""
        attempt.live = False
        left = self._inside[attempt.plan.epoch] - 1
        if left:
            self._inside[attempt.plan.epoch] = left
        else:
            del self._inside[attempt.plan.epoch]

    def _look_again(self, entry: Request, now: float) -> None:
        """Have a request that found no way try again when its grace is over, and then once in a while."""
        if entry.look_at <= now:
            grace_end = self._grace_end(entry)
            entry.look_at = grace_end if now < grace_end else now + self._limits.recheck_s
            self._wake(entry, entry.look_at)

    def _wake(self, entry: Request, when: float) -> None:
        """Have `on_deadline` look at this request then."""
        heapq.heappush(self._wakes, (when, entry.number, entry.name))
