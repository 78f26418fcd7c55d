"""The requests of this device: the ledger's decisions performed, the answers put together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import (
    BusyError,
    DeadlineError,
    InputError,
    MeshError,
    ModelConflictError,
    NodeError,
    PeerError,
    StaleEpochError,
    from_code,
)
from meshnn.graph.card import Card
from meshnn.net.tasks import TaskSet
from meshnn.node.assembly import Assembly, Complete, Key
from meshnn.node.carrier import Ground, Load
from meshnn.node.inputs import Arrival, Target
from meshnn.node.ledger import Ledger
from meshnn.node.pipeline import Pipeline
from meshnn.node.request import Answer, Attempt, CancelAttempt, Dispatch, Effect, Fail, GoAround
from meshnn.node.slices import Array, Passage, parcel_of
from meshnn.plan.messages import Cancel, Failed, StageTime
from meshnn.plan.plan import Plan
from meshnn.plan.routes import ORIGIN
from meshnn.plan.shipments import At
from meshnn.telemetry import logger

# Past the deadline the ledger has failed the request; this is for the case that nothing drives the ledger.
SLACK_S = 5.0
EVERY_ATTEMPT = 2**31

_log = logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An answered request: the model's outputs by tensor index, and how they came about. Times in seconds."""

    outputs: Mapping[int, Array]
    plan: Plan
    lane: int
    groups: tuple[int, ...]
    times: tuple[StageTime, ...]
    attempts: int
    latency_s: float
    exact: bool


@dataclass(slots=True)
class _Asked:
    """Whoever waits for a request, with the inputs that it keeps until answered."""

    answer: asyncio.Future[Outcome]
    inputs: Mapping[int, Array]
    digest: str = ""
    result: Complete | None = None


