"""One data plane seen from outside: what it says to its peers for every kind of slice, good and bad."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine
from meshnn.errors import PeerError
from meshnn.graph.builder import Builder
from meshnn.node.dataplane import DataPlane, Limits
from meshnn.node.slices import Array, Parcel, Passage, Piece, buffers_of, header_of
from meshnn.plan.boxes import whole
from meshnn.plan.messages import Cancel, Failed, Receipt, Slice
from meshnn.plan.plan import Epoch, Plan, PlanSet
from tests.node.mesh import Model, until
from tests.node.shelf import A, B, C, D, Shelf, boot, life, pipeline


class Tap:
    """A transport that keeps what it is given; devices in `broken` cannot be sent tensors."""

    def __init__(self) -> None:
        """Linked with everybody."""
        self.said: list[tuple[DeviceId, msgspec.Struct]] = []
        self.sent: list[tuple[DeviceId, Slice, bytes]] = []
        self.expected: Counter[DeviceId] = Counter()
        self.broken: set[DeviceId] = set()
        self.slow = asyncio.Event()
        self.slow.set()
        self.port = 0

    def connected(self, device_id: DeviceId) -> bool:
        """Always."""
        return bool(device_id)

    def neighbours(self) -> tuple[DeviceId, ...]:
        """Not asked."""
        return ()

    def dial(self, host: str, port: int) -> None:
        """Not asked."""

    def on_network(self, hosts: Sequence[str]) -> None:
        """Not asked."""

    def excuse(self, device_id: DeviceId, for_s: float) -> None:
        """Not asked."""

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def send(self, device_id: DeviceId, message: msgspec.Struct) -> bool:
        """Keep a message."""
        self.said.append((device_id, message))
        return True

    def send_datagram(
        self, device_id: DeviceId | None, boot_id: BootId | None, host: str, port: int, message: msgspec.Struct
    ) -> None:
        """Not asked."""

    async def send_tensors(
        self, device_id: DeviceId, meta_message: msgspec.Struct, buffers: Sequence[memoryview]
    ) -> None:
        """Keep tensors, or break; while the link is slow the last byte does not leave."""
        if device_id in self.broken:
            raise PeerError("the link broke")
        await self.slow.wait()
        assert isinstance(meta_message, Slice)
        self.sent.append((device_id, meta_message, b"".join(buffers)))

    def expecting(self, device_id: DeviceId, delta: int) -> None:
        """Keep the count."""
        self.expected[device_id] += delta

    def failures(self) -> list[tuple[DeviceId, str, str]]:
        """Who was told of which failure, and who was blamed."""
        return [(to, told.code, told.culprit) for to, told in self.said if isinstance(told, Failed)]


class Bench:
    """Device B with the middle stage of A's requests: B reads what A and D make and sends to C."""

    def __init__(self, model: Model, engine: Engine) -> None:
        """Nothing served yet."""
        self.model = model
        self.engine = engine
        self.tap = Tap()
        self.shelf = Shelf(predicted_s=20.0)
        self.shelf.cards[model.digest] = model.card
        clock = asyncio.get_running_loop().time
        self.plane = DataPlane(B, life(B), self.tap, engine, self.shelf, clock, Limits())
        self.plan = pipeline([D, B, C], [(0, 0), (1, 1), (2, 2)], digest=model.digest)

    async def serve(self, plan: Plan | None = None) -> None:
        """Load and activate."""
        self.plan = plan or self.plan
        self.shelf.active["cat"] = PlanSet(self.plan)
        for recipe in self.plan.recipes_of(B):
            self.shelf.handles[recipe] = (await self.engine.load(self.model.file(recipe))).handle

    def slice(
        self,
        tensor: int,
        *,
        source: int = 0,
        stage: int = 1,
        attempt: int = 1,
        request: str = "r1",
        epoch: Epoch | None = None,
    ) -> tuple[Slice, memoryview]:
        """Random bytes of a tensor for a stage (the middle one), as they come from the network."""
        groups = (0,) * len(self.plan.lanes[0].stages)
        passage = Passage(request, attempt, "cat", epoch or self.plan.epoch, A, life(A), 0, groups)
        shape = self.model.card.tensor(tensor).shape
        array: Array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        parcel = Parcel(stage, 0, (Piece(tensor, whole(shape), array),))
        return header_of(passage, parcel, (source, 0), 30_000, ()), memoryview(b"".join(buffers_of(parcel)))

    def bring(self, device: DeviceId, header: Slice, payload: memoryview, boot_id: BootId | None = None) -> bool:
        """A slice comes from a device."""
        if not self.plane.admit(device, header, payload.nbytes):
            return False
        self.plane.on_tensors(device, boot_id or life(device), header, payload)
        return True

    @property
    def fed(self) -> int:
        """The tensor that D makes for B."""
        return self.model.card.operators[0].outputs[0]

    @property
    def late(self) -> int:
        """The model input that B reads."""
        return self.model.card.inputs[1].index


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A device B that reads from D and, late, from the origin."""
    b = Builder(np.random.default_rng(5), "float32")
    first, late = b.input(1, 4, 4, 2, name="first"), b.input(1, 4, 4, 2, name="late")
    async with _running(Model(b.graph(b.conv(b.add(b.conv(first, 2), late), 2)), tmp_path)) as made:
        yield made


@pytest.fixture
async def sharing(tmp_path: Path) -> AsyncIterator[Bench]:
    """A device B whose stages 1 and 3 both read what D makes; stage 3 reads of C, too."""
    b = Builder(np.random.default_rng(5), "float32")
    made_by_d = b.conv(b.input(1, 4, 4, 2), 2)
    model = Model(b.graph(b.add(b.conv(b.conv(made_by_d, 2), 2), made_by_d)), tmp_path)
    async with _running(model) as made:
        await made.serve(pipeline([D, B, C, B], [(0, 0), (1, 1), (2, 2), (3, 3)], digest=model.digest))
        yield made


@asynccontextmanager
async def _running(model: Model) -> AsyncIterator[Bench]:
    """A bench that keeps time."""
    engine = Engine()
    made = Bench(model, engine)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.plane.run())
        yield made
        running.cancel()
    await engine.close()


async def test_whole_input_runs_and_goes_on_to_the_next_stage(bench: Bench) -> None:
    """Both slices receipted, the shard run, its output sent to C with the attempt's header, C watched."""
    await bench.serve()
    assert bench.bring(D, *bench.slice(bench.fed))
    assert bench.plane.in_flight(bench.plan.epoch) == 1
    assert bench.bring(A, *bench.slice(bench.late, source=-1))
    await until(lambda: bool(bench.tap.sent))
    (to, header, payload), *more = bench.tap.sent
    assert (to, header.stage, header.source_stage, header.origin, more) == (C, 2, 1, A, [])
    assert [time.stage for time in header.times] == [1]
    assert header.times[0].bytes_in == 2 * len(payload)
    receipts = [(device, told.source_stage) for device, told in bench.tap.said if isinstance(told, Receipt)]
    assert receipts == [(D, 0), (A, -1)]
    assert bench.tap.expected[C] == 1
    bench.plane.on_message(C, life(C), Receipt("r1", 1, 2, 0, 1, 0))
    assert bench.tap.expected[C] == 0
    await until(lambda: bench.plane.in_flight(bench.plan.epoch) == 0)


