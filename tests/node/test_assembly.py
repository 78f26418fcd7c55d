"""The assembly: slices in any order become whole inputs, once, within bounds; what is over frees what it held."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn.errors import BusyError, PeerError
from meshnn.node.assembly import PLACES, REMEMBER_LIMIT, Assembly, Complete, Key
from meshnn.node.inputs import Arrival, Target
from meshnn.node.slices import Array, Passage, Piece
from meshnn.plan.boxes import Box, whole
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch
from meshnn.plan.routes import ORIGIN, Need, Source
from meshnn.plan.shipments import At
from tests.node.shelf import A, B, C, life

LIMIT_BYTES = 1_000_000
SHAPE = (1, 4, 6, 2)
WHOLE = np.arange(48, dtype=np.float32).reshape(SHAPE)


def passage(request: str = "r1", attempt: int = 1) -> Passage:
    """An attempt of device A."""
    return Passage(request, attempt, "cat", Epoch(1, A, 1), A, life(A), 0, (0, 0))


def key(request: str = "r1", attempt: int = 1, stage: int = 1) -> Key:
    """The inputs of shard (stage, 0)."""
    return Key(passage(request, attempt), stage, 0)


# The shard that all keys here are for: every parcel is addressed to it unless a test says otherwise.
HERE: At = (1, 0)


def target(*needs: Need, limit: int = 4, dtype: str = "float32") -> Target:
    """What these needs say, each source's pieces in one parcel; a window of `limit`."""
    owed: dict[tuple[At, At], tuple[tuple[int, Box], ...]] = {}
    for need in needs:
        for one_source in need.sources:
            way = ((one_source.stage, one_source.part), HERE)
            owed[way] = (*owed.get(way, ()), (need.tensor, one_source.box))
    return Target(needs, {need.tensor: dtype for need in needs}, owed or {((ORIGIN, 0), HERE): ()}, limit)


def one(tensor: int = 7, source: tuple[int, int] = (0, 0)) -> Need:
    """A whole tensor from one shard."""
    return Need(tensor, whole(SHAPE), (Source(*source, whole(SHAPE)),))


def rows(*edges: int, tensor: int = 7) -> Need:
    """A whole tensor in bands of rows, one from each part of stage 0."""
    bands = [((0, 1), (low, high), (0, 6), (0, 2)) for low, high in itertools.pairwise(edges)]
    return Need(tensor, whole(SHAPE), tuple(Source(0, part, band) for part, band in enumerate(bands)))


def cut(need: Need, part: int, array: Array = WHOLE) -> Arrival:
    """What part `part` of stage 0 sends for a need."""
    boxes = [source.box for source in need.sources if (source.stage, source.part) == (0, part)]
    pieces = tuple(Piece(need.tensor, box, array[tuple(slice(*extent) for extent in box)]) for box in boxes)
    return Arrival((0, part), HERE, pieces, sum(piece.array.nbytes for piece in pieces))


def test_single_slice_is_used_where_it_was_received() -> None:
    """One slice that is the whole tensor is not copied."""
    assembly = Assembly(LIMIT_BYTES)
    done = assembly.add(key(), target(one()), cut(one(), 0), 10.0, 0.0)
    assert isinstance(done, Complete)
    assert np.shares_memory(done.tensors[7], WHOLE)
    assert (done.received_bytes, done.deadline) == (WHOLE.nbytes, 10.0)