class Origin:
    """Asks on behalf of this device; the only one that retries, and the only one that answers."""

    def __init__(
        self, ground: Ground, pipeline: Pipeline, ledger: Ledger, rearm: Callable[[], None], *, assembly_bytes: int
    ) -> None:
        """Local stages are reached through `pipeline`; `rearm` is called when `deadline` may have become another."""
        self._me, self._boot = ground.me, ground.boot
        self._transport = ground.transport
        self._served = ground.served
        self._clock = ground.clock
        self._carrier = ground.carrier
        self._pipeline = pipeline
        self._ledger = ledger
        self._assembly = Assembly(assembly_bytes)
        self._asked: dict[str, _Asked] = {}
        self._watched: dict[tuple[str, int], tuple[DeviceId, ...]] = {}
        self._effects: deque[Effect] = deque()
        self._performing = False
        self._count = 0
        self._rearm = rearm
        self._tasks = TaskSet("origin")

    @property
    def ledger(self) -> Ledger:
        """The machine behind this."""
        return self._ledger

    @property
    def deadline(self) -> float:
        """When `on_time` is next due."""
        return self._ledger.deadline

    async def stop(self) -> None:
        """End every send; whoever still waits is told that the node stops."""
        await self._tasks.stop()
        for asked in list(self._asked.values()):
            if not asked.answer.done():
                asked.answer.set_exception(NodeError("this node is stopping"))

    async def ask(self, model: str, inputs: Mapping[int, Array], deadline_s: float, digest: str = "") -> Outcome:
        """Have the mesh run a model on raw inputs (by tensor index); see `DataPlane.ask`."""
        now = self._clock()
        self._count += 1
        request = f"{self._me}.{self._boot}.{self._count}"
        kept = {index: np.ascontiguousarray(array) for index, array in inputs.items()}
        size_bytes = sum(array.nbytes for array in kept.values())
        asked = _Asked(asyncio.get_running_loop().create_future(), kept, digest)
        self._asked[request] = asked
        try:
            self.perform(self._ledger.accept(request, model, size_bytes, now + deadline_s, now))
            async with asyncio.timeout(deadline_s + SLACK_S):
                return await asked.answer
        except TimeoutError:
            raise DeadlineError(f"no answer from {model} within {deadline_s:.1f} s") from None
        finally:
            # Answered, failed, or nobody waits any more: in each case nothing of it stays.
            del self._asked[request]
            self.perform(self._ledger.on_unwanted(request, self._clock()))

    # Events.

    def on_arrival(self, passage: Passage, arrival: Arrival) -> None:
        """A slice of an answer."""
        attempt = self.expected(passage)
        if attempt is None:
            return
        key = Key(passage, len(passage.groups), 0)
        now = self._clock()
        try:
            deadline = self._ledger.deadline_of(passage.request)
            complete = self._assembly.add(key, self._target(attempt), arrival, deadline, now)
        except MeshError as error:
            _log.warning("answer refused", request=passage.request, source=arrival.source, reason=str(error))
            return
        if complete is not None:
            self._asked[passage.request].result = complete
            self._assembly.finish(key)
            told = (passage.request, passage.attempt, passage.epoch)
            self.perform(self._ledger.on_output(*told, now, complete.times))

    def on_failed(self, reporter: DeviceId, message: Failed) -> None:
        """A stage, or this node on its own part, ended an attempt."""
        _log.info("attempt failed", request=message.request, code=message.code, reason=message.message)
        now = self._clock()
        culprit = DeviceId(message.culprit)
        if reporter == self._me and culprit and not self._transport.connected(culprit):
            # Our own link: its next HELLO clears this, where a stage's report would stand for seconds.
            self.perform(self._ledger.on_evidence(culprit, now))
        told = (message.code, message.message, message.culprit)
        self.perform(self._ledger.on_failed(message.request, message.attempt, reporter, *told, now))

    def expected(self, passage: Passage) -> Attempt | None:
        """The attempt that an answer's slice belongs to; None where it is nobody's here, or not as it was sent."""
        if (passage.origin, passage.origin_boot) != (self._me, self._boot) or passage.request not in self._asked:
            return None
        attempt = self._ledger.attempt(passage.request, passage.attempt)
        if attempt is None or (attempt.plan.model, attempt.plan.epoch) != (passage.model, passage.epoch):
            return None
        return attempt if (attempt.lane, attempt.groups) == (passage.lane, passage.groups) else None

    def admits(self, passage: Passage, source: At, address: At) -> bool:
        """Whether the payload of an answer's slice may be read; the attempt ends where there is no room for it."""
        key = Key(passage, len(passage.groups), 0)
        attempt = self.expected(passage)
        if attempt is None or not self._assembly.wants(key, source, address):
            return False
        try:
            if self._assembly.has_room(key, self._target(attempt)):
                return True
            raise BusyError("this device has no room for more answers")
        except MeshError as error:
            self._failed_here(passage.request, passage.attempt, error)
        return False

    def is_sender(self, passage: Passage, source: tuple[int, int], device: DeviceId, boot: BootId) -> bool:
        """Whether this device in this life is the shard that an answer's slice says it comes from."""
        attempt = self.expected(passage)
        stages = attempt.plan.lanes[attempt.lane].stages if attempt else ()
        if not 0 <= source[0] < len(stages):
            return False
        shards = stages[source[0]].groups[passage.groups[source[0]]].shards
        return 0 <= source[1] < len(shards) and (shards[source[1]].device, shards[source[1]].boot) == (device, boot)

    def on_time(self, now: float) -> None:
        """Deadlines may have come."""
        self._assembly.expire(now)
        if self._ledger.deadline <= now:
            self.perform(self._ledger.on_deadline(now))

    def perform(self, effects: Sequence[Effect]) -> None:
        """Do what the ledger said, in its order, also where doing it brings new events."""
        self._effects.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._effects:
                self._do(self._effects.popleft())
        finally:
            self._performing = False
        self._rearm()

    # Effects.

    def _do(self, effect: Effect) -> None:
        match effect:
            case Dispatch():
                self._dispatch(effect)
            case CancelAttempt(request, attempt, devices):
                self._cancel(request, attempt, devices)
            case Answer():
                self._answer(effect)
            case GoAround(device, epoch):
                _log.info("going_around", device=device, epoch=str(epoch), reason="requests suddenly take far longer")
            case Fail(request, code, message):
                self._over(request)
                asked = self._asked.get(request)
                if asked is not None and not asked.answer.done():
                    asked.answer.set_exception(from_code(code, message))

    def _dispatch(self, effect: Dispatch) -> None:
        """Send an attempt's inputs to the shards that need them, and watch over every device on its way."""
        attempt = self._ledger.attempt(effect.request, effect.attempt)
        if attempt is None or not attempt.live:
            return
        others = tuple(device for device in effect.devices if device != self._me)
        self._watched[effect.request, effect.attempt] = others
        for device in others:
            self._transport.expecting(device, 1)
        lost = [device for device in others if not self._transport.connected(device)]
        if lost:
            for device in lost:
                self.perform(self._ledger.on_evidence(device, self._clock()))
            return
        try:
            loads = self._loads(effect)
        except StaleEpochError as error:
            self._failed_here(effect.request, effect.attempt, error)
        except MeshError as error:
            self.perform(self._ledger.on_refused(effect.request, error.code, str(error), self._clock()))
        else:
            for load in loads:
                self._send(load)

    def _loads(self, effect: Dispatch) -> list[Load]:
        """The parcels of an attempt's inputs. InputError where they do not fit the model."""
        plan = effect.plan
        card = self._card(plan)
        asked = self._asked[effect.request]
        if asked.digest not in {"", plan.digest}:
            raise ModelConflictError(f"{plan.model} was replaced by another file while the request waited; ask again")
        check_inputs(card, asked.inputs)
        ways = self._pipeline.routes.ways(plan, card, effect.lane, effect.groups)
        identity = (self._me, self._boot)
        passage = Passage(effect.request, effect.attempt, plan.model, plan.epoch, *identity, effect.lane, effect.groups)
        loads = []
        for shipment in ways.traffic.sent((ORIGIN, 0), self._me):
            device = ways.traffic.device(shipment.address, self._me)
            parcel = parcel_of(shipment, asked.inputs, {})
            loads.append(Load(passage, parcel, (ORIGIN, 0), device, effect.deadline))
        return loads

    def _send(self, load: Load) -> None:
        """One parcel of inputs on its way: over the network, or to a shard of this device."""
        parcel = load.parcel
        if load.device != self._me:
            self._tasks.spawn(self._carry(load), load.passage.request)
            return
        if parcel.stage < len(load.passage.groups):
            self._pipeline.on_parcel(load.passage, load.source, parcel, load.deadline)
        else:
            self.on_arrival(load.passage, Arrival(load.source, (parcel.stage, parcel.part), parcel.pieces))

    async def _carry(self, load: Load) -> None:
        """Send one parcel of inputs; a broken link is evidence."""
        try:
            await self._carrier.carry(load)
        except PeerError as error:
            self._failed_here(load.passage.request, load.passage.attempt, error, load.device)
        except DeadlineError:
            # The ledger keeps the same deadline.
            return

    def _failed_here(self, request: str, attempt: int, error: MeshError, culprit: str = "") -> None:
        """An attempt ended in this node's own hands."""
        self.on_failed(self._me, Failed(request, attempt, ORIGIN, error.code, str(error), culprit))

    def _cancel(self, request: str, attempt: int, devices: Sequence[DeviceId]) -> None:
        """Tell the devices of an attempt that it is over, and watch them for it no longer."""
        self._unwatch(request, attempt)
        self._pipeline.cancel(self._me, request, attempt)
        for device in devices:
            if device != self._me:
                self._transport.send(device, Cancel(request, attempt))

    def _answer(self, effect: Answer) -> None:
        """Give the result to whoever asked."""
        self._over(effect.request)
        asked = self._asked.get(effect.request)
        if asked is None or asked.answer.done():
            return
        result = asked.result
        assert result is not None, "an answer without a result"
        passage = result.key.passage
        asked.answer.set_result(
            Outcome(
                outputs=result.tensors,
                plan=effect.plan,
                lane=passage.lane,
                groups=passage.groups,
                times=result.times,
                attempts=effect.attempts,
                latency_s=effect.latency_s,
                exact=self._served.exact(effect.plan),
            )
        )

    def _over(self, request: str) -> None:
        """A request has ended: nothing of it is watched or collected any more."""
        for watched in [key for key in self._watched if key[0] == request]:
            self._unwatch(*watched)
        self._carrier.cancel(self._me, request, EVERY_ATTEMPT)
        self._assembly.cancel(self._me, request, EVERY_ATTEMPT, self._clock())

    def _unwatch(self, request: str, attempt: int) -> None:
        """Nothing of this attempt is outstanding any more."""
        for device in self._watched.pop((request, attempt), ()):
            self._transport.expecting(device, -1)

    def _target(self, attempt: Attempt) -> Target:
        """What makes the answer of an attempt."""
        ways = self._pipeline.routes.ways(attempt.plan, self._card(attempt.plan), attempt.lane, attempt.groups)
        return ways.target(ways.end, self._me)

    def _card(self, plan: Plan) -> Card:
        """The card of a plan's model."""
        card = self._served.card(plan.digest)
        if card is None:
            raise StaleEpochError(f"the card of {plan.model} is not here")
        return card


def check_inputs(card: Card, inputs: Mapping[int, Array]) -> None:
    """InputError unless these are exactly the model's inputs, in shape and dtype."""
    wanted = {tensor.index: tensor for tensor in card.inputs}
    for index in sorted(set(wanted) ^ set(inputs)):
        told = "is missing" if index in wanted else "is none of the model's"
        raise InputError(f"input tensor {index} {told}")
    for index, tensor in wanted.items():
        array = inputs[index]
        if (array.shape, array.dtype.name) != (tensor.shape, tensor.dtype):
            raise InputError(
                f"input {tensor.name} is {array.dtype.name} {list(array.shape)}, "
                f"the model wants {tensor.dtype} {list(tensor.shape)}"
            )