async def test_inputs_are_given_back_while_the_outputs_wait_for_a_slow_link(bench: Bench) -> None:
    """The shard has run, its output does not leave: the memory of its inputs is free, its place is not."""
    await bench.serve()
    bench.tap.slow.clear()
    assembly = bench.plane._pipeline.assembly
    bench.bring(D, *bench.slice(bench.fed))
    assert assembly.held_bytes > 0
    bench.bring(A, *bench.slice(bench.late, source=-1))
    await until(lambda: bench.tap.expected[C] == 1)
    assert (assembly.held_bytes, bench.plane.in_flight(bench.plan.epoch)) == (0, 1)
    bench.tap.slow.set()
    await until(lambda: bench.plane.in_flight(bench.plan.epoch) == 0)


async def test_receiver_that_cannot_be_reached_is_named(bench: Bench) -> None:
    """The link to C breaks while sending: the origin hears of C, and nothing is watched any more."""
    await bench.serve()
    bench.tap.broken = {C}
    bench.bring(D, *bench.slice(bench.fed))
    bench.bring(A, *bench.slice(bench.late, source=-1))
    await until(lambda: bool(bench.tap.failures()))
    assert bench.tap.failures() == [(A, "peer_error", C)]
    assert bench.tap.expected[C] == 0


async def test_slice_of_an_unknown_epoch_is_refused_with_the_newest(bench: Bench) -> None:
    """Neither admitted nor kept; the origin hears which epoch is known, the sender gets its receipt."""
    await bench.serve()
    header, payload = bench.slice(bench.fed, epoch=Epoch(9, C, 9))
    assert not bench.bring(D, header, payload)
    (to, failed), (sender, receipt) = bench.tap.said
    assert isinstance(failed, Failed)
    assert isinstance(receipt, Receipt)
    assert (to, sender, failed.code, failed.newest) == (A, D, "stale_epoch_error", bench.plan.epoch)


