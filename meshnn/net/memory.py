"""A network in memory: the same `Transport`, without sockets. Seeded delay, loss and duplication, partitions, deaths.

Everything happens on the running event loop's clock, so a loop with a virtual clock makes it a simulation; with one
seed the same calls meet the same fate. Messages pass through the codec, so what cannot travel fails here too.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import NodeError, PeerError
from meshnn.net.hello import Channel, Hello, Refusal, judge
from meshnn.net.memory_wire import Weather, Wire
from meshnn.net.transport import Address, Evidence, Handler, Limits
from meshnn.wire.codec import Codec, Unknown
from meshnn.wire.datagram import BODY_LIMIT_BYTES
from meshnn.wire.frame import META_LIMIT_BYTES

PORT = 7766
# After how long TCP itself gives up a link whose other end cannot be heard: keepalive 2 s + 3 x 2 s.
KEEPALIVE_S = 8.0


class MemoryNetwork:
    """The air between the transports of one process, and what a test may do to it."""

    def __init__(self, seed: int = 0, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self._random = random.Random(seed)
        self._hosts: dict[DeviceId, str] = {}
        self._listening: dict[Address, MemoryTransport] = {}
        self._links: list[MemoryLink] = []
        self._deaf: set[tuple[str, str]] = set()  # (from, to): nothing sent by the one reaches the other

    def transport(
        self,
        device_id: DeviceId,
        hello: Hello,
        handler: Handler,
        limits: Limits,
        control_codec: Codec,
    ) -> MemoryTransport:
        """A transport for one life of a device; every life of the same device has the same host address."""
        count = len(self._hosts)
        host = self._hosts.setdefault(device_id, f"10.{count >> 16 & 255}.{count >> 8 & 255}.{count & 255}")
        hello = msgspec.structs.replace(hello, device_id=device_id, port=hello.port or PORT)
        return MemoryTransport(self, host, hello, handler, limits, control_codec)

    def host_of(self, device_id: DeviceId) -> str:
        """The address of a device that has, or had, a transport."""
        return self._hosts[device_id]

    # -- faults

    def partition(self, *groups: Iterable[DeviceId]) -> None:
        """Only devices of one group hear each other from now on; a device in no group hears nobody."""
        side = {self._hosts[device]: number for number, group in enumerate(groups) for device in group}
        hosts = sorted(self._hosts.values())
        self._set_deaf(
            {(a, b) for a in hosts for b in hosts if a != b and (a not in side or side.get(a) != side.get(b))}
        )

    def cut(self, sender: DeviceId, receiver: DeviceId) -> None:
        """Nothing that `sender` sends reaches `receiver`; the other way stays as it is."""
        self._set_deaf(self._deaf | {(self._hosts[sender], self._hosts[receiver])})

    def unplug(self, device_id: DeviceId) -> None:
        """Takes a device off the network without a word to anybody."""
        host = self._hosts[device_id]
        others = [other for other in self._hosts.values() if other != host]
        self._set_deaf(self._deaf | {pair for other in others for pair in ((host, other), (other, host))})

    def heal(self) -> None:
        """Everybody hears everybody; what streams held back arrives."""
        self._set_deaf(set())

    def crash(self, device_id: DeviceId) -> None:
        """Ends a device's process as `kill -9` does: its host resets its links and refuses new ones."""
        for transport in [held for held in self._listening.values() if held.device_id == device_id]:
            transport.vanish()

    # -- what transports use

    def hears(self, sender: str, receiver: str) -> bool:
        """Whether what one host sends reaches another."""
        return (sender, receiver) not in self._deaf

    def delay_s(self) -> float:
        """One trip's delay."""
        return self._random.uniform(*self.weather.delay_s)

    def luck(self, probability: float) -> bool:
        """A draw; none is made for what is impossible, so that a calm network's seeds stay comparable."""
        return probability > 0 and self._random.random() < probability

    def listen(self, transport: MemoryTransport, address: Address) -> None:
        """Raises NodeError where somebody listens there already."""
        if address in self._listening:
            raise NodeError(f"port {address[1]} is in use")
        self._listening[address] = transport

    def leave(self, address: Address) -> None:
        """Nobody listens there any more."""
        self._listening.pop(address, None)

    def at(self, address: Address) -> MemoryTransport | None:
        """Who listens there."""
        return self._listening.get(address)

    def is_host(self, host: str) -> bool:
        """Whether a device has that address, running or not."""
        return host in self._hosts.values()

    def join(self, link: MemoryLink) -> None:
        """Keeps a link in mind until it has ended."""
        self._links = [held for held in self._links if held.open]
        self._links.append(link)

    def _set_deaf(self, deaf: set[tuple[str, str]]) -> None:
        self._deaf = deaf
        for link in list(self._links):
            link.weather_changed()


