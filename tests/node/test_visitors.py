"""Callers that are no members: answered, bounded, cancelled when they go, and without a say in the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshnn.cluster.member import Address as MemberAddress
from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import BusyError
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryTransport
from meshnn.net.transport import Address, Limits
from meshnn.node import visitors
from meshnn.node.messages import NameRecord, Names, Others, RemoteAnswer, RemoteAsk
from meshnn.node.switchboard import codec
from meshnn.tensor_file import read_npz
from tests.node.nodes import MODEL, NAME, PHOTO, WHOLE_BYTES, Device, Mesh, mesh, until
from tests.node.shelf import E, life
from tools.whole import outputs_of

Told = dict[str, Any]


class Caller:
    """A caller on the network in memory."""

    def __init__(self, home: Mesh) -> None:
        """Not linked yet."""
        hello = Hello(mesh="home", name="caller", boot_id=life(E), visitor=True)
        self.transport: MemoryTransport = home.network.transport(E, hello, self, Limits(), codec())
        self.linked: set[DeviceId] = set()
        self.answers: dict[str, tuple[Told, bytes]] = {}
        self.others: tuple[MemberAddress, ...] | None = None
        self._home = home

    async def link(self, device: Device) -> None:
        """Link with a device."""
        await self.transport.start()
        self.transport.dial(self._home.network.host_of(device.id), device.node.transport.port)
        await until(lambda: device.id in self.linked)

    async def ask(self, device: Device, name: str, data: bytes, **fields: object) -> None:
        """Send a question; its answer comes under its name."""
        given = {"model": NAME, "source": name, "top": 3, "deadline_ms": 80_000, **fields}
        await self.transport.send_tensors(device.id, RemoteAsk(name, **given), [memoryview(data)])  # type: ignore[arg-type]

    async def answer(self, name: str) -> Told:
        """The answer to a question."""
        await until(lambda: name in self.answers)
        return self.answers[name][0]

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """Count it."""
        self.linked.add(device_id)

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """Count it."""
        self.linked.discard(device_id)

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """Nobody asks."""

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """Nothing is told to callers but their answers, and where other nodes are."""
        assert isinstance(message, Others)
        self.others = message.addresses

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """Nor by datagram."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Everything."""
        return True

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """An answer."""
        assert isinstance(meta_message, RemoteAnswer)
        line = bytes(payload[: meta_message.json_bytes])
        self.answers[meta_message.ask] = (msgspec.json.decode(line), bytes(payload[meta_message.json_bytes :]))


@asynccontextmanager
async def visited(folder: Path, stock: Path, memory_bytes: int = WHOLE_BYTES) -> AsyncIterator[tuple[Device, Caller]]:
    """A node, and a caller that is linked with it."""
    async with mesh(folder) as home:
        (device,) = await home.start("a", memory_bytes=memory_bytes, stock=stock)
        caller = Caller(home)
        await caller.link(device)
        yield device, caller
        await caller.transport.stop()


async def test_a_caller_is_answered_with_the_whole_models_bytes(tmp_path: Path, stock: Path) -> None:
    """The JSON line, and the tensors where they were asked for."""
    async with visited(tmp_path, stock) as (device, caller):
        await caller.ask(device, "plain", PHOTO.read_bytes())
        told = await caller.answer("plain")
        assert (told["ok"], told["predictions"][0]["label"], len(told["predictions"])) == (True, "cat", 3)
        assert caller.answers["plain"][1] == b""
        await caller.ask(device, "full", PHOTO.read_bytes(), tensors=True)
        await caller.answer("full")
        card = await device.node.service.card(NAME)
        inputs = read_npz(caller.answers["full"][1], card, "full")
        answer = await device.ask()
        assert {name: array.tobytes() for name, array in inputs.items()} == {
            name: array.tobytes() for name, array in answer.inputs.items()
        }
        for array in outputs_of(MODEL, inputs).values():
            assert array.tobytes() in caller.answers["full"][1]


async def test_a_caller_hears_what_was_wrong(tmp_path: Path, stock: Path) -> None:
    """Every error of `ask` by its code."""
    photo = PHOTO.read_bytes()
    wrong: list[tuple[dict[str, object], bytes, str]] = [
        ({"model": "nothing"}, photo, "unknown_model_error"),
        ({}, b"no photo", "input_error"),
        ({"deadline_ms": 0}, photo, "deadline_error"),
        ({"deadline_ms": -5}, photo, "deadline_error"),
    ]
    async with visited(tmp_path, stock) as (device, caller):
        for number, (fields, data, code) in enumerate(wrong):
            await caller.ask(device, str(number), data, **fields)
            told = await caller.answer(str(number))
            assert (told["ok"], told["error"]["code"]) == (False, code), fields


