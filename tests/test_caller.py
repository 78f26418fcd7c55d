"""The library as a caller: one answer or one error for each question, whichever node dies meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import meshnn
from meshnn.cluster.member import Address, DeviceId
from meshnn.device import records
from meshnn.errors import BusyError, DeadlineError, InputError, MeshError, NodeError, NoMeshError, UsageError
from meshnn.net.hello import Hello
from meshnn.net.neighbours import Neighbours
from meshnn.net.security import Identity
from meshnn.net.transport import Address as HostPort
from meshnn.net.transport import Limits
from meshnn.node.messages import Others, RemoteAnswer, RemoteAsk
from meshnn.node.switchboard import codec
from tests.net.recorder import LOCAL, MESH, Recorder, eventually, new_boot

Script = Callable[["Scripted", DeviceId, RemoteAsk, bytes], Awaitable[None]]


class Scripted(Recorder):
    """A node of the peer protocol that does with a question what its script says."""

    def __init__(self, script: Script) -> None:
        """Not started yet."""
        super().__init__()
        self.script = script
        self.asks: list[RemoteAsk] = []
        self.others: tuple[Address, ...] = ()
        self.transport: Neighbours
        self.deeds: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> HostPort:
        """Where it listens."""
        return (LOCAL, self.transport.port)

    def on_linked(self, device_id: DeviceId, boot_id: Any, hello: Hello, address: HostPort) -> None:  # noqa: ANN401
        """As a node does: a caller hears of the others."""
        super().on_linked(device_id, boot_id, hello, address)
        self.transport.send(device_id, Others(self.others))

    def on_tensors(self, device_id: DeviceId, boot_id: Any, meta_message: msgspec.Struct, payload: memoryview) -> None:  # noqa: ANN401
        """A question."""
        assert isinstance(meta_message, RemoteAsk)
        self.asks.append(meta_message)
        deed = asyncio.ensure_future(self.script(self, device_id, meta_message, bytes(payload)))
        self.deeds.add(deed)

    async def say(self, to: DeviceId, ask: RemoteAsk, report: dict[str, object], arrays: bytes = b"") -> None:
        """Answer a question."""
        line = json.dumps(report).encode()
        buffers = [memoryview(line), *([memoryview(arrays)] if arrays else [])]
        await self.transport.send_tensors(to, RemoteAnswer(ask.ask, len(line)), buffers)

    def die(self) -> None:
        """What `kill -9` does to its links."""
        for held in list(self.transport._links.values()):
            held.stream.abort()


async def answers(node: Scripted, caller: DeviceId, ask: RemoteAsk, data: bytes) -> None:
    """Every question is answered with who answered and what was asked."""
    await node.say(caller, ask, {"ok": True, "by": node.transport.port, "asked": data.decode()})


async def holds(node: Scripted, caller: DeviceId, ask: RemoteAsk, data: bytes) -> None:
    """No question is ever answered."""


def fails(code: str) -> Script:
    """Every question is refused with an error."""

    async def refuse(node: Scripted, caller: DeviceId, ask: RemoteAsk, data: bytes) -> None:
        await node.say(caller, ask, {"ok": False, "error": {"code": code, "message": "so it is"}})

    return refuse


Start = Callable[[Script], Awaitable[Scripted]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Call it with a script to start a node; each knows all those started before it, and they of it."""
    nodes: list[Scripted] = []

    async def begin(script: Script) -> Scripted:
        node = Scripted(script)
        identity = Identity.load(tmp_path / f"node-{len(nodes)}")
        hello = Hello(MESH, f"node-{len(nodes)}", new_boot())
        node.transport = Neighbours(identity, hello, node, Limits(), codec(), LOCAL)
        await node.transport.start()
        nodes.append(node)
        for each in nodes:
            each.others = tuple(Address(*other.address) for other in nodes if other is not each)
        return node

    yield begin
    for node in nodes:
        await node.transport.stop()