def test_bands_are_placed_by_their_boxes() -> None:
    """Two bands in the wrong order make the tensor; before the second nothing fires."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 1, 4)
    assert assembly.add(key(), target(need), cut(need, 1), 10.0, 0.0) is None
    done = assembly.add(key(), target(need), cut(need, 0), 10.0, 0.0)
    assert done is not None
    assert np.array_equal(done.tensors[7], WHOLE)


def test_need_may_be_a_part_of_the_tensor() -> None:
    """A need that begins inside the whole tensor is filled relative to its own corner."""
    box: Box = ((0, 1), (1, 3), (0, 6), (0, 2))
    halves = (((0, 1), (1, 2), (0, 6), (0, 2)), ((0, 1), (2, 3), (0, 6), (0, 2)))
    need = Need(7, box, (Source(0, 0, halves[0]), Source(0, 1, halves[1])))
    assembly = Assembly(LIMIT_BYTES)
    assembly.add(key(), target(need), cut(need, 0), 10.0, 0.0)
    done = assembly.add(key(), target(need), cut(need, 1), 10.0, 0.0)
    assert done is not None
    assert np.array_equal(done.tensors[7], WHOLE[:, 1:3])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_sums_are_added_in_shard_order(order: tuple[int, ...]) -> None:
    """Partial sums give the same bytes in whatever order they arrive."""
    need = Need(7, ((0, 3),), tuple(Source(0, part, ((0, 3),)) for part in range(3)), sums=True)
    addends = [np.array([1e8, 1.0, 3.0], np.float32), np.array([1.0, -1e8, 3.0], np.float32)]
    addends.append(np.array([-1e8, 1e8, 3.0], np.float32))
    assembly, done = Assembly(LIMIT_BYTES), None
    for part in order:
        arrival = Arrival((0, part), HERE, (Piece(7, ((0, 3),), addends[part]),))
        done = assembly.add(key(), target(need), arrival, 10.0, 0.0)
    assert done is not None
    assert done.tensors[7].tobytes() == ((addends[0] + addends[1]) + addends[2]).tobytes()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_addends_are_added_as_soon_as_their_turn_comes(order: tuple[int, ...]) -> None:
    """All addends may have to wait, so all are paid for; once added they take the room of one tensor."""
    need = Need(7, whole(SHAPE), tuple(Source(0, part, whole(SHAPE)) for part in range(4)), sums=True)
    assembly, done = Assembly(4 * WHOLE.nbytes), None
    assert not Assembly(4 * WHOLE.nbytes - 1).has_room(key(), target(need))
    for part in order:
        assert assembly.has_room(key(), target(need))
        done = assembly.add(key(), target(need), cut(need, part), 10.0, 0.0)
        assert assembly.held_bytes == (WHOLE.nbytes if done else 4 * WHOLE.nbytes)
    assert done is not None
    assert np.array_equal(done.tensors[7], 4 * WHOLE)
    assembly.finish(key())
    assert assembly.held_bytes == 0


@pytest.mark.parametrize("activation", ["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])
def test_the_activation_is_applied_once_to_the_sum(activation: str) -> None:
    """Addends of both signs: the sum is cut off, no addend is, and what was received stays as it was."""
    limits = {"NONE": (None, None), "RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}[activation]
    need = Need(7, ((0, 4),), (Source(0, 0, ((0, 4),)), Source(0, 1, ((0, 4),))), sums=True, activation=activation)
    addends = [np.array([-9, 8, -3, 0.5], np.float32), np.array([10, -3, 1, 0.25], np.float32)]
    kept = [addend.copy() for addend in addends]
    assembly, done = Assembly(LIMIT_BYTES), None
    for part in (1, 0):
        done = assembly.add(
            key(), target(need), Arrival((0, part), HERE, (Piece(7, ((0, 4),), addends[part]),)), 10.0, 0.0
        )
    assert done is not None
    assert np.array_equal(done.tensors[7], np.clip(addends[0] + addends[1], *limits))
    assert all(np.array_equal(one, other) for one, other in zip(addends, kept, strict=True))


def test_several_tensors_from_several_stages() -> None:
    """A shard fires when all of its tensors are whole, a skip from further back included."""
    needs = (one(7, (0, 0)), one(3, (ORIGIN, 0)))
    assembly = Assembly(LIMIT_BYTES)
    assert assembly.add(key(), target(*needs), cut(needs[0], 0), 10.0, 0.0) is None
    late = Arrival((ORIGIN, 0), HERE, (Piece(3, whole(SHAPE), WHOLE),))
    done = assembly.add(key(), target(*needs), late, 10.0, 0.0)
    assert done is not None
    assert sorted(done.tensors) == [3, 7]


def test_shard_that_reads_nothing_fires_when_the_origin_says_so() -> None:
    """Without needs an empty slice from the origin is the whole input."""
    done = Assembly(LIMIT_BYTES).add(key(), target(), Arrival((ORIGIN, 0), HERE, ()), 10.0, 0.0)
    assert done is not None
    assert done.tensors == {}


def test_duplicates_are_dropped_before_and_after_firing() -> None:
    """The same slice twice neither fires twice nor counts twice."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    for _ in range(2):
        assert assembly.add(key(), target(need), cut(need, 0), 10.0, 0.0) is None
    held = assembly.held_bytes
    assert assembly.add(key(), target(need), cut(need, 1), 10.0, 0.0) is not None
    assert assembly.add(key(), target(need), cut(need, 1), 10.0, 0.0) is None
    assembly.finish(key())
    assert assembly.add(key(), target(need), cut(need, 1), 10.0, 0.0) is None
    assert (held, assembly.held_bytes) == (WHOLE.nbytes, 0)


