"""Whole nodes in one process: the network in memory, all else real (disk, engine, election, plans, data plane)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from meshnn.cli.alone import store_model
from meshnn.cluster.member import DeviceId, MemberState
from meshnn.config import Config
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryNetwork, MemoryTransport
from meshnn.net.security import Identity
from meshnn.net.transport import Limits
from meshnn.node.answer import Answer
from meshnn.node.driver import Node
from meshnn.node.switchboard import Switchboard, codec
from tools.whole import outputs_of

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"
NAME = "photos"
# The model takes about 5 MB: a device of the first size holds a part of it, one of the second all of it.
PART_BYTES = 3_000_000
WHOLE_BYTES = 64_000_000
DISK_BYTES = 50_000_000
# Generous, for a busy machine: nothing waits so long unless it is broken.
PATIENCE_S = 90.0
LOOK_EVERY_S = 0.05


@dataclass
class Device:
    """One device: its state folder and the node that lives on it now."""

    name: str
    folder: Path
    memory_bytes: int
    disk_bytes: int
    node: Node
    life: asyncio.Task[None]

    @property
    def id(self) -> DeviceId:
        """The device's id."""
        return self.node.me

    @property
    def leader(self) -> DeviceId | None:
        """Whom it follows."""
        return self.node.core.cluster.leader

    def sees(self, *others: Device) -> bool:
        """Whether these are alive to it and linked."""
        alive, linked = self.node.core.cluster.alive, self.node.core.contacts.linked
        return all(other.id in alive and (other is self or other.id in linked) for other in others)

    def state_of(self, device: DeviceId) -> MemberState:
        """What it believes of another."""
        return self.node.core.cluster.members[device].state

    async def ask(self, model: str | None = NAME, deadline_s: float = PATIENCE_S) -> Answer:
        """Ask about the photo."""
        return await self.node.service.ask(PHOTO.read_bytes(), PHOTO.name, model=model, deadline_s=deadline_s)


class Mesh:
    """Devices on one network in memory."""

    def __init__(self, folder: Path, tasks: asyncio.TaskGroup) -> None:
        """`folder` takes the state folders."""
        self.folder = folder
        self.network = MemoryNetwork(seed=1)
        self.devices: dict[str, Device] = {}
        self._tasks = tasks

    async def start(
        self, *names: str, memory_bytes: int = PART_BYTES, disk_bytes: int = DISK_BYTES, stock: Path | None = None
    ) -> list[Device]:
        """Start devices (again), have each find all others, and wait until they follow one leader."""
        for name in names:
            await self._start(name, memory_bytes, disk_bytes, stock if name == names[0] else None)
        await self.together()
        return [self.devices[name] for name in names]

    async def together(self) -> None:
        """Wait until all devices see each other and follow one leader."""
        devices = list(self.devices.values())
        await until(lambda: all(device.sees(*devices) for device in devices))
        await until(lambda: len({device.leader for device in devices}) == 1 and devices[0].leader is not None)

    async def kill(self, name: str) -> Device:
        """End a device as `kill -9` does; its disk stays."""
        device = self.devices.pop(name)
        self.network.crash(device.id)
        await self._end(device)
        return device

    async def leave(self, name: str) -> None:
        """End a device in order."""
        device = self.devices.pop(name)
        device.node.leave()
        await device.life
        await device.node.stop()

    async def stop(self) -> None:
        """End everything."""
        for name in list(self.devices):
            await self.kill(name)

    async def _start(self, name: str, memory_bytes: int, disk_bytes: int, stock: Path | None) -> None:
        folder = self.folder / name
        if stock is not None:
            shutil.copytree(stock, folder)
        config = Config(name=name, memory_bytes=memory_bytes, disk_bytes=disk_bytes, state_dir=folder)
        node = new_node(config, self.network)
        await node.start()
        ready = asyncio.Event()
        life = self._tasks.create_task(node.run(ready.set), name=name)
        self.devices[name] = Device(name, folder, memory_bytes, disk_bytes, node, life)
        await ready.wait()
        for other in self.devices.values():
            node.seen(self.network.host_of(other.id), other.node.transport.port)

    async def _end(self, device: Device) -> None:
        device.life.cancel()
        await asyncio.wait([device.life])
        await device.node.stop()


def new_node(config: Config, network: MemoryNetwork) -> Node:
    """A node on the network in memory, not yet started."""
    made: list[MemoryTransport] = []

    def transport(identity: Identity, hello: Hello, handler: Switchboard) -> MemoryTransport:
        made.append(network.transport(identity.device_id, hello, handler, Limits(), codec()))
        return made[0]

    return Node(config, transport, host=lambda: made[0].host)


@asynccontextmanager
async def mesh(folder: Path) -> AsyncIterator[Mesh]:
    """A mesh without devices yet; a node that breaks fails the test."""
    async with asyncio.timeout(2 * PATIENCE_S), asyncio.TaskGroup() as tasks:
        found = Mesh(folder, tasks)
        try:
            yield found
        finally:
            await found.stop()


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Look every 50 ms until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await moment()


async def moment() -> None:
    """Let the mesh live for a moment."""
    never = asyncio.Event()
    try:
        async with asyncio.timeout(LOOK_EVERY_S):
            await never.wait()
    except TimeoutError:
        return


def stocked(folder: Path) -> Path:
    """A state folder that holds the model under its name, as `models add` leaves it where no node runs."""
    store_model(folder, MODEL, NAME, replace=False)
    return folder


def check(answer: Answer, model: Path = MODEL) -> None:
    """Every output must have the very bytes that the whole model gives for the answer's own inputs."""
    expected = outputs_of(model, answer.inputs)
    assert set(answer.outputs) == set(expected)
    for name, array in expected.items():
        assert answer.outputs[name].tobytes() == array.tobytes(), name


def workers(answer: Answer) -> set[str]:
    """The names of the devices that ran an answer."""
    plan = answer.report["plan"]
    assert isinstance(plan, dict)
    return {stage["device"] for stage in plan["stages"]}
