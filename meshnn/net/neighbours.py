"""The neighbours of a node over TCP, TLS and UDP: one control link each, a tensors link where one is needed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from ipaddress import ip_address

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.net.datagrams import Datagrams
from meshnn.net.dialler import DialError, Dialler
from meshnn.net.doorway import Doorway
from meshnn.net.hello import Channel, Hello, Refusal, cloned, is_elder
from meshnn.net.interfaces import Vicinity, addresses_of
from meshnn.net.link import Link
from meshnn.net.outbox import TensorOutbox
from meshnn.net.refusals import Refusals
from meshnn.net.security import Identity, mesh_tag
from meshnn.net.sockets import Listeners, listen
from meshnn.net.stream import FramedStream
from meshnn.net.tasks import TaskSet
from meshnn.net.transport import Address, Evidence, Handler, Limits
from meshnn.wire.codec import Codec
from meshnn.wire.frame import META_LIMIT_BYTES

CHECK_EVERY_S = 1.0
CLONES_LIMIT = 64


class Neighbours:
    """A `Transport` over real sockets.

    `interface` is an address or an interface's name to keep to (None: all); `named` are hosts a person named, which
    may lie outside the networks this device is attached to.
    """

    def __init__(
        self,
        identity: Identity,
        hello: Hello,
        handler: Handler,
        limits: Limits,
        control_codec: Codec,
        interface: str | None = None,
        *,
        named: Collection[str] = (),
    ) -> None:
        loop = asyncio.get_running_loop()
        self.refusals = Refusals(loop.time)
        self._loop = loop
        self._hello = msgspec.structs.replace(hello, device_id=identity.device_id)
        self._handler = handler
        self._limits = limits
        self._codec = control_codec
        self._interface = interface
        self._tasks = TaskSet("net")
        self._vicinity = Vicinity(loop.time)
        self._doorway = Doorway(identity.server, self, limits, self._vicinity, self.refusals, self._tasks)
        source = interface if _is_address(interface) else None
        self._dialler = Dialler(identity.client, self, limits, self._vicinity, named, source)
        self._born = loop.time()
        self._listeners: Listeners | None = None
        self._datagrams: Datagrams | None = None
        self._links: dict[tuple[DeviceId, Channel], Link] = {}
        self._outboxes: dict[Link, TensorOutbox] = {}
        self._opening: dict[DeviceId, asyncio.Lock] = {}  # one dial for tensors at a time
        self._arrivals: dict[DeviceId, asyncio.Event] = {}  # who waits for a tensors link
        self._calling: set[tuple[DeviceId, Channel]] = set()
        self._clones: dict[DeviceId, BootId] = {}  # lives that are not let in: an older one has the same key
        self._dialling: set[Address] = set()
        self._dial_slots = asyncio.Semaphore(limits.dials)
        self._expected: Counter[DeviceId] = Counter()
        self._stopping = False

    # -- life

    @property
    def port(self) -> int:
        """Where this node listens, for streams and datagrams alike; known after `start`."""
        return self._hello.port

    @property
    def hello(self) -> Hello:
        """What this node says of itself to peers."""
        return msgspec.structs.replace(self._hello, up_ms=int((self._loop.time() - self._born) * 1000))

    async def start(self) -> None:
        """Binds and serves. Raises NodeError where the port or the interface cannot be had."""
        hosts = addresses_of(self._interface) if self._interface is not None else None
        listeners = listen(hosts, self._hello.port)
        self._hello = msgspec.structs.replace(self._hello, port=listeners.port)
        tag = mesh_tag(self._hello.mesh)
        self._datagrams = Datagrams(self._hello, tag, self._codec, self._vicinity, self.refusals, self._datagram_came)
        self._listeners = listeners
        self._datagrams.open(listeners.datagrams)
        self._doorway.open(listeners.streams)
        self._tasks.spawn(self._watch_links(), "watch")

    async def stop(self) -> None:
        """Says goodbye to every neighbour and ends every task, within some 2 s; no handler is called afterwards."""
        self._stopping = True
        self._doorway.close()
        links = list(self._links.values())
        for link in links:
            link.say_goodbye()
        await self._tasks.stop()
        try:
            async with asyncio.timeout(2 * self._limits.close_s):
                for link in links:
                    await link.stream.ended()
        except TimeoutError:
            for link in links:
                link.stream.abort()
        if self._datagrams is not None:
            self._datagrams.close()
        if self._listeners is not None:
            self._listeners.close()
        await asyncio.sleep(0)  # transports just ended close their sockets in the loop's next turn

    # -- what the node asks

    def dial(self, host: str, port: int) -> None:
        """Tries to link with whoever listens there; what comes of it arrives as handler events."""
        address = (host, port)
        if self._stopping or address in self._dialling or self._linked_at(address):
            return
        if len(self._dialling) >= self._limits.dials + self._limits.dials_waiting:
            self.refusals.note("dials", host, "too many addresses wait to be dialled")
            return
        self._dialling.add(address)
        self._tasks.spawn(self._dial(address), f"dial {host}", lambda: self._dialling.discard(address))

    def connected(self, device_id: DeviceId) -> bool:
        """Whether the control link to a device is up."""
        return self._live(device_id, "control") is not None

    def neighbours(self) -> tuple[DeviceId, ...]:
        """The devices linked now, sorted."""
        return tuple(sorted(device for device, channel in self._links if channel == "control"))

    def on_network(self, hosts: Sequence[str]) -> None:
        """This device's addresses are other ones now; links from an address that is gone end as silent."""
        for link in list(self._links.values()):
            if link.stream.own_host not in {"", *hosts} and not ip_address(link.stream.own_host).is_loopback:
                link.stream.abort(Evidence.SILENT)

    def round_trip_s(self, device_id: DeviceId) -> float | None:
        """The smoothed round trip to a neighbour, where work for it has had it pinged."""
        link = self._live(device_id, "control")
        return link.round_trip_s if link is not None else None

    def send(self, device_id: DeviceId, message: msgspec.Struct) -> bool:
        """Queues a control message; False without a link or with a full outbox. Raises PeerError over 512 KiB."""
        link = self._live(device_id, "control")
        return link is not None and link.send(self._codec.encode(message))

    def send_datagram(
        self, device_id: DeviceId | None, boot_id: BootId | None, host: str, port: int, message: msgspec.Struct
    ) -> None:
        """Sends one datagram, best effort, for this device and life only. Raises PeerError over 1200 bytes."""
        if self._datagrams is None or self._stopping:
            return
        # Of a device with several addresses the one at the other end of a link is known to be in reach.
        link = self._live(device_id, "control") if device_id is not None else None
        self._datagrams.send(device_id, boot_id, (host, port) if link is None else link.address, message)

    async def send_tensors(
        self, device_id: DeviceId, meta_message: msgspec.Struct, buffers: Sequence[memoryview]
    ) -> None:
        """Sends one frame of raw bytes with its header; returns when its last byte is on its way. Raises PeerError."""
        meta = self._codec.encode(meta_message)
        size_bytes = sum(buffer.nbytes for buffer in buffers)
        if len(meta) > META_LIMIT_BYTES or size_bytes > self._limits.payload_bytes:
            raise PeerError(f"tensors of {size_bytes} bytes with a header of {len(meta)} exceed what a peer takes")
        outbox = await self._tensor_outbox(device_id)
        await outbox.send(meta, buffers)

    def expecting(self, device_id: DeviceId, delta: int) -> None:
        """Counts work outstanding at a device up or down; while there is some, its link is pinged every 250 ms.

        The count outlives links: each +1 needs its -1, whatever became of the link.
        """
        self._expected[device_id] = max(0, self._expected[device_id] + delta)
        link = self._live(device_id, "control")
        if self._expected[device_id]:
            if link is not None:
                link.start_pulse()
            return
        del self._expected[device_id]
        if link is not None:
            link.stop_pulse()

    def excuse(self, device_id: DeviceId, for_s: float) -> None:
        """The device said that it cannot answer pings for so long."""
        if (link := self._live(device_id, "control")) is not None:
            link.excuse(for_s)

    # -- links come and go (a Greeter and a LinkOwner)

    def may_call(self, device_id: DeviceId, channel: Channel) -> bool:
        """Whether to say HELLO to a device just reached: only where no link is there or being made."""
        key = (device_id, channel)
        if key in self._calling or self._live(device_id, channel) is not None:
            return False
        self._calling.add(key)
        return True

    def call_ended(self, device_id: DeviceId, channel: Channel) -> None:
        """A HELLO of ours was answered, or never will be."""
        self._calling.discard((device_id, channel))

    def may_answer(self, theirs: Hello) -> Refusal | None:
        """Why not to link with a caller; of two devices that call each other at once the smaller id's call stands."""
        if self._stopping:
            return Refusal("stopping", "this device is leaving")
        key = (theirs.device_id, theirs.channel)
        elder = self._elder_than(theirs)
        if elder is not None:
            return cloned(elder)
        if key in self._calling and self._hello.device_id < theirs.device_id:
            return Refusal("duplicate", "this device is calling the caller already")
        if key not in self._links and len(self._links) >= self._limits.links:
            return Refusal("full", f"this device has {self._limits.links} links")
        return None

    def _elder_than(self, theirs: Hello) -> Address | None:
        """Where an older life of the caller's device is that is known to go on; None where there is none.

        A restarted device is younger than the life it replaces. So a caller that is older than the life linked now
        proves that both go on: the younger one is a clone, and is not let in again.
        """
        link = self._live(theirs.device_id, "control")
        if link is None or link.boot_id == theirs.boot_id:
            return None
        if self._clones.get(theirs.device_id) == theirs.boot_id:
            return link.address
        linked_ms = link.peer.up_ms + int((self._loop.time() - link.since) * 1000)
        if is_elder(theirs, msgspec.structs.replace(link.peer, up_ms=linked_ms)):
            self._clones[theirs.device_id] = link.boot_id
            if len(self._clones) > CLONES_LIMIT:
                del self._clones[next(iter(self._clones))]
        return None

    def cloned(self, address: Address) -> None:
        """Who called has this device's own key, and had it first."""
        if not self._stopping:
            self._handler.on_unreachable(address, "cloned")

    def linked(self, stream: FramedStream, theirs: Hello, dialled: bool) -> None:
        """Both ends said HELLO. A new link replaces the old: the device restarted, or knows its old link is dead."""
        host = stream.peer_host
        link = Link(stream, self, theirs, (host, theirs.port), self._limits, self._codec)
        if self._stopping:
            stream.close()
            return
        self._forget(self._links.get((theirs.device_id, theirs.channel)), Evidence.RESET)
        tensors = self._links.get((theirs.device_id, "tensors"))
        if tensors is not None and tensors.boot_id != theirs.boot_id:
            self._forget(tensors, Evidence.RESET)
        self._links[theirs.device_id, theirs.channel] = link
        if theirs.channel == "tensors":
            self._outboxes[link] = TensorOutbox(link, self._limits.tensor_queue, self._tasks)
            self._wake_senders(theirs.device_id)
            return
        if self._expected[theirs.device_id]:
            link.start_pulse()
        self._handler.on_linked(theirs.device_id, theirs.boot_id, theirs, link.address)

    def link_lost(self, link: Link, evidence: Evidence) -> None:
        """A stream ended. Control and tensors stand and fall together: the node must know that work was lost."""
        if self._links.get((link.device_id, link.channel)) is not link:
            return
        self._forget(link, evidence)
        control = self._links.get((link.device_id, "control"))
        if link.channel == "tensors" and control is not None and control.boot_id == link.boot_id:
            self._forget(control, evidence)

    def _forget(self, link: Link | None, evidence: Evidence) -> None:
        if link is None:
            return
        del self._links[link.device_id, link.channel]
        link.stop_pulse()
        link.stream.abort(evidence)
        if link.channel == "tensors":
            self._outboxes.pop(link).end()
            return
        self._opening.pop(link.device_id, None)
        self._wake_senders(link.device_id)
        tensors = self._links.get((link.device_id, "tensors"))
        if tensors is not None and tensors.boot_id == link.boot_id:
            self._forget(tensors, evidence)
        if not self._stopping:
            self._handler.on_unlinked(link.device_id, str(evidence))

    def _wake_senders(self, device_id: DeviceId) -> None:
        if (arrival := self._arrivals.pop(device_id, None)) is not None:
            arrival.set()

    def link_refused(self, link: Link, reason: str, line: str) -> None:
        """Something a peer sent was ignored, or broke its link."""
        self.refusals.note(reason, link.address[0], line)

    def message_received(self, link: Link, message: msgspec.Struct) -> None:
        """A control message came over the link that is a device's now."""
        if not self._stopping and self._links.get((link.device_id, "control")) is link:
            self._handler.on_message(link.device_id, link.boot_id, message)

    def tensors_offered(self, link: Link, meta: msgspec.Struct, payload_bytes: int) -> bool:
        """Whether the node has room."""
        return not self._stopping and self._handler.admit(link.device_id, meta, payload_bytes)

    def tensors_received(self, link: Link, meta: msgspec.Struct, payload: memoryview) -> None:
        """An admitted payload is whole."""
        if not self._stopping:
            self._handler.on_tensors(link.device_id, link.boot_id, meta, payload)

    # -- inside

    def _live(self, device_id: DeviceId, channel: Channel) -> Link | None:
        link = self._links.get((device_id, channel))
        return link if link is not None and link.stream.live else None

    def _linked_at(self, address: Address) -> bool:
        return any(
            link.address == address and link.channel == "control" and link.stream.live for link in self._links.values()
        )

    def _datagram_came(self, device: DeviceId, boot: BootId, message: msgspec.Struct, address: Address) -> None:
        if not self._stopping:
            self._handler.on_datagram(device, boot, message, address)

    async def _dial(self, address: Address) -> None:
        async with self._dial_slots:
            try:
                await self._dialler.call(address)
            except DialError as error:
                if error.evidence.startswith(("wrong_", "cloned")):
                    self.refusals.note(error.evidence, address[0], str(error))
                if error.elder is not None:
                    self.dial(*error.elder)
                if not self._stopping:
                    self._handler.on_unreachable(address, str(error.evidence))

    async def _tensor_outbox(self, device_id: DeviceId) -> TensorOutbox:
        control = self._live(device_id, "control")
        if control is None:
            raise PeerError(f"no link to {device_id}")
        if self._live(device_id, "tensors") is None:
            async with self._opening.setdefault(device_id, asyncio.Lock()):
                if self._live(device_id, "tensors") is None:
                    await self._open_tensors(control)
        link = self._live(device_id, "tensors")
        if link is None:
            raise PeerError(f"no tensors link to {device_id}")
        return self._outboxes[link]

    async def _open_tensors(self, control: Link) -> None:
        """Dials for tensors, or waits for the link that the peer is dialling at this moment."""
        arrival = self._arrivals.setdefault(control.device_id, asyncio.Event())
        try:
            if not await self._dialler.call(control.address, "tensors", control.device_id):
                async with asyncio.timeout(self._limits.handshake_s):
                    await arrival.wait()
        except TimeoutError as error:
            raise PeerError(f"no tensors link to {control.device_id} in time") from error
        finally:
            self._arrivals.pop(control.device_id, None)

    async def _watch_links(self) -> None:
        """Cuts links on which a frame has begun and nothing more has come for long."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            overdue = self._loop.time() - self._limits.stall_s
            for link in list(self._links.values()):
                if link.stream.midway and link.stream.heard_at < overdue:
                    link.stream.abort(Evidence.SILENT)


def _is_address(interface: str | None) -> bool:
    """Whether an interface was named by its address, and not by its name."""
    try:
        ip_address(interface or "")
    except ValueError:
        return False
    return True