def test_times_of_all_branches_are_kept_once() -> None:
    """What earlier stages took comes along every branch; each shard stands once in the answer."""
    first, second = StageTime(0, 0, B, 1.0, 5), StageTime(0, 1, C, 2.0, 5)
    need = rows(0, 2, 4)
    assembly = Assembly(LIMIT_BYTES)
    assembly.add(key(), target(need), dataclasses.replace(cut(need, 1), times=(first, second)), 10.0, 0.0)
    done = assembly.add(key(), target(need), dataclasses.replace(cut(need, 0), times=(first,)), 10.0, 0.0)
    assert done is not None
    assert done.times == (first, second)


def test_cancel_frees_and_what_comes_later_is_dropped() -> None:
    """A cancelled attempt gives its bytes back at once; its late slices find nothing to join."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    assembly.add(key(), target(need), cut(need, 0), 10.0, 0.0)
    assembly.cancel(A, "r1", 1, 0.0)
    assert (assembly.held_bytes, assembly.keys, assembly.in_flight(Epoch(1, A, 1))) == (0, (), 0)
    assert assembly.add(key(), target(need), cut(need, 1), 10.0, 0.0) is None
    assert assembly.superseded(key())
    assert not assembly.superseded(key(attempt=2))
    assert assembly.add(key(attempt=2), target(one()), cut(one(), 0), 10.0, 0.0) is not None


def test_cancel_concerns_one_request_of_one_origin() -> None:
    """Another origin's request of the same name, and another request, go on."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    assembly.add(key("r2"), target(need), cut(need, 0), 10.0, 0.0)
    assembly.cancel(B, "r2", 9, 0.0)
    assembly.cancel(A, "r1", 9, 0.0)
    assert assembly.add(key("r2"), target(need), cut(need, 1), 10.0, 0.0) is not None


def test_what_runs_keeps_its_memory_and_what_waits_for_its_run_does_not() -> None:
    """A cancelled attempt is gone at once, arrays and all, unless the engine has it: then it stays until its end."""
    assembly = Assembly(LIMIT_BYTES)
    waiting = assembly.add(key("r1"), target(one()), cut(one(), 0), 10.0, 0.0)
    assembly.add(key("r2"), target(one()), cut(one(), 0), 10.0, 0.0)
    assert assembly.begin(key("r2"))
    assembly.cancel(A, "r1", 1, 0.0)
    assembly.cancel(A, "r2", 1, 0.0)
    assert waiting is not None
    assert not waiting.tensors
    assert not assembly.begin(key("r1"))
    assert (assembly.keys, assembly.held_bytes) == ((key("r2"),), WHOLE.nbytes)
    for _ in range(2):
        assembly.finish(key("r2"))
    assert (assembly.keys, assembly.held_bytes) == ((), 0)