def reach(folder: Path, *nodes: Scripted) -> Any:  # noqa: ANN401 - a context manager of the library
    """A connection to a mesh of which these nodes' addresses are known."""
    peers = ",".join(f"{LOCAL}:{node.transport.port}" for node in nodes)
    return meshnn.connect(mesh=MESH, interface=LOCAL, state_dir=folder / "caller", peers=peers, look_s=30.0)


async def test_a_question_is_answered_by_the_node_that_linked_first(tmp_path: Path, start: Start) -> None:
    """The JSON of the answer, the tensors none was asked for, one node asked."""
    node = await start(answers)
    async with reach(tmp_path, node) as mesh:
        answer = await mesh.ask(b"photo", model="photos", top=3, deadline_s=20.0)
        assert answer.report == {"ok": True, "by": node.transport.port, "asked": "photo"}
        assert (answer.tensors(), answer.asked) == ({}, 1)
        (ask,) = node.asks
        assert (ask.model, ask.top, ask.source, ask.tensors) == ("photos", 3, "input", False)
        assert 15_000 < ask.deadline_ms <= 20_000


async def test_a_file_is_read_and_named(tmp_path: Path, start: Start) -> None:
    """A path is as good as its bytes; one that cannot be read is the caller's own error."""
    node = await start(answers)
    (tmp_path / "cat.png").write_bytes(b"meow")
    async with reach(tmp_path, node) as mesh:
        assert (await mesh.ask(tmp_path / "cat.png")).report["asked"] == "meow"
        assert node.asks[0].source == str(tmp_path / "cat.png")
        for missing in (tmp_path / "dog.png", b""):
            with pytest.raises(InputError):
                await mesh.ask(missing)
        assert len(node.asks) == 1


async def test_the_death_of_the_asked_node_costs_no_question(tmp_path: Path, start: Start) -> None:
    """All its open questions go to another node, under their names, within their deadlines; each is answered once."""
    first, second = await start(holds), await start(answers)
    async with reach(tmp_path, first) as mesh:
        asks = [asyncio.ensure_future(mesh.ask(str(n).encode(), deadline_s=30.0)) for n in range(200)]
        await eventually(lambda: len(first.asks) == 200)
        assert second.asks == []
        first.die()
        done = await asyncio.gather(*asks)
        assert sorted(int(answer.report["asked"]) for answer in done) == list(range(200))
        assert {(answer.report["by"], answer.asked) for answer in done} == {(second.transport.port, 2)}
        assert sorted(ask.ask for ask in first.asks) == sorted(ask.ask for ask in second.asks)
        assert max(ask.deadline_ms for ask in second.asks) <= max(ask.deadline_ms for ask in first.asks)


async def test_a_node_that_answers_twice_is_heard_once(tmp_path: Path, start: Start) -> None:
    """A second answer to a question, or one to a question that was never asked, changes nothing."""

    async def twice(node: Scripted, caller: DeviceId, ask: RemoteAsk, data: bytes) -> None:
        stranger = msgspec.structs.replace(ask, ask="0" * 16)
        for told in (stranger, ask, ask):
            await node.say(caller, told, {"ok": True, "asked": data.decode()})

    node = await start(twice)
    async with reach(tmp_path, node) as mesh:
        assert [(await mesh.ask(word)).report["asked"] for word in (b"one", b"two")] == ["one", "two"]


async def test_a_node_that_is_stopping_hands_the_question_on(tmp_path: Path, start: Start) -> None:
    """A node's word that it ends is no answer where another node can give one."""
    first, second = await start(fails("node_error")), await start(answers)
    async with reach(tmp_path, first) as mesh:
        answer = await mesh.ask(b"photo", deadline_s=30.0)
        assert (answer.report["by"], answer.asked) == (second.transport.port, 2)


@pytest.mark.parametrize(("code", "kind"), [("busy_error", BusyError), ("input_error", InputError), ("odd", MeshError)])
async def test_every_other_error_is_an_answer(tmp_path: Path, start: Start, code: str, kind: type[MeshError]) -> None:
    """What the asked node says is told at once, as its own class: an overload must not be carried to the next node."""
    first, second = await start(fails(code)), await start(answers)
    async with reach(tmp_path, first) as mesh:
        with pytest.raises(kind, match="so it is"):
            await mesh.ask(b"photo")
        assert (len(first.asks), len(second.asks)) == (1, 0)