async def test_slice_for_an_earlier_life_is_refused(bench: Bench) -> None:
    """A plan made for another boot of this device is stale here, although its shard is loaded."""
    await bench.serve(pipeline([D, B, C], [(0, 0), (1, 1), (2, 2)], digest=bench.model.digest, lives={B: boot(7)}))
    assert not bench.bring(D, *bench.slice(bench.fed))
    assert bench.tap.failures() == [(A, "stale_epoch_error", "")]


@pytest.mark.parametrize(("sender", "life_of"), [(C, C), (D, C)], ids=["device", "life"])
async def test_slice_from_somebody_else_is_dropped(bench: Bench, sender: DeviceId, life_of: DeviceId) -> None:
    """Only the shard of the plan, in its life, may send what that shard makes."""
    await bench.serve()
    bench.bring(sender, *bench.slice(bench.fed), life(life_of))
    assert bench.plane.in_flight(bench.plan.epoch) == 0


async def test_newer_attempt_supersedes_the_older_one(bench: Bench) -> None:
    """The slices of attempt 2 free what attempt 1 had collected, also where the Cancel was lost."""
    await bench.serve()
    bench.bring(D, *bench.slice(bench.fed, attempt=1))
    bench.bring(D, *bench.slice(bench.fed, attempt=2))
    assert bench.plane.in_flight(bench.plan.epoch) == 1
    assert not bench.bring(A, *bench.slice(bench.late, source=-1, attempt=1))
    assert bench.bring(A, *bench.slice(bench.late, source=-1, attempt=2))
    await until(lambda: bool(bench.tap.sent))
    assert bench.tap.sent[0][1].attempt == 2


async def test_cancel_frees_what_is_collected_and_what_is_watched(bench: Bench) -> None:
    """Only the origin's own requests, up to the attempt it names."""
    await bench.serve()
    bench.bring(D, *bench.slice(bench.fed))
    bench.plane.on_message(C, life(C), Cancel("r1", 1))
    assert bench.plane.in_flight(bench.plan.epoch) == 1
    bench.bring(A, *bench.slice(bench.late, source=-1))
    await until(lambda: bench.tap.expected[C] == 1)
    bench.plane.on_message(A, life(A), Cancel("r1", 0))
    assert bench.tap.expected[C] == 1
    bench.plane.on_message(A, life(A), Cancel("r1", 1))
    assert bench.tap.expected[C] == 0


async def test_retired_plan_tells_the_origins_of_what_waits(bench: Bench) -> None:
    """When a plan is dropped its half-collected attempts end, and their origins know at once."""
    await bench.serve()
    bench.bring(D, *bench.slice(bench.fed))
    bench.shelf.active = {}
    bench.plane.on_plans_changed()
    assert bench.tap.failures() == [(A, "stale_epoch_error", "")]
    assert bench.plane.in_flight(bench.plan.epoch) == 0


async def test_restarted_origin_loses_what_its_former_life_began(bench: Bench) -> None:
    """HELLO from the origin's next life frees the slots of the last one; HELLO from the same life frees nothing."""
    await bench.serve()
    bench.plane.on_linked(A, life(A))
    bench.bring(D, *bench.slice(bench.fed))
    bench.plane.on_linked(A, life(A))
    assert bench.plane.in_flight(bench.plan.epoch) == 1
    bench.plane.on_linked(A, boot(7))
    assert bench.plane.in_flight(bench.plan.epoch) == 0