def test_inputs_that_were_run_are_given_back_before_the_outputs_have_left() -> None:
    """`spend` frees the memory, once, and makes room for the next; the place is free after `finish`."""
    assembly = Assembly(LIMIT_BYTES)
    done = assembly.add(key("r1"), target(one(), limit=1), cut(one(), 0), 10.0, 0.0)
    assert done is not None
    assert assembly.begin(key("r1"))
    for _ in range(2):
        assembly.spend(key("r1"))
    assert (assembly.held_bytes, assembly.in_flight(Epoch(1, A, 1)), dict(done.tensors)) == (0, 1, {})
    assert assembly.add(key("r2"), target(one(), limit=1), cut(one(), 0), 10.0, 0.0) is not None
    assembly.finish(key("r1"))
    assert (assembly.held_bytes, assembly.in_flight(Epoch(1, A, 1))) == (WHOLE.nbytes, 1)


def test_window_is_kept_and_freed() -> None:
    """No more input sets with memory than the window; one that has run makes room."""
    assembly = Assembly(LIMIT_BYTES)
    assert assembly.add(key("r1"), target(one(), limit=1), cut(one(), 0), 10.0, 0.0) is not None
    with pytest.raises(BusyError):
        assembly.add(key("r2"), target(one(), limit=1), cut(one(), 0), 10.0, 0.0)
    assembly.finish(key("r1"))
    assert assembly.add(key("r2"), target(one(), limit=1), cut(one(), 0), 10.0, 0.0) is not None


def test_what_has_run_and_was_not_handed_on_is_bounded_too() -> None:
    """Outputs that wait for a slow link hold places: twice the window of them, then the next is turned away."""
    assembly = Assembly(LIMIT_BYTES)
    for number in range(PLACES):
        assert assembly.add(key(f"r{number}"), target(one(), limit=1), cut(one(), 0), 10.0, 0.0) is not None
        assembly.spend(key(f"r{number}"))
    assert not assembly.has_room(key("r9"), target(one(), limit=1))
    assembly.finish(key("r0"))
    assert assembly.has_room(key("r9"), target(one(), limit=1))


def test_a_later_attempt_takes_the_room_of_the_one_it_replaces() -> None:
    """In a full window the successor may come in, also before the cancel: but not in place of what the engine has."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    assembly.add(key(attempt=1), target(need, limit=1), cut(need, 0), 10.0, 0.0)
    assert assembly.has_room(key(attempt=2), target(need, limit=1))
    assert not assembly.has_room(key("r2", attempt=2), target(need, limit=1))
    assembly.add(key(attempt=1), target(need, limit=1), cut(need, 1), 10.0, 0.0)
    assert assembly.has_room(key(attempt=2), target(need, limit=1))
    assembly.begin(key(attempt=1))
    assert not assembly.has_room(key(attempt=2), target(need, limit=1))
    with pytest.raises(BusyError):
        assembly.add(key(attempt=2), target(need, limit=1), cut(need, 0), 10.0, 0.0)


def test_shards_of_one_plan_have_windows_of_their_own() -> None:
    """A full window of one shard is none of another's, and of the same shard under another plan neither."""
    assembly = Assembly(LIMIT_BYTES)
    first, second = (dataclasses.replace(target(one(), limit=1), slot=slot) for slot in ("first", "second"))
    assembly.add(key("r1"), first, cut(one(), 0), 10.0, 0.0)
    assert not assembly.has_room(key("r2"), first)
    assert assembly.has_room(key("r2"), second)
    other = Key(dataclasses.replace(passage("r2"), epoch=Epoch(2, A, 1)), 1, 0)
    assert assembly.has_room(other, first)


