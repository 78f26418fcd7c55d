"""Carries parcels to neighbours and watches over them until the receiver has them whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import DeadlineError, PeerError
from meshnn.net.transport import Transport
from meshnn.node.served import Served
from meshnn.node.slices import Parcel, Passage, buffers_of, header_of
from meshnn.plan.messages import Receipt, StageTime

# Device, request, attempt, source stage and part, stage and part: what a receipt speaks of.
_Ticket = tuple[DeviceId, str, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Load:
    """A parcel on its way: whose, from which shard, to which device, and until when it is of use."""

    passage: Passage
    parcel: Parcel
    source: tuple[int, int]
    device: DeviceId
    deadline: float
    times: tuple[StageTime, ...] = ()


class Carrier:
    """Sends parcels; a link with parcels that are not acknowledged is watched by the transport's pings."""

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        """Nothing is on its way yet."""
        self._transport = transport
        self._clock = clock
        self._outstanding: dict[_Ticket, Load] = {}

    def __len__(self) -> int:
        """How many parcels wait for their receipt."""
        return len(self._outstanding)

    @property
    def deadline(self) -> float:
        """When the next parcel without a receipt is of no use any more; infinite without one."""
        return min((load.deadline for load in self._outstanding.values()), default=float("inf"))

    async def carry(self, load: Load) -> None:
        """Send a parcel; returns when its last byte is on its way. PeerError with a broken link, DeadlineError."""
        left_s = load.deadline - self._clock()
        if left_s <= 0:
            raise DeadlineError("the deadline passed before the tensors were sent")
        ticket = _ticket(load)
        header = header_of(load.passage, load.parcel, load.source, int(left_s * 1000), load.times)
        self._outstanding[ticket] = load
        self._transport.expecting(load.device, 1)
        try:
            async with asyncio.timeout(left_s):
                await self._transport.send_tensors(load.device, header, buffers_of(load.parcel))
        except TimeoutError:
            self._settle(ticket)
            raise DeadlineError("the deadline passed while the tensors were sent") from None
        except PeerError:
            self._settle(ticket)
            raise

    def on_receipt(self, device: DeviceId, receipt: Receipt) -> None:
        """The receiver has a parcel whole."""
        source = (receipt.source_stage, receipt.source_part)
        self._settle((device, receipt.request, receipt.attempt, *source, receipt.stage, receipt.part))

    def on_evidence(self, device: DeviceId) -> tuple[Load, ...]:
        """A device is gone: returns the parcels for it that nobody acknowledged."""
        lost = tuple(load for load in self._outstanding.values() if load.device == device)
        for load in lost:
            self._settle(_ticket(load))
        return lost

    def cancel(self, origin: DeviceId, request: str, attempt: int) -> None:
        """Attempts of this request up to this one are over: nobody waits for their receipts."""
        for ticket, load in list(self._outstanding.items()):
            mine = (load.passage.origin, load.passage.request) == (origin, request)
            if mine and load.passage.attempt <= attempt:
                self._settle(ticket)

    def expire(self, now: float) -> None:
        """Stop watching over parcels whose deadline passed."""
        for ticket, load in list(self._outstanding.items()):
            if load.deadline <= now:
                self._settle(ticket)

    def _settle(self, ticket: _Ticket) -> None:
        """A parcel is watched no longer; known ones only, once."""
        if self._outstanding.pop(ticket, None) is not None:
            self._transport.expecting(ticket[0], -1)


@dataclass(frozen=True, slots=True)
class Ground:
    """What both sides of a data plane stand on: who they are, how they send, what is served, what time it is."""

    me: DeviceId
    boot: BootId
    transport: Transport
    served: Served
    clock: Callable[[], float]
    carrier: Carrier


def _ticket(load: Load) -> _Ticket:
    """What identifies a parcel among those outstanding."""
    passage = load.passage
    return (load.device, passage.request, passage.attempt, *load.source, load.parcel.stage, load.parcel.part)
