"""Several data planes in one process: the network in memory, the real engine, generated models cut to real files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine, Ran
from meshnn.graph.builder import random_inputs
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.writer import write
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryNetwork, MemoryTransport
from meshnn.net.transport import Address
from meshnn.net.transport import Limits as TransportLimits
from meshnn.node.dataplane import DataPlane, Limits
from meshnn.node.library import shard_of
from meshnn.node.slices import Array
from meshnn.plan.messages import Cancel, Failed, Receipt, Slice
from meshnn.plan.plan import Plan, PlanSet, Recipe
from meshnn.wire.codec import Codec
from tests.node.shelf import A, Shelf, life

CODEC = Codec((Slice, Receipt, Failed, Cancel))
# Generous, for a busy machine: nothing waits so long unless it is broken.
PATIENCE_S = 60.0


class Model:
    """A generated model: its graph, card, and the files of its fragments, cut when they are asked for."""

    def __init__(self, graph: Graph, folder: Path, name: str = "cat") -> None:
        """Files go into `folder`."""
        data = write(graph).to_bytes()
        self.graph = graph
        self.name = name
        self.digest = hashlib.sha256(data).hexdigest()
        self.card: Card = card_of(graph, self.digest, len(data), name)
        self._folder = folder
        self.path = folder / f"{name}.tflite"
        self.path.write_bytes(data)

    def file(self, recipe: Recipe) -> Path:
        """The file of a shard."""
        path = self._folder / f"{recipe.key}.tflite"
        if not path.exists():
            path.write_bytes(write(shard_of(self.graph, self.card, recipe)).to_bytes())
        return path

    def inputs(self, seed: int) -> dict[int, Array]:
        """Random inputs by tensor index."""
        return random_inputs(self.graph, np.random.default_rng(seed))

    async def whole(self, inputs: Mapping[int, Array]) -> dict[int, Array]:
        """What the whole model answers, in an engine of its own."""
        engine = Engine()
        loaded = await engine.load(self.path)
        ran = await engine.run(loaded.handle, [inputs[tensor.index] for tensor in self.card.inputs])
        await engine.close()
        return {tensor.index: array for tensor, array in zip(self.card.outputs, ran.outputs, strict=True)}


class GatedEngine(Engine):
    """The real engine behind a gate: a test can hold a run back until it has done its mischief."""

    def __init__(self) -> None:
        """Open."""
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.runs = 0

    async def run(self, handle: int, inputs: Sequence[Array]) -> Ran:
        """Wait for the gate, then run."""
        self.entered.set()
        await self.gate.wait()
        self.runs += 1
        return await super().run(handle, inputs)


class Node:
    """One device: a transport, an engine, a shelf and the data plane between them."""

    def __init__(self, network: MemoryNetwork, me: DeviceId, life: BootId, limits: Limits | None) -> None:
        """Not started."""
        self.me = me
        self.engine = GatedEngine()
        # Patience is out of the picture: on a busy machine only events may decide.
        self.shelf = Shelf(predicted_s=20.0)
        hello = Hello(mesh="test", name=me[:1], boot_id=life)
        self.transport: MemoryTransport = network.transport(me, hello, self, TransportLimits(), CODEC)
        clock = asyncio.get_running_loop().time
        self.plane = DataPlane(me, life, self.transport, self.engine, self.shelf, clock, limits)
        self.linked: set[DeviceId] = set()
        self.seen: list[msgspec.Struct] = []
        self.received: list[Slice] = []

    async def serve(self, model: Model, plan: Plan) -> None:
        """Load this device's shards of a plan."""
        self.shelf.cards[model.digest] = model.card
        for recipe in plan.recipes_of(self.me):
            if recipe not in self.shelf.handles:
                self.shelf.handles[recipe] = (await self.engine.load(model.file(recipe))).handle

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """Tell the data plane."""
        del hello, address
        self.linked.add(device_id)
        self.plane.on_linked(device_id, boot_id)

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """Tell the data plane."""
        self.linked.discard(device_id)
        self.plane.on_evidence(device_id, evidence)

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """Nobody asks."""

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """Everything here is the data plane's."""
        self.seen.append(message)
        assert self.plane.on_message(device_id, boot_id, message)

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """None are sent."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Ask the data plane."""
        return self.plane.admit(device_id, meta_message, payload_bytes)

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """Keep the header, and tell the data plane."""
        assert isinstance(meta_message, Slice)
        self.received.append(meta_message)
        self.plane.on_tensors(device_id, boot_id, meta_message, payload)


class Mesh:
    """Nodes that are all linked with each other."""

    def __init__(self, network: MemoryNetwork, tasks: asyncio.TaskGroup, limits: Limits | None) -> None:
        """No nodes yet."""
        self.network = network
        self.nodes: dict[DeviceId, Node] = {}
        self._tasks = tasks
        self._limits = limits
        self._running: dict[DeviceId, asyncio.Task[None]] = {}
        self._gone: list[Node] = []

    @property
    def origin(self) -> Node:
        """Device A, which the tests ask."""
        return self.nodes[A]

    async def start(self, device: DeviceId, boot_id: BootId | None = None) -> Node:
        """Start a device and link it with all others."""
        node = Node(self.network, device, boot_id or life(device), self._limits)
        await node.transport.start()
        self._running[device] = self._tasks.create_task(node.plane.run())
        for other in self.nodes.values():
            node.transport.dial(self.network.host_of(other.me), other.transport.port)
        self.nodes[device] = node
        await until(lambda: all(len(one.linked) == len(self.nodes) - 1 for one in self.nodes.values()))
        return node

    async def kill(self, device: DeviceId) -> None:
        """End a device as `kill -9` does."""
        self.network.crash(device)
        self._gone.append(self.nodes.pop(device))
        self._running.pop(device).cancel()
        await until(lambda: all(device not in node.linked for node in self.nodes.values()))

    def air_bytes(self) -> int:
        """The bytes of every tensor slice that crossed the network so far."""
        headers = [header for node in (*self.nodes.values(), *self._gone) for header in node.received]
        return sum(tensor.size_bytes for header in headers for tensor in header.tensors)

    async def serve(self, model: Model, plans: PlanSet) -> None:
        """Prepare a plan set everywhere, then activate it."""
        for node in self.nodes.values():
            for plan in plans.plans:
                await node.serve(model, plan)
        for node in self.nodes.values():
            before = node.shelf.active.get(model.name)
            node.shelf.others = list(before.plans) if before else []
            node.shelf.active[model.name] = plans
            node.plane.on_plans_changed()

    async def stop(self) -> None:
        """End everything."""
        for node in (*self.nodes.values(), *self._gone):
            node.engine.gate.set()
            await node.transport.stop()
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        for node in (*self.nodes.values(), *self._gone):
            await node.engine.close()


@asynccontextmanager
async def mesh(devices: Sequence[DeviceId], limits: Limits | None = None) -> AsyncIterator[Mesh]:
    """A running mesh of these devices, everybody linked with everybody."""
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        found = Mesh(MemoryNetwork(seed=1), tasks, limits)
        for device in devices:
            await found.start(device)
        try:
            yield found
        finally:
            await found.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, a turn of the loop at a time."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (the condition has no event of its own)
            await asyncio.sleep(0)