async def test_full_window_is_busy(bench: Bench) -> None:
    """The plan's window is the bound; the attempt beyond it is refused by name, those inside go on."""
    await bench.serve()
    limit = bench.plan.window
    taken = [bench.bring(D, *bench.slice(bench.fed, request=f"r{number}")) for number in range(limit + 1)]
    assert taken == [True] * limit + [False]
    assert bench.tap.failures() == [(A, "busy_error", "")]


async def test_answer_under_another_choice_of_groups_is_not_taken(bench: Bench) -> None:
    """An answer's slice counts only for the lane and groups that its attempt was sent with."""
    await bench.serve(pipeline([C], [(0, 2)], digest=bench.model.digest))
    asking = asyncio.create_task(bench.plane.ask("cat", bench.model.inputs(1), 30.0))
    await until(lambda: bool(bench.tap.sent))
    sent = bench.tap.sent[0][1]
    passage = Passage(sent.request, sent.attempt, "cat", sent.epoch, B, life(B), sent.lane, sent.groups)
    output = bench.model.card.outputs[0]
    array: Array = np.ones(output.shape, np.float32)
    parcel = Parcel(1, 0, (Piece(output.index, whole(output.shape), array),))
    right = header_of(passage, parcel, (0, 0), 1000, ())
    payload = memoryview(b"".join(buffers_of(parcel)))
    for wrong in ({"groups": (1,)}, {"lane": 1}, {"attempt": 2}, {"origin_boot": boot(7)}, {"request": "r9"}):
        assert not bench.bring(C, msgspec.structs.replace(right, **wrong), payload)
    bench.bring(D, right, payload)
    assert not asking.done()
    assert bench.bring(C, right, payload)
    assert np.array_equal((await asking).outputs[output.index], array)
    assert bench.tap.expected[C] == 0


async def test_what_is_no_message_of_the_data_plane_is_left_to_others(bench: Bench) -> None:
    """Other messages are not taken, other headers not admitted; a stray Failed or Receipt does nothing."""
    other = Epoch(1, A, 1)
    assert not bench.plane.on_message(A, life(A), other)
    assert not bench.plane.admit(A, other, 10)
    assert bench.plane.on_message(A, life(A), Failed("r9", 1, 0, "peer_error", "told", C))
    assert bench.plane.on_message(A, life(A), Receipt("r9", 1, 0, 0, 0, 0))
    assert bench.tap.said == []


async def test_payload_over_the_limit_is_not_read(bench: Bench) -> None:
    """Whatever its header says, nothing larger than the bound is admitted."""
    await bench.serve()
    header, _ = bench.slice(bench.fed)
    assert not bench.plane.admit(D, header, Limits().payload_bytes + 1)


def behind(bench: Bench) -> int:
    """The tensor that C makes for stage 3."""
    return bench.model.card.operators[2].outputs[0]


async def test_one_parcel_feeds_both_stages_and_counts_once(sharing: Bench) -> None:
    """Stage 1 runs at once, stage 3 when C's part is there too; one receipt, and D's bytes count with stage 1."""
    header, payload = sharing.slice(sharing.fed)
    assert sharing.bring(D, header, payload)
    assert sharing.plane.in_flight(sharing.plan.epoch) == 2
    await until(lambda: bool(sharing.tap.sent))
    assert (sharing.tap.sent[0][0], sharing.tap.sent[0][1].stage) == (C, 2)
    assert sharing.bring(C, *sharing.slice(behind(sharing), source=2, stage=3))
    await until(lambda: len(sharing.tap.sent) == 2)
    to, answer, _ = sharing.tap.sent[1]
    assert (to, answer.stage, answer.source_stage) == (A, 4, 3)
    assert [(time.stage, time.bytes_in) for time in answer.times] == [(3, payload.nbytes)]
    assert [(time.stage, time.bytes_in) for time in sharing.tap.sent[0][1].times] == [(1, payload.nbytes)]
    assert [device for device, told in sharing.tap.said if isinstance(told, Receipt)] == [D, C]
    await until(lambda: sharing.plane.in_flight(sharing.plan.epoch) == 0)
    assert sharing.plane._pipeline.assembly.held_bytes == 0


