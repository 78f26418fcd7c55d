"""The data plane of a simulated device: the real ledger, assembly, routes and slices; time in place of the runtime."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import BusyError, MeshError, PeerError, StaleEpochError
from meshnn.node.assembly import Assembly, Complete, Key
from meshnn.node.core import Core
from meshnn.node.inputs import Arrival
from meshnn.node.ledger import Ledger
from meshnn.node.request import Answer, CancelAttempt, Dispatch, Fail
from meshnn.node.request import Effect as LedgerEffect
from meshnn.node.serving import Serving
from meshnn.node.slices import Array, Parcel, Passage, dealt, parcel_of
from meshnn.node.ways import RouteBook, Ways
from meshnn.plan import boxes
from meshnn.plan.messages import Cancel, Failed, Receipt, StageTime
from meshnn.plan.routes import ORIGIN
from meshnn.plan.shipments import At
from tools.simulate.parcels import Carried, Made, Site, Times
from tools.simulate.values import answer_of, value_of

if TYPE_CHECKING:
    from tools.simulate.host import Host

ASSEMBLY_BYTES = 4_000_000
INPUT_BYTES = 1000
STAGE_S = 0.004
RUNS = 2
EVERY_ATTEMPT = 2**31


_Ticket = tuple[DeviceId, str, int, tuple[int, int], int, int]


class Plane:
    """Events in; parcels, answers and reports out. Its order of events is that of node.origin and node.pipeline."""

    def __init__(self, host: Host, core: Core) -> None:
        """A data plane without requests."""
        self.serving = Serving(core, host.asked)
        self.ledger = Ledger(host.id, host.boot_id, self.serving)
        self.assembly = Assembly(ASSEMBLY_BYTES)
        self.results = Assembly(ASSEMBLY_BYTES)
        self.slowness = 1.0
        self._host = host
        self._routes = RouteBook()
        self._asked: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._watched: dict[tuple[str, int], tuple[DeviceId, ...]] = {}
        self._outstanding: dict[_Ticket, Carried] = {}
        self._waiting: deque[tuple[Site, Complete]] = deque()
        self._runs = 0
        self._lives: dict[DeviceId, BootId] = {}
        self._effects: deque[LedgerEffect] = deque()
        self._performing = False
        self._count = 0
        self._armed = float("inf")
        self._over = False

    # -- what is told --

    def ask(self, model: str, value: int, deadline_s: float) -> str:
        """Take in a request whose input is `value` everywhere; BusyError where the queue is full."""
        self._count += 1
        request = f"{self._host.id}.{self._host.boot_id}.{self._count}"
        self._asked[request] = value
        now = self._host.world.now
        try:
            self._do_all(self.ledger.accept(request, model, INPUT_BYTES, now + deadline_s, now))
        except BusyError:
            del self._asked[request]
            raise
        return request

    def wants(self, message: object) -> bool:
        """Whether a message is the data plane's."""
        return isinstance(message, Carried | Receipt | Failed | Cancel)

    def hear(self, source: DeviceId, message: object) -> None:
        """Something for the data plane came over a link."""
        if self._over:
            return
        match message:
            case Carried():
                self._on_carried(source, message)
            case Receipt(request, attempt, stage, part, source_stage, source_part):
                self._settle((source, request, attempt, (source_stage, source_part), stage, part))
            case Failed():
                self._on_failed(source, message)
            case Cancel(request, attempt):
                self.assembly.cancel(source, request, attempt, self._now)
                self._forget_carried(source, request, attempt)
        self._arm()

    def on_linked(self, device: DeviceId, boot: BootId) -> None:
        """A device is linked in this life."""
        if self._lives.get(device, boot) != boot:
            self.assembly.drop_origin(device)
        self._lives[device] = boot
        self._do_all(self.ledger.on_linked(device, boot, self._now))

    def on_evidence(self, device: DeviceId) -> None:
        """The link to a device ended."""
        self._lives.pop(device, None)
        lost = [(ticket, carried) for ticket, carried in self._outstanding.items() if ticket[0] == device]
        for ticket, _ in lost:
            self._settle(ticket)
        self._do_all(self.ledger.on_evidence(device, self._now))
        for _, carried in lost:
            if carried.passage.origin not in (self._host.id, device):
                self._report(carried.passage, carried.source[0], PeerError("the link ended"), culprit=device)

    def on_plans(self) -> None:
        """The served plans changed."""
        for key in self.assembly.collecting:
            if self.serving.plan(key.passage.model, key.passage.epoch) is None:
                self.assembly.drop(key)
                self._report(key.passage, key.stage, StaleEpochError("retired here"))
        self._do_all(self.ledger.on_plans(self._now))

    def on_time(self) -> None:
        """Deadlines may have come."""
        now = self._now
        self._armed = float("inf")
        self.assembly.expire(now)
        self.results.expire(now)
        for ticket, carried in list(self._outstanding.items()):
            if carried.left_s <= now:
                self._settle(ticket)
        if self.ledger.deadline <= now:
            self._do_all(self.ledger.on_deadline(now))
        self._arm()

    @property
    def held(self) -> int:
        """How much is kept for requests that are not over: none of it stays when they are."""
        return len(self._asked) + len(self._watched) + len(self._outputs) + len(self._waiting) + self._runs

    def end(self) -> None:
        """The process died."""
        self._over = True

    # -- the origin --

    @property
    def _now(self) -> float:
        return self._host.world.now

    def _do_all(self, effects: Sequence[LedgerEffect]) -> None:
        """Do what the ledger said, in its order, also where doing it brings new events."""
        self._effects.extend(effects)
        if self._performing:
            return
        self._performing = True
        while self._effects:
            self._do(self._effects.popleft())
        self._performing = False
        self._arm()

    def _do(self, effect: LedgerEffect) -> None:
        checks = self._host.watcher
        match effect:
            case Dispatch():
                self._dispatch(effect)
            case CancelAttempt(request, attempt, devices):
                self._unwatch(request, attempt)
                self.assembly.cancel(self._host.id, request, attempt, self._now)
                self._forget_carried(self._host.id, request, attempt)
                for device in devices:
                    self._send(device, Cancel(request, attempt))
            case Answer(request):
                self._finish(request)
                checks.on_answer(self._host, effect, self._outputs.pop(request))
            case Fail(request):
                self._finish(request)
                checks.on_fail(self._host, effect)

    def _dispatch(self, effect: Dispatch) -> None:
        attempt = self.ledger.attempt(effect.request, effect.attempt)
        if attempt is None or not attempt.live:
            return
        others = tuple(device for device in effect.devices if device != self._host.id)
        self._watched[effect.request, effect.attempt] = others
        for device in others:
            self._host.network.expecting(self._host.id, device, 1)
        lost = [device for device in others if not self._host.network.connected(self._host.id, device)]
        for device in lost:
            self._do_all(self.ledger.on_evidence(device, self._now))
        if lost:
            return
        plan = effect.plan
        card = self.serving.card(plan.digest)
        assert card is not None, "a plan was chosen whose card is not here"
        ways = self._routes.ways(plan, card, effect.lane, effect.groups)
        identity = (self._host.id, self._host.boot_id)
        passage = Passage(effect.request, effect.attempt, plan.model, plan.epoch, *identity, effect.lane, effect.groups)
        value = self._asked[effect.request]
        inputs = {tensor.index: np.full(tensor.shape, value, tensor.dtype) for tensor in card.inputs}
        self._hand_all(ways, passage, (ORIGIN, 0), (inputs, {}), effect.deadline)

    def _finish(self, request: str) -> None:
        """A request has ended."""
        for watched in [key for key in self._watched if key[0] == request]:
            self._unwatch(*watched)
        self._forget_carried(self._host.id, request, EVERY_ATTEMPT)
        self.results.cancel(self._host.id, request, EVERY_ATTEMPT, self._now)
        self._asked.pop(request, None)

    def _unwatch(self, request: str, attempt: int) -> None:
        for device in self._watched.pop((request, attempt), ()):
            self._host.network.expecting(self._host.id, device, -1)

    def _on_failed(self, reporter: DeviceId, message: Failed) -> None:
        culprit = DeviceId(message.culprit)
        if reporter == self._host.id and culprit and not self._host.network.connected(self._host.id, culprit):
            self._do_all(self.ledger.on_evidence(culprit, self._now))
        told = (message.code, message.message, message.culprit)
        self._host.watcher.on_trouble(self._host, message)
        self._do_all(self.ledger.on_failed(message.request, message.attempt, reporter, *told, self._now))

    def _on_result(self, passage: Passage, arrival: Arrival) -> None:
        """A slice of an answer."""
        attempt = self.ledger.attempt(passage.request, passage.attempt)
        mine = (passage.origin, passage.origin_boot) == (self._host.id, self._host.boot_id)
        if attempt is None or not mine or attempt.plan.epoch != passage.epoch:
            self._host.watcher.on_late(self._host, passage)
            return
        card = self.serving.card(attempt.plan.digest)
        if card is None:
            return
        ways = self._routes.ways(attempt.plan, card, attempt.lane, attempt.groups)
        key = Key(passage, *ways.end)
        deadline = self.ledger.deadline_of(passage.request)
        complete = self.results.add(key, ways.target(ways.end, self._host.id), arrival, deadline, self._now)
        if complete is not None:
            self.results.finish(key)
            self._outputs[passage.request] = value_of(complete.tensors)
            told = (passage.request, passage.attempt, passage.epoch)
            self._do_all(self.ledger.on_output(*told, self._now, complete.times))

    # -- the stages --

    def _on_carried(self, source: DeviceId, carried: Carried) -> None:
        passage, parcel = carried.passage, carried.parcel
        at = (parcel.stage, parcel.part, *carried.source)
        self._send(source, Receipt(passage.request, passage.attempt, *at))
        size_bytes = sum(piece.array.nbytes for piece in parcel.pieces)
        self._on_parcel(passage, carried.source, parcel, size_bytes, carried.left_s, carried.times)

    def _on_parcel(
        self, passage: Passage, source: At, parcel: Parcel, received_bytes: int, deadline: float, times: Times
    ) -> None:
        """Everybody on this device who reads of a parcel gets a part."""
        address = (parcel.stage, parcel.part)
        if parcel.stage == len(passage.groups):
            self._on_result(passage, Arrival(source, address, parcel.pieces, received_bytes, times))
            return
        try:
            ways = self._ways(passage)
        except MeshError as error:
            if not self.assembly.superseded(Key(passage, *address)):
                self._report(passage, address[0], error)
            return
        shipment = ways.shipment(source, address, passage.origin)
        assert shipment is not None, "a parcel that the plan does not know"
        for reader, pieces in dealt(shipment, parcel.pieces):
            arrival = Arrival(source, address, pieces, received_bytes if reader == address else 0, times)
            if reader == ways.end:
                self._on_result(passage, arrival)
            else:
                self._on_slice(passage, reader, arrival, deadline)

    def _on_slice(self, passage: Passage, at: tuple[int, int], arrival: Arrival, deadline: float) -> None:
        """A slice for a shard of this device."""
        key = Key(passage, *at)
        if self.assembly.superseded(key):
            return
        try:
            site = self._site(passage, *at)
            if passage.attempt > 1:
                self.assembly.cancel(passage.origin, passage.request, passage.attempt - 1, self._now)
                self._forget_carried(passage.origin, passage.request, passage.attempt - 1)
            complete = self.assembly.add(key, site.target, arrival, deadline, self._now)
        except MeshError as error:
            self._report(passage, at[0], error)
            return
        if complete is not None:
            self._waiting.append((site, complete))
            self._run_next()

    def _ways(self, passage: Passage) -> Ways:
        """The way of an attempt; StaleEpochError for a plan that this device does not serve."""
        plan = self.serving.plan(passage.model, passage.epoch)
        card = self.serving.card(plan.digest) if plan else None
        if plan is None or card is None:
            raise StaleEpochError(f"plan {passage.epoch} is not served here")
        return self._routes.ways(plan, card, passage.lane, passage.groups)

    def _site(self, passage: Passage, stage: int, part: int) -> Site:
        """Where a slice belongs; StaleEpochError for what this device does not serve."""
        ways = self._ways(passage)
        shard = ways.groups[stage].shards[part]
        assert shard.device == self._host.id, "a slice for another device's shard"
        if shard.boot != self._host.boot_id:
            raise StaleEpochError("an earlier life of this device is meant")
        recipe = ways.recipe(stage, part)
        handle = self.serving.handle(recipe)
        if handle is None or passage.epoch.absent:
            self.serving.on_asked(passage.model, passage.epoch)
        if handle is None:
            raise StaleEpochError("the shard is not loaded here")
        return Site(ways, recipe, ways.target((stage, part), passage.origin))

    def _run_next(self) -> None:
        """Run what is whole, so many at once; what was superseded meanwhile is dropped."""
        while self._waiting and self._runs < RUNS:
            site, complete = self._waiting.popleft()
            if self._now >= complete.deadline or not self.assembly.begin(complete.key):
                self.assembly.finish(complete.key)
                continue
            handle = self.serving.handle(site.recipe)
            passage = complete.key.passage
            if handle is None or self.serving.plan(passage.model, passage.epoch) is None:
                self._report(complete.key.passage, complete.key.stage, StaleEpochError("retired here"))
                self.assembly.finish(complete.key)
                continue
            self._runs += 1
            self._host.watcher.on_run(self._host, complete.key.passage, handle)
            takes_s = STAGE_S * (site.recipe.last - site.recipe.first + 1) * self.slowness
            self._host.work_soon(takes_s, partial(self._done, site, complete, takes_s * 1000))

    def _done(self, site: Site, complete: Complete, compute_ms: float) -> None:
        """A shard has run: hand its outputs on."""
        key = complete.key
        self._runs -= 1
        if not self.assembly.superseded(key):
            made = run(site, key, complete.tensors)
            time = StageTime(key.stage, key.part, self._host.id, compute_ms, complete.received_bytes)
            times = (*complete.times, time)
            self._hand_all(site.ways, key.passage, (key.stage, key.part), made, complete.deadline, times)
        self.assembly.finish(key)
        self._run_next()
        self._arm()

    # -- both --

    def _hand_all(
        self, ways: Ways, passage: Passage, source: At, made: Made, deadline: float, times: Times = ()
    ) -> None:
        """What a shard (or the origin) made to whoever needs it: over links, or within this device."""
        for shipment in ways.traffic.sent(source, passage.origin):
            parcel = parcel_of(shipment, *made)
            device = ways.traffic.device(shipment.address, passage.origin)
            if device == self._host.id:
                self._on_parcel(passage, source, parcel, 0, deadline, times)
            else:
                self._hand(passage, source, parcel, device, deadline, times)

    def _hand(
        self, passage: Passage, source: At, parcel: Parcel, device: DeviceId, deadline: float, times: Times
    ) -> None:
        """A parcel over a link."""
        carried = Carried(passage, source, parcel, deadline, times)
        ticket = (device, passage.request, passage.attempt, source, parcel.stage, parcel.part)
        size_bytes = 300 + sum(piece.array.nbytes for piece in parcel.pieces)
        if not self._host.network.send(self._host.id, device, carried, size_bytes):
            self._report(passage, source[0], PeerError(f"no link to {device}"), culprit=device)
            return
        self._outstanding[ticket] = carried
        self._host.network.expecting(self._host.id, device, 1)

    def _send(self, device: DeviceId, message: Receipt | Failed | Cancel) -> None:
        if device != self._host.id:
            self._host.network.send(self._host.id, device, message, 100)

    def _settle(self, ticket: _Ticket) -> None:
        if self._outstanding.pop(ticket, None) is not None:
            self._host.network.expecting(self._host.id, ticket[0], -1)

    def _forget_carried(self, origin: DeviceId, request: str, attempt: int) -> None:
        for ticket, carried in list(self._outstanding.items()):
            passage = carried.passage
            if (passage.origin, passage.request) == (origin, request) and passage.attempt <= attempt:
                self._settle(ticket)

    def _report(self, passage: Passage, stage: int, error: MeshError, culprit: str = "") -> None:
        """Tell the origin that an attempt ends here."""
        newest = self.serving.newest(passage.model)
        failed = Failed(passage.request, passage.attempt, stage, error.code, str(error), culprit, newest)
        if passage.origin != self._host.id:
            self._send(passage.origin, failed)
        elif passage.origin_boot == self._host.boot_id:
            self._on_failed(self._host.id, failed)

    def _arm(self) -> None:
        deadline = min(self.ledger.deadline, self.assembly.deadline, self.results.deadline)
        if self._over or deadline >= self._armed:
            return
        self._armed = deadline

        def fire() -> None:
            if not self._over:
                self.on_time()

        self._host.work_soon(max(0.0, deadline - self._now), fire)


def run(site: Site, key: Key, tensors: Mapping[int, Array]) -> Made:
    """What a shard makes of its inputs: every operator turns one even value into another."""
    value = answer_of(value_of(tensors), site.recipe.digest, site.recipe.first, site.recipe.last)
    outputs: dict[int, Array] = {}
    bases: dict[int, boxes.Box] = {}
    model = site.ways.model
    for tensor in model.fragment_outputs(site.recipe.first, site.recipe.last):
        box = boxes.have(model, site.ways.stages[key.stage], site.ways.groups[key.stage], key.part, tensor)
        if box is not None:
            shape = tuple(stop - start for start, stop in box)
            outputs[tensor] = np.full(shape, value, model.tensor(tensor).dtype)
            bases[tensor] = box
    return outputs, bases
