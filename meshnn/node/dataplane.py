"""The data plane of a node: requests of this device out, stages of everybody's requests through, answers back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import MeshError, PeerError
from meshnn.net.transport import Transport
from meshnn.node.carrier import Carrier, Ground
from meshnn.node.doubts import LedgerLimits
from meshnn.node.inputs import Arrival
from meshnn.node.ledger import Ledger
from meshnn.node.origin import Origin, Outcome
from meshnn.node.pipeline import Pipeline, Runner
from meshnn.node.served import Served
from meshnn.node.slices import Array, Parcel, passage_of, pieces_of
from meshnn.node.ways import is_sender
from meshnn.plan.messages import Cancel, Failed, Receipt, Slice
from meshnn.plan.plan import Epoch, Recipe
from meshnn.telemetry import logger

__all__ = ["DataPlane", "Limits", "Outcome", "Stats"]

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a data plane. `runs` is how many shards wait in the engine at once (one runs, one is ready)."""

    assembly_bytes: int = 256_000_000
    output_bytes: int = 256_000_000
    payload_bytes: int = 256_000_000
    runs: int = 2
    ledger: LedgerLimits = field(default_factory=LedgerLimits)


@dataclass(frozen=True, slots=True)
class Stats:
    """What a node tells of its load: requests waiting, requests open, input sets inside, mean run per shard (ms)."""

    queued: int
    open: int
    inside: int
    stage_ms: Mapping[Recipe, float]

    @property
    def slowest_ms(self) -> float:
        """The longest of the stages' mean runs; 0 without any."""
        return max(self.stage_ms.values(), default=0.0)