async def test_a_caller_hears_where_the_others_are(tmp_path: Path) -> None:
    """Should this node die, the caller knows another one."""
    async with mesh(tmp_path) as home:
        asked, other = await home.start("a", "b")
        caller = Caller(home)
        await caller.link(asked)
        await until(lambda: caller.others is not None)
        assert caller.others == (MemberAddress(home.network.host_of(other.id), other.node.transport.port),)
        await caller.transport.stop()


async def test_callers_together_are_bounded_in_bytes(
    tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One large question is taken alone; what would go beyond the bound with others is refused in words."""
    monkeypatch.setattr(visitors, "ASK_BYTES_MAX", 100)
    async with visited(tmp_path, stock, memory_bytes=200_000) as (device, caller):
        await caller.ask(device, "large", PHOTO.read_bytes())
        await until(lambda: device.node.plane.stats().open == 1)
        await caller.ask(device, "small", PHOTO.read_bytes())
        assert (await caller.answer("small"))["error"]["code"] == "busy_error"
        assert set(caller.answers) == {"small"}


async def test_too_many_callers_hear_so_at_once(tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a question is refused in words; the others wait for their plan."""
    monkeypatch.setattr(visitors, "ASKS_MAX", 2)
    async with visited(tmp_path, stock, memory_bytes=200_000) as (device, caller):
        for name in ("one", "two"):
            await caller.ask(device, name, PHOTO.read_bytes())
        await until(lambda: device.node.plane.stats().open == 2)
        await caller.ask(device, "three", PHOTO.read_bytes())
        assert (await caller.answer("three"))["error"]["code"] == "busy_error"
        assert set(caller.answers) == {"three"}


async def test_what_is_too_much_is_refused_before_its_body_is_read(
    tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty question hears whether a whole one would be taken; no body of a refused one comes to be answered."""
    async with visited(tmp_path, stock) as (device, caller):
        asked: list[bytes] = []

        def crowded(deadline_s: float) -> None:
            raise BusyError(f"no question of {deadline_s:.0f} s; try again later")

        async def note(source: str, ask: RemoteAsk, data: bytes) -> None:
            asked.append(data)

        await caller.ask(device, "whether", b"")
        assert (await caller.answer("whether")) == {"input": "whether", "ok": True}
        monkeypatch.setattr(device.node.visitors, "_answer", note)
        monkeypatch.setattr(device.node.service, "refuse_overload", crowded)
        for name, body in (("empty", b""), ("whole", PHOTO.read_bytes())):
            await caller.ask(device, name, body)
            assert (await caller.answer(name))["error"]["message"] == "no question of 80 s; try again later"
        assert asked == []


async def test_a_caller_that_goes_takes_its_questions_with_it(tmp_path: Path, stock: Path) -> None:
    """Nobody works for it any more, and its places are free."""
    async with visited(tmp_path, stock, memory_bytes=200_000) as (device, caller):
        for name in ("one", "two"):
            await caller.ask(device, name, PHOTO.read_bytes())
        await until(lambda: device.node.plane.stats().open == 2)
        await caller.transport.stop()
        await until(lambda: device.node.plane.stats().open == 0)


async def test_a_caller_has_no_say(tmp_path: Path, stock: Path) -> None:
    """It is no member, its going is nobody's death, and what it says of models is not heard."""
    async with visited(tmp_path, stock) as (device, caller):
        record = NameRecord("planted", "d" * 64, 5, 9, E)
        assert caller.transport.send(device.id, Names((record,)))
        await caller.ask(device, "after", PHOTO.read_bytes())
        assert (await caller.answer("after"))["ok"]
        assert [known.name for known in device.node.core.catalogue.records] == [NAME]
        assert set(device.node.core.cluster.members) == {device.id}
        await caller.transport.stop()
        await until(lambda: not device.node.transport.connected(E))
        assert set(device.node.core.cluster.members) == {device.id}


async def test_the_end_of_the_node_is_an_answer_too(tmp_path: Path, stock: Path) -> None:
    """A caller whose node leaves is not left waiting: it hears of it, or its link ends."""
    async with mesh(tmp_path) as home:
        (device,) = await home.start("a", memory_bytes=200_000, stock=stock)
        caller = Caller(home)
        await caller.link(device)
        await caller.ask(device, "open", PHOTO.read_bytes())
        await until(lambda: device.node.plane.stats().open == 1)
        async with asyncio.timeout(60):
            await home.leave("a")
        await until(lambda: not caller.linked)
        await caller.transport.stop()