async def test_a_shared_parcel_that_comes_twice_is_not_read_again(sharing: Bench) -> None:
    """While the second reader waits, and after it has run: nobody wants it, and the sender hears so."""
    assert sharing.bring(D, *sharing.slice(sharing.fed))
    assert not sharing.bring(D, *sharing.slice(sharing.fed))
    await until(lambda: bool(sharing.tap.sent))
    assert sharing.bring(C, *sharing.slice(behind(sharing), source=2, stage=3))
    await until(lambda: len(sharing.tap.sent) == 2)
    assert not sharing.bring(D, *sharing.slice(sharing.fed))
    assert not sharing.bring(C, *sharing.slice(behind(sharing), source=2, stage=3))
    assert len(sharing.tap.sent) == 2
    assert len([told for _, told in sharing.tap.said if isinstance(told, Receipt)]) == 5
    assert sharing.tap.failures() == []


async def test_cancel_frees_every_reader_of_a_parcel(sharing: Bench) -> None:
    """The attempt is over for stage 3 as well: what C still sends is not read, and no failure is reported."""
    sharing.bring(D, *sharing.slice(sharing.fed))
    await until(lambda: bool(sharing.tap.sent))
    sharing.plane.on_message(A, life(A), Cancel("r1", 1))
    await until(lambda: sharing.plane.in_flight(sharing.plan.epoch) == 0)
    assert sharing.plane._pipeline.assembly.held_bytes == 0
    assert not sharing.bring(C, *sharing.slice(behind(sharing), source=2, stage=3))
    assert not sharing.bring(D, *sharing.slice(sharing.fed))
    assert sharing.tap.failures() == []


async def test_a_later_attempt_replaces_an_older_one_in_every_reader(sharing: Bench) -> None:
    """Attempt 2's parcel frees what attempt 1 left in stage 3; a late slice of attempt 1 meets nothing."""
    sharing.bring(D, *sharing.slice(sharing.fed, attempt=1))
    await until(lambda: bool(sharing.tap.sent))
    assert sharing.bring(D, *sharing.slice(sharing.fed, attempt=2))
    await until(lambda: len(sharing.tap.sent) == 2)
    assert not sharing.bring(C, *sharing.slice(behind(sharing), source=2, stage=3, attempt=1))
    assert not sharing.bring(D, *sharing.slice(sharing.fed, attempt=1))
    assert sharing.bring(C, *sharing.slice(behind(sharing), source=2, stage=3, attempt=2))
    await until(lambda: len(sharing.tap.sent) == 3)
    assert (sharing.tap.sent[2][1].stage, sharing.tap.sent[2][1].attempt) == (4, 2)


async def test_a_parcel_under_an_address_that_the_plan_does_not_use_is_refused(sharing: Bench) -> None:
    """D sends nothing to stage 3 itself: its bytes come with stage 1's parcel. Nothing is read, nobody is accused."""
    for address, source in ((3, 0), (3, 1), (2, 0), (4, 0), (9, 0), (-1, 0), (1, 2)):
        assert not sharing.bring(D, *sharing.slice(sharing.fed, stage=address, source=source))
    assert sharing.plane.in_flight(sharing.plan.epoch) == 0
    assert sharing.tap.failures() == []


async def test_a_shared_parcel_needs_room_in_every_reader(sharing: Bench) -> None:
    """Stage 1 runs and is free again, stage 3 waits for C: when its window is full the next parcel is turned away."""
    for number in range(sharing.plan.window):
        assert sharing.bring(D, *sharing.slice(sharing.fed, request=f"r{number}"))
    await until(lambda: len(sharing.tap.sent) == sharing.plan.window)
    await until(lambda: sharing.plane.in_flight(sharing.plan.epoch) == sharing.plan.window)
    assert not sharing.bring(D, *sharing.slice(sharing.fed, request="late"))
    assert sharing.tap.failures() == [(A, "busy_error", "")]
    sharing.plane.on_message(A, life(A), Cancel("r0", 1))
    assert sharing.bring(D, *sharing.slice(sharing.fed, request="later"))