class DataPlane:
    """What a node's driver speaks to; `run` keeps time, the rest are events and one verb, `ask`."""

    def __init__(
        self,
        me: DeviceId,
        boot: BootId,
        transport: Transport,
        engine: Runner,
        served: Served,
        clock: Callable[[], float],
        limits: Limits | None = None,
    ) -> None:
        """`clock` is monotonic, in seconds, and runs as the event loop's does."""
        bounds = limits or Limits()
        self._me, self._boot = me, boot
        self._transport = transport
        self._clock = clock
        self._limits = bounds
        self._carrier = Carrier(transport, clock)
        ground = Ground(me, boot, transport, served, clock, self._carrier)
        self._pipeline = Pipeline(ground, engine, assembly_bytes=bounds.assembly_bytes, runs=bounds.runs)
        ledger = Ledger(me, boot, served, bounds.ledger)
        self._origin = Origin(ground, self._pipeline, ledger, self._rearm, assembly_bytes=bounds.output_bytes)
        self._pipeline.home = self._origin
        self._lives: dict[DeviceId, BootId] = {}
        self._armed = float("inf")
        self._earlier = asyncio.Event()

    async def run(self) -> None:
        """Keep the deadlines until cancelled; then end every task of the data plane."""
        try:
            while True:
                self._armed = self._deadline()
                self._earlier.clear()
                wait_s = self._armed - self._clock()
                if wait_s > 0:
                    await _until(self._earlier, None if self._armed == float("inf") else wait_s)
                self._on_time()
        finally:
            await self._origin.stop()
            await self._pipeline.stop()

    async def ask(self, model: str, inputs: Mapping[int, Array], deadline_s: float, digest: str = "") -> Outcome:
        """Have the mesh run a model: `inputs` by tensor index, each with the card's shape and dtype.

        `digest` is the model's whose card the inputs follow: where the name means another file by the time a plan is
        chosen, ModelConflictError says so. Raises InputError, BusyError (the queue is full, at once), DeadlineError,
        ModelError.
        """
        return await self._origin.ask(model, inputs, deadline_s, digest)

    # What the driver tells.

    def admit(self, device: DeviceId, header: msgspec.Struct, payload_bytes: int) -> bool:
        """Whether a payload may be read; the origin of a refused slice hears why, and its sender stops watching."""
        if not isinstance(header, Slice):
            return False
        passage = passage_of(header)
        source, address = (header.source_stage, header.source_part), (header.stage, header.part)
        if payload_bytes > self._limits.payload_bytes:
            _log.warning("payload refused", device=device, size_bytes=payload_bytes)
            admitted = False
        elif _for_origin(header):
            admitted = self._origin.admits(passage, source, address)
        else:
            admitted = self._pipeline.admits(passage, source, address)
        if not admitted:
            self._transport.send(device, _receipt(header))
        return admitted

    def on_tensors(self, device: DeviceId, boot: BootId, header: msgspec.Struct, payload: memoryview) -> None:
        """A slice is here whole, with its memory."""
        if not isinstance(header, Slice):
            return
        self._transport.send(device, _receipt(header))
        passage = passage_of(header)
        source = (header.source_stage, header.source_part)
        try:
            if not self._from_its_sender(header, device, boot):
                raise PeerError(f"a slice from shard {source} came from another device or life")
            pieces = pieces_of(header, payload)
        except PeerError as error:
            _log.warning("slice refused", device=device, request=header.request, reason=str(error))
            return
        except MeshError as error:
            self._pipeline.report(passage, header.stage, error)
            return
        if _for_origin(header):
            address = (header.stage, header.part)
            self._origin.on_arrival(passage, Arrival(source, address, pieces, payload.nbytes, header.times))
        else:
            parcel = Parcel(header.stage, header.part, pieces)
            deadline = self._clock() + header.left_ms / 1000
            self._pipeline.on_parcel(passage, source, parcel, deadline, payload.nbytes, header.times)
        self._rearm()

    def on_message(self, device: DeviceId, boot: BootId, message: msgspec.Struct) -> bool:
        """A control message; False where it is not the data plane's."""
        del boot
        match message:
            case Receipt():
                self._carrier.on_receipt(device, message)
            case Failed():
                self._origin.on_failed(device, message)
            case Cancel(request, attempt):
                self._pipeline.cancel(device, request, attempt)
            case _:
                return False
        return True

    def on_evidence(self, device: DeviceId, evidence: str) -> None:
        """The link to a device ended or went silent: what goes through it starts again, at its origins."""
        self._lives.pop(device, None)
        lost = self._carrier.on_evidence(device)
        self._origin.perform(self._origin.ledger.on_evidence(device, self._clock()))
        for load in lost:
            if load.passage.origin not in (self._me, device):
                error = PeerError(f"the link to {device} ended: {evidence}")
                self._pipeline.report(load.passage, load.source[0], error, culprit=device)

    def on_linked(self, device: DeviceId, boot: BootId) -> None:
        """A device is linked in this life; what an earlier life of it began is dropped."""
        if self._lives.get(device, boot) != boot:
            self._pipeline.assembly.drop_origin(device)
        self._lives[device] = boot
        self._origin.perform(self._origin.ledger.on_linked(device, boot, self._clock()))

    def on_plans_changed(self) -> None:
        """The served plans are other ones: waiting requests may go, what is retired ends."""
        self._pipeline.on_plans_changed()
        self._origin.perform(self._origin.ledger.on_plans(self._clock()))

    # What the driver asks.

    def in_flight(self, epoch: Epoch) -> int:
        """How much of a plan is under way here: attempts of this device's requests, and shards of anybody's."""
        return self._origin.ledger.in_flight(epoch) + self._pipeline.assembly.in_flight(epoch)

    def stats(self) -> Stats:
        """The load of this data plane now."""
        ledger = self._origin.ledger
        return Stats(ledger.queued, ledger.open, len(self._pipeline.assembly.keys), self._pipeline.stage_ms)

    # Inside.

    def _from_its_sender(self, header: Slice, device: DeviceId, boot: BootId) -> bool:
        """Whether a slice comes from the device, in the life, that the plan (or its header) says."""
        passage = passage_of(header)
        source = (header.source_stage, header.source_part)
        if _for_origin(header):
            # A slice for a request that is over is dropped further on, whoever sent it.
            return self._origin.expected(passage) is None or self._origin.is_sender(passage, source, device, boot)
        return is_sender(self._pipeline.ways(passage), passage, source, device, boot)

    def _deadline(self) -> float:
        """When `_on_time` is next due."""
        return min(self._origin.deadline, self._pipeline.assembly.deadline, self._carrier.deadline)

    def _on_time(self) -> None:
        """Deadlines may have come."""
        now = self._clock()
        self._pipeline.assembly.expire(now)
        self._carrier.expire(now)
        self._origin.on_time(now)

    def _rearm(self) -> None:
        """Wake `run` where a deadline is earlier than the one it waits for."""
        if self._deadline() < self._armed:
            self._earlier.set()


async def _until(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


def _for_origin(header: Slice) -> bool:
    """Whether a slice is of an answer: past the last stage of its attempt."""
    return header.stage == len(header.groups)


def _receipt(header: Slice) -> Receipt:
    """The acknowledgement of a slice."""
    source = (header.source_stage, header.source_part)
    return Receipt(header.request, header.attempt, header.stage, header.part, *source)