def test_second_slice_of_an_attempt_inside_is_taken_in_a_full_window() -> None:
    """The limit counts attempts, not slices: what has begun can complete."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    assembly.add(key(), target(need, limit=1), cut(need, 0), 10.0, 0.0)
    assert assembly.add(key(), target(need, limit=1), cut(need, 1), 10.0, 0.0) is not None


def test_bytes_are_bounded() -> None:
    """Over the limit nothing is placed and nothing counted."""
    assembly = Assembly(WHOLE.nbytes)
    assembly.add(key("r1"), target(one()), cut(one(), 0), 10.0, 0.0)
    with pytest.raises(BusyError):
        assembly.add(key("r2"), target(one()), cut(one(), 0), 10.0, 0.0)
    assert assembly.held_bytes == WHOLE.nbytes
    assert not assembly.has_room(key("r3"), target(one()))
    assert assembly.has_room(key("r3"), target())


def test_tensor_in_bands_is_counted_once() -> None:
    """The buffer that bands are put into is made, and paid for, with the first of them."""
    assembly, need = Assembly(WHOLE.nbytes), rows(0, 1, 2, 4)
    done = [assembly.add(key(), target(need), cut(need, part), 10.0, 0.0) for part in range(3)]
    assert done[2] is not None
    assert assembly.held_bytes == WHOLE.nbytes


def test_cancel_leaves_later_attempts_alone() -> None:
    """Attempts up to the one named are over; the one after it goes on."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    for attempt in (1, 2):
        assembly.add(key(attempt=attempt), target(need), cut(need, 0), 10.0, 0.0)
    assembly.cancel(A, "r1", 1, 0.0)
    assert assembly.collecting == (key(attempt=2),)
    assert assembly.add(key(attempt=2), target(need), cut(need, 1), 10.0, 0.0) is not None