class MemoryLink:
    """A link between two lives: control and tensors, each way."""

    def __init__(self, network: MemoryNetwork, caller: MemoryTransport, answerer: MemoryTransport) -> None:
        self.open = {caller.hello.boot_id, answerer.hello.boot_id}  # the ends that still believe in it
        self._network = network
        self._ends = (caller, answerer)
        self._wires: dict[tuple[BootId, Channel], Wire] = {}
        self._cuts = 0  # how often the way between the ends has been whole again
        for sender, receiver in ((caller, answerer), (answerer, caller)):
            self._wires[sender.hello.boot_id, "control"] = Wire(network, (sender.host, receiver.host))
            self._wires[sender.hello.boot_id, "tensors"] = Wire(network, (sender.host, receiver.host))

    def other(self, end: MemoryTransport) -> MemoryTransport:
        """The transport at the other end."""
        return self._ends[1] if end is self._ends[0] else self._ends[0]

    def wire_from(self, end: MemoryTransport, channel: Channel) -> Wire:
        """What carries things away from `end`."""
        return self._wires[end.hello.boot_id, channel]

    def lose(self, end: MemoryTransport, evidence: Evidence, word: Evidence = Evidence.RESET) -> None:
        """One end gives the link up; the other hears `word` of it, if it can hear at all."""
        if end.hello.boot_id not in self.open:
            return
        self.open.discard(end.hello.boot_id)
        other = self.other(end)
        # What the other sent is nobody's now; what this end sent may still arrive before its last word.
        for channel in ("control", "tensors"):
            self.wire_from(other, channel).alive = False
        end.link_ended(self, evidence)
        if other.hello.boot_id in self.open:
            self.wire_from(end, "control").put(lambda: self.lose(other, word), 0)

    def watch(self, end: MemoryTransport) -> None:
        """Starts the clock by which `end` notices that it hears nothing: pings where work is due, else keepalive."""
        if end.hello.boot_id not in self.open or self._whole():
            return
        loop = asyncio.get_running_loop()
        limits = end.limits
        if end.expects(self.other(end).device_id):
            wait_s = limits.ping_every_s * limits.pings_unanswered
            loop.call_later(wait_s, self._judge, end, Evidence.SILENT, self._cuts)
        loop.call_later(KEEPALIVE_S, self._judge, end, Evidence.RESET, self._cuts)

    def weather_changed(self) -> None:
        """The network was cut or healed."""
        if self._whole():
            self._cuts += 1
        for wire in self._wires.values():
            wire.flush()
        for end in self._ends:
            self.watch(end)

    def _whole(self) -> bool:
        a, b = (end.host for end in self._ends)
        return self._network.hears(a, b) and self._network.hears(b, a)

    def _judge(self, end: MemoryTransport, evidence: Evidence, cut: int) -> None:
        excused_s = end.excused_s(self.other(end).device_id) if evidence == Evidence.SILENT else 0.0
        if excused_s > 0:
            asyncio.get_running_loop().call_later(excused_s, self._judge, end, evidence, cut)
            return
        expected = evidence != Evidence.SILENT or end.expects(self.other(end).device_id)
        if expected and cut == self._cuts and not self._whole():
            self.lose(end, evidence)