async def test_a_busy_node_is_asked_first_before_it_is_sent_another_body(tmp_path: Path, start: Start) -> None:
    """After a refusal a question goes without its body; the body follows where the node would take it."""
    bodies: list[bytes] = []
    busy = True

    async def crowded(node: Scripted, caller: DeviceId, ask: RemoteAsk, data: bytes) -> None:
        bodies.append(data)
        if busy:
            await node.say(caller, ask, {"ok": False, "error": {"code": "busy_error", "message": "so it is"}})
        else:
            await node.say(caller, ask, {"ok": True, "asked": data.decode()})

    node = await start(crowded)
    async with reach(tmp_path, node) as mesh:
        for _ in range(2):
            with pytest.raises(BusyError, match="so it is"):
                await mesh.ask(b"photo")
        busy = False
        assert (await mesh.ask(b"photo")).report["asked"] == "photo"
        assert bodies == [b"photo", b"", b"", b"photo"]


async def test_nonsense_is_an_error(tmp_path: Path, start: Start) -> None:
    """An answer that is no answer is told in one line."""

    async def mumble(node: Scripted, caller: DeviceId, ask: RemoteAsk, data: bytes) -> None:
        await node.transport.send_tensors(caller, RemoteAnswer(ask.ask, 3), [memoryview(b"<p>")])

    node = await start(mumble)
    async with reach(tmp_path, node) as mesh:
        with pytest.raises(MeshError, match="nonsense"):
            await mesh.ask(b"photo")


async def test_a_deadline_is_kept_whoever_is_there(tmp_path: Path, start: Start) -> None:
    """A node that never answers, and a mesh that is gone, each end in an error at about the deadline."""
    node = await start(holds)
    async with reach(tmp_path, node) as mesh:
        with pytest.raises(DeadlineError):
            await mesh.ask(b"photo", deadline_s=0.2)
        await node.transport.stop()
        await eventually(lambda: not mesh.devices)
        with pytest.raises(DeadlineError, match="no node"):
            await mesh.ask(b"photo", deadline_s=0.2)


async def test_no_mesh_is_said_in_time(tmp_path: Path) -> None:
    """Where nobody answers, connecting fails in one line; a setting that is none is a usage error."""
    with pytest.raises(NoMeshError, match="no mesh named 'test-nobody' is in reach"):
        async with meshnn.connect(mesh="test-nobody", interface=LOCAL, state_dir=tmp_path, look_s=0.3):
            pytest.fail("nobody is there")
    with pytest.raises(UsageError, match="mesch"):
        async with meshnn.connect(mesch="home"):
            pytest.fail("there is no such setting")


async def test_the_node_of_this_device_and_remembered_ones_are_found(tmp_path: Path, start: Start) -> None:
    """`node.json` and the record of peers of the state folder are enough: no address, no multicast."""
    here, away = await start(answers), await start(answers)
    records.save_note(tmp_path, records.NodeNote(here.transport.port, 1, 1, "", ""))
    async with meshnn.connect(mesh=MESH, interface=LOCAL, state_dir=tmp_path, look_s=30.0) as mesh:
        assert (await mesh.ask(b"photo")).report["by"] == here.transport.port
    records.drop_note(tmp_path)
    records.save_record(tmp_path, "peers", {"peers": [list(away.address)]})
    async with meshnn.connect(mesh=MESH, interface=LOCAL, state_dir=tmp_path, look_s=30.0) as mesh:
        assert (await mesh.ask(b"photo")).report["by"] == away.transport.port
    records.save_record(tmp_path, "peers", {"peers": "nonsense"})
    with pytest.raises(NoMeshError):
        async with meshnn.connect(mesh=MESH, interface=LOCAL, state_dir=tmp_path, look_s=0.3):
            pytest.fail("nobody is there")


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is said as such."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(NodeError, match="no temporary folder"):
        async with meshnn.connect(state_dir=tmp_path):
            pytest.fail("there is no place for a key")