def test_deadline_frees_what_never_completed() -> None:
    """Entries of an origin that died go with their deadline; complete ones are left to `finish`."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    assembly.add(key("r1"), target(need), cut(need, 0), 10.0, 0.0)
    assembly.add(key("r2"), target(one()), cut(one(), 0), 5.0, 0.0)
    assert assembly.deadline == 10.0
    assert assembly.expire(9.9) == ()
    assert assembly.expire(10.0) == (key("r1"),)
    assert (assembly.deadline, assembly.keys) == (math.inf, (key("r2"),))
    assert assembly.add(key("r3"), target(one()), cut(one(), 0), 10.0, 10.0) is None


def test_origins_of_another_life_are_dropped() -> None:
    """What a restarted origin began before is freed."""
    assembly, need = Assembly(LIMIT_BYTES), rows(0, 2, 4)
    assembly.add(key(), target(need), cut(need, 0), 10.0, 0.0)
    assembly.drop_origin(B)
    assert assembly.held_bytes > 0
    assembly.drop_origin(A)
    assert (assembly.keys, assembly.held_bytes) == ((), 0)


def test_memory_of_what_is_over_is_bounded() -> None:
    """Ten thousand cancelled requests are not remembered for ever, nor the old ones after their time."""
    assembly = Assembly(LIMIT_BYTES)
    for number in range(REMEMBER_LIMIT + 10):
        assembly.cancel(A, f"r{number}", 1, 0.0)
    assert not assembly.superseded(key("r0"))
    assert assembly.superseded(key(f"r{REMEMBER_LIMIT + 9}"))
    assembly.cancel(A, "later", 1, 1000.0)
    assert not assembly.superseded(key(f"r{REMEMBER_LIMIT + 9}"))


@pytest.mark.parametrize(
    "arrival",
    [
        Arrival((4, 0), HERE, (Piece(7, whole(SHAPE), WHOLE),)),
        Arrival((0, 0), (2, 0), (Piece(7, whole(SHAPE), WHOLE),)),
        Arrival((0, 0), HERE, ()),
        Arrival((0, 0), HERE, (Piece(8, whole(SHAPE), WHOLE),)),
        Arrival((0, 0), HERE, (Piece(7, whole(SHAPE), WHOLE), Piece(7, whole(SHAPE), WHOLE))),
        Arrival((0, 0), HERE, (Piece(7, ((0, 1), (0, 2), (0, 6), (0, 2)), WHOLE[:, :2]),)),
        Arrival((0, 0), HERE, (Piece(7, whole(SHAPE), WHOLE.astype(np.int8)),)),
        Arrival((0, 0), HERE, (Piece(7, whole(SHAPE), WHOLE.reshape(4, 12)),)),
    ],
    ids=["stranger", "address", "nothing", "tensor", "twice", "box", "dtype", "shape"],
)
def test_slices_that_the_plan_does_not_say_are_refused(arrival: Arrival) -> None:
    """A peer cannot write anywhere but where its own slices belong, and nothing is kept of the attempt to."""
    assembly = Assembly(LIMIT_BYTES)
    with pytest.raises(PeerError):
        assembly.add(key(), target(one()), arrival, 10.0, 0.0)
    assert (assembly.keys, assembly.held_bytes) == ((), 0)


@given(
    st.lists(st.integers(1, 7), max_size=4),
    st.lists(st.integers(1, 4), max_size=3),
    st.randoms(use_true_random=False),
    st.integers(1, 3),
)
def test_any_grid_in_any_order_makes_the_tensor(
    row_cuts: list[int], column_cuts: list[int], order: random.Random, parts: int
) -> None:
    """A tensor cut into any grid, its cells dealt to any parts, arriving in any order with duplicates: every byte."""
    tensor = np.arange(8 * 5 * 3, dtype=np.int16).reshape(8, 5, 3)
    cells = [
        ((low, high), (left, right), (0, 3))
        for low, high in _spans(row_cuts, 8)
        for left, right in _spans(column_cuts, 5)
    ]
    need = Need(7, whole((8, 5, 3)), tuple(Source(0, number % parts, cell) for number, cell in enumerate(cells)))
    arrivals = [cut(need, part, tensor) for part in range(min(parts, len(cells)))] * 2
    order.shuffle(arrivals)
    assembly = Assembly(LIMIT_BYTES)
    fired = [assembly.add(key(), target(need, dtype="int16"), arrival, 10.0, 0.0) for arrival in arrivals]
    whole_ones = [done for done in fired if done is not None]
    assert len(whole_ones) == 1
    assert np.array_equal(whole_ones[0].tensors[7], tensor)
    assert whole_ones[0].received_bytes == tensor.nbytes
    assembly.finish(key())
    assert (assembly.held_bytes, assembly.in_flight(Epoch(1, A, 1))) == (0, 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "cancel", "begin", "spend", "finish", "expire", "drop"]),
        st.integers(0, 3),
        st.integers(1, 3),
        st.integers(0, 1),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_the_books_balance(steps: list[tuple[str, int, int, int]]) -> None:
    """Any order of slices, cancels, finishes and time: bounds hold, nothing fires twice, all is free in the end."""
    assembly, need, now = Assembly(4 * WHOLE.nbytes), rows(0, 2, 4), 0.0
    fired: set[Key] = set()
    for step, request, attempt, part in steps:
        now += 0.1
        slot = key(f"r{request}", attempt)
        if step == "add":
            try:
                if assembly.add(slot, target(need, limit=3), cut(need, part), now + 2.0, now) is not None:
                    assert slot not in fired
                    fired.add(slot)
            except BusyError:
                assert assembly.held_bytes == 3 * WHOLE.nbytes or len(assembly.keys) == PLACES * 3
        elif step == "begin":
            assert assembly.begin(slot) == (slot in assembly.keys and slot not in assembly.collecting)
        elif step == "cancel":
            assembly.cancel(A, f"r{request}", attempt, now)
        elif step == "expire":
            assembly.expire(now)
        else:
            getattr(assembly, step)(slot)
        assert assembly.held_bytes <= 3 * WHOLE.nbytes
        assert len(assembly.keys) <= PLACES * 3
    assembly.expire(now + 10.0)
    for slot in fired:
        assembly.finish(slot)
    assert (assembly.keys, assembly.held_bytes, assembly.in_flight(Epoch(1, A, 1))) == ((), 0, 0)


def _spans(cuts: list[int], size: int) -> list[tuple[int, int]]:
    """The intervals between cuts of an axis."""
    edges = sorted({0, size, *(cut_at for cut_at in cuts if cut_at < size)})
    return list(itertools.pairwise(edges))