class MemoryTransport:
    """One life of one device on a `MemoryNetwork`; made by `MemoryNetwork.transport`."""

    def __init__(
        self,
        network: MemoryNetwork,
        host: str,
        hello: Hello,
        handler: Handler,
        limits: Limits,
        codec: Codec,
    ) -> None:
        self.host = host
        self.hello = hello
        self.limits = limits
        self._network = network
        self._handler = handler
        self._codec = codec
        self._links: dict[DeviceId, MemoryLink] = {}
        self._expected: Counter[DeviceId] = Counter()
        self._excused: dict[DeviceId, float] = {}
        self._dialling: set[Address] = set()
        self._sending: dict[asyncio.Future[None], MemoryLink] = {}
        self._running = False

    @property
    def device_id(self) -> DeviceId:
        """Whose transport this is."""
        return self.hello.device_id

    @property
    def port(self) -> int:
        """Where this life listens."""
        return self.hello.port

    async def start(self) -> None:
        """Listens from now on. Raises NodeError where the address is taken."""
        self._network.listen(self, (self.host, self.port))
        self._running = True

    async def stop(self) -> None:
        """Says goodbye to every neighbour; no handler is called afterwards."""
        self._end(Evidence.CLOSED)

    def vanish(self) -> None:
        """Ends without a word, as a killed process does; its host resets what was open."""
        self._end(Evidence.RESET)

    def _end(self, word: Evidence) -> None:
        self._running = False
        self._network.leave((self.host, self.port))
        for link in list(self._links.values()):
            link.lose(self, Evidence.CLOSED, word)

    # -- what the node asks

    def dial(self, host: str, port: int) -> None:
        """Tries to link with whoever listens there; what comes of it arrives as handler events."""
        address = (host, port)
        linked = any((link.other(self).host, link.other(self).port) == address for link in self._links.values())
        if not self._running or linked or address in self._dialling:
            return
        self._dialling.add(address)
        loop = asyncio.get_running_loop()
        if (
            self._network.is_host(host)
            and self._network.hears(self.host, host)
            and self._network.hears(host, self.host)
        ):
            loop.call_later(3 * self._network.delay_s(), self._called, address)
        else:
            loop.call_later(self.limits.handshake_s, self._failed, address, Evidence.TIMEOUT)

    def connected(self, device_id: DeviceId) -> bool:
        """Whether the link to a device is up."""
        return device_id in self._links

    def neighbours(self) -> tuple[DeviceId, ...]:
        """The devices linked now, sorted."""
        return tuple(sorted(self._links))

    def send(self, device_id: DeviceId, message: msgspec.Struct) -> bool:
        """Queues a control message; False without a link. Raises PeerError over 512 KiB."""
        link = self._links.get(device_id)
        if link is None:
            return False
        data = self._codec.encode(message)
        receiver = link.other(self)
        link.wire_from(self, "control").put(lambda: receiver.message_arrived(link, data), len(data))
        return True

    def send_datagram(
        self, device_id: DeviceId | None, boot_id: BootId | None, host: str, port: int, message: msgspec.Struct
    ) -> None:
        """Sends one datagram, best effort, for this device and life only. Raises PeerError over 1200 bytes."""
        data = self._codec.encode(message)
        if len(data) > BODY_LIMIT_BYTES:
            raise PeerError(f"a datagram's body of {len(data)} bytes exceeds {BODY_LIMIT_BYTES}")
        if not self._running or self._network.luck(self._network.weather.loss):
            return
        loop = asyncio.get_running_loop()
        for _ in range(2 if self._network.luck(self._network.weather.duplication) else 1):
            loop.call_later(self._network.delay_s(), self._drop_in, (device_id, boot_id), (host, port), data)

    async def send_tensors(
        self, device_id: DeviceId, meta_message: msgspec.Struct, buffers: Sequence[memoryview]
    ) -> None:
        """Sends one frame of raw bytes with its header; returns when its last byte has left. Raises PeerError."""
        link = self._links.get(device_id)
        if link is None:
            raise PeerError(f"no link to {device_id}")
        meta = self._codec.encode(meta_message)
        payload = bytearray().join(buffers)
        if len(meta) > META_LIMIT_BYTES or len(payload) > self.limits.payload_bytes:
            raise PeerError(f"tensors of {len(payload)} bytes with a header of {len(meta)} exceed what a peer takes")
        receiver = link.other(self)
        wire = link.wire_from(self, "tensors")
        wire.put(lambda: receiver.tensors_arrived(link, meta, payload), len(payload))
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()
        timer = loop.call_at(wire.free_at, _settle, sent)
        self._sending[sent] = link
        try:
            await sent
        finally:
            timer.cancel()
            del self._sending[sent]

    def expecting(self, device_id: DeviceId, delta: int) -> None:
        """Counts work outstanding at a device up or down; while there is some, silence is noticed within a second."""
        self._expected[device_id] = max(0, self._expected[device_id] + delta)
        if delta > 0 and device_id in self._links:
            self._links[device_id].watch(self)

    def on_network(self, hosts: Sequence[str]) -> None:
        """A device in memory keeps its address."""

    def excuse(self, device_id: DeviceId, for_s: float) -> None:
        """The device said that it cannot answer pings for so long."""
        self._excused[device_id] = asyncio.get_running_loop().time() + for_s

    def excused_s(self, device_id: DeviceId) -> float:
        """For how long yet a device's silence is no evidence."""
        return max(0.0, self._excused.get(device_id, 0.0) - asyncio.get_running_loop().time())

    def expects(self, device_id: DeviceId) -> bool:
        """Whether work is outstanding at a device."""
        return self._expected[device_id] > 0

    # -- what the network brings

    def message_arrived(self, link: MemoryLink, data: bytes) -> None:
        """A control message is here."""
        sender = link.other(self).hello
        message = self._codec.decode(data)
        if self._running and self._links.get(sender.device_id) is link and not isinstance(message, Unknown):
            self._handler.on_message(sender.device_id, sender.boot_id, message)

    def tensors_arrived(self, link: MemoryLink, meta: bytes, payload: bytearray) -> None:
        """A frame of tensors is here; its memory is spent only if the node admits it."""
        sender = link.other(self).hello
        message = self._codec.decode(meta)
        if not self._running or isinstance(message, Unknown):
            return
        if self._handler.admit(sender.device_id, message, len(payload)):
            self._handler.on_tensors(sender.device_id, sender.boot_id, message, memoryview(payload))

    def link_ended(self, link: MemoryLink, evidence: Evidence) -> None:
        """This end has given a link up."""
        for sent, held in self._sending.items():
            if held is link and not sent.done():
                sent.set_exception(PeerError("the link ended before the tensors were sent"))
        device_id = link.other(self).device_id
        if self._links.get(device_id) is link:
            del self._links[device_id]
            if self._running:
                self._handler.on_unlinked(device_id, str(evidence))

    def _drop_in(self, target: tuple[DeviceId | None, BootId | None], address: Address, data: bytes) -> None:
        """A datagram of ours arrives, if anybody is there who is meant and can hear it."""
        receiver = self._network.at(address)
        if receiver is None or receiver is self or not self._network.hears(self.host, receiver.host):
            return
        mine, theirs = self.hello, receiver.hello
        if mine.mesh == theirs.mesh and target[0] in {None, theirs.device_id} and target[1] in {None, theirs.boot_id}:
            receiver.datagram_arrived(mine, (self.host, self.port), data)

    def datagram_arrived(self, sender: Hello, address: Address, data: bytes) -> None:
        """A datagram is here."""
        message = self._codec.decode(data)
        if self._running and not isinstance(message, Unknown):
            self._handler.on_datagram(sender.device_id, sender.boot_id, message, address)

    # -- links

    def _called(self, address: Address) -> None:
        """A dial has reached its address: both ends judge each other as over TLS."""
        answerer = self._network.at(address)
        if answerer is None:
            self._failed(address, Evidence.REFUSED)
            return
        refusal = answerer.judge_caller(self.hello) or judge(self.hello, answerer.hello, answerer.device_id)
        if refusal is not None:
            self._failed(address, refusal.reason)
            return
        self._dialling.discard(address)
        if not self._running or answerer.device_id in self._links:
            return
        link = MemoryLink(self._network, self, answerer)
        self._network.join(link)
        answerer.adopt(link, self)
        self.adopt(link, answerer)

    def _failed(self, address: Address, evidence: str) -> None:
        self._dialling.discard(address)
        if self._running:
            self._handler.on_unreachable(address, str(evidence))

    def judge_caller(self, theirs: Hello) -> Refusal | None:
        """Why not to link with a caller."""
        return judge(self.hello, theirs, theirs.device_id)

    def adopt(self, link: MemoryLink, peer: MemoryTransport) -> None:
        """Takes a link into use, in place of one to an earlier life or one that the peer has given up."""
        old = self._links.get(peer.device_id)
        if old is not None:
            old.lose(self, Evidence.RESET)
        if not self._running:
            return
        self._links[peer.device_id] = link
        self._handler.on_linked(peer.device_id, peer.hello.boot_id, peer.hello, (peer.host, peer.port))
        link.watch(self)


def _settle(sent: asyncio.Future[None]) -> None:
    if not sent.done():
        sent.set_result(None)
