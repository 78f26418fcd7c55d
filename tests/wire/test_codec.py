"""The codec: what is sent comes back; nothing else gets through, and nothing unbounded is decoded."""

from __future__ import annotations

from typing import Annotated, get_args

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from meshnn.cluster import messages as cluster
from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.plan.messages import Activate
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Shard, Stage
from meshnn.wire.codec import DEPTH_LIMIT, ITEMS_LIMIT, MESSAGE_LIMIT_BYTES, Codec, Scan, Unknown, load


class Inner(msgspec.Struct, frozen=True, array_like=True, tag="inner"):
    """A part of another shape and tag."""

    ratio: float


class Letter(msgspec.Struct, frozen=True, tag=True):
    """A message with one field of each kind."""

    number: Annotated[int, Meta(ge=0)]
    text: str = ""
    raw: bytes = b""
    inner: Inner | None = None
    numbers: tuple[int, ...] = ()
    table: dict[str, bool] = {}


class Plain(msgspec.Struct, frozen=True):
    """A message without a tag of its own."""

    type: int


class Tuple(msgspec.Struct, frozen=True, array_like=True, tag="tuple"):
    """A message that is an array."""

    first: int
    second: str


CODEC = Codec((Letter, Plain, Tuple))
letters = st.builds(
    Letter,
    number=st.integers(0, 2**63 - 1),
    text=st.text(max_size=40),
    raw=st.binary(max_size=40),
    inner=st.none() | st.builds(Inner, ratio=st.floats(allow_nan=False, allow_infinity=False)),
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30).map(tuple),
    table=st.dictionaries(st.text(max_size=10), st.booleans(), max_size=5),
)


@given(message=letters | st.builds(Plain, type=st.integers(-5, 5)) | st.builds(Tuple, st.integers(0, 9), st.text()))
def test_what_is_sent_comes_back(message: msgspec.Struct) -> None:
    """Every message survives the wire unchanged, whatever its fields hold."""
    assert CODEC.decode(CODEC.encode(message)) == message


@settings(max_examples=500)
@given(data=st.binary(max_size=200))
def test_garbage_only_ever_raises_peer_error(data: bytes) -> None:
    """No bytes whatever bring out another exception than PeerError."""
    try:
        CODEC.decode(data)
    except PeerError:
        return


@settings(max_examples=500)
@given(message=letters, data=st.data())
def test_damaged_messages_only_ever_raise_peer_error(message: Letter, data: st.DataObject) -> None:
    """A few changed bytes of a good message never do worse than PeerError."""
    damaged = bytearray(CODEC.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        CODEC.decode(damaged)
    except PeerError:
        return


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@given(value=json_like)
def test_the_scan_lets_through_all_plain_data(value: object) -> None:
    """Whatever the library writes of plain builtins, the scan accepts and the decoder gives back."""
    assert load(cbor2.dumps(value)) == value


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "too early"),
        (b"\x82", "too early"),
        (b"\x63ab", "too early"),
        (b"\xfb\x00", "too early"),
        (b"\x19\x01", "too early"),
        (cbor2.dumps([1]) + b"\x00", "follow"),
        (b"\x9f\x01\xff", "indefinite"),
        (b"\x5f\x41a\xff", "indefinite"),
        (b"\xa2\x61a\x01\x61a\x02", "twice"),
        (b"\xa1\x18\x01\x00", "shortest"),
        (b"\xa1\x80\x01", "key"),
        (b"\xa1\xf9\x7e\x00\x01", "key"),
        (b"\xa1\xf6\x01", "key"),
        (cbor2.dumps(2**70), "tag"),
        (b"\xd8\x1c\x80", "tag"),
        (b"\xd9\xd9\xf7\x00", "tag"),
        (b"\xf9\x7e\x00", "finite"),
        (b"\xf9\xfc\x00", "finite"),
        (b"\xfa\x7f\x80\x00\x00", "finite"),
        (b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00", "finite"),
        (b"\xf7", "neither"),
        (b"\xe5", "neither"),
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "too early"),
        (b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff", "too early"),
        (b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "too early"),
        (b"\x81" * (DEPTH_LIMIT + 1) + b"\x00", "deeper"),
    ],
)
def test_each_bound_is_kept(data: bytes, fault: str) -> None:
    """Each thing that CBOR can say and we do not take is refused by its name, before the decoder runs."""
    with pytest.raises(PeerError, match=fault):
        Scan(data).run()
    with pytest.raises(PeerError, match=fault):
        CODEC.decode(data)


def test_nesting_to_the_limit_passes() -> None:
    """The depth limit itself is allowed: one less than what is refused."""
    Scan(b"\x81" * DEPTH_LIMIT + b"\x00").run()


def test_few_bytes_cannot_announce_many_items() -> None:
    """Empty maps by the hundred thousand are refused: they would cost 64 times their bytes."""
    data = b"\x9a" + (ITEMS_LIMIT + 1).to_bytes(4, "big") + b"\xa0" * (ITEMS_LIMIT + 1)
    with pytest.raises(PeerError, match="items"):
        load(data)


def test_a_message_too_large_is_refused_both_ways() -> None:
    """Over 512 KiB nothing is sent and nothing is looked at."""
    with pytest.raises(PeerError, match="exceeds"):
        CODEC.encode(Letter(1, raw=bytes(MESSAGE_LIMIT_BYTES)))
    with pytest.raises(PeerError, match="exceeds"):
        CODEC.decode(bytes(MESSAGE_LIMIT_BYTES + 1))


@pytest.mark.parametrize(
    "value",
    [
        5,
        ["Letter"],
        ["Letter", {"number": 1}, 3],
        [7, {"number": 1}],
        ["Letter", {}],
        ["Letter", {"number": "1"}],
        ["Letter", {"number": -1}],
        ["Letter", {"number": True}],
        ["Letter", [1]],
        ["Letter", {"number": 1, "raw": "text"}],
        ["Tuple", {"first": 1}],
        ["Tuple", ["letter", 1, "x"]],
        ["x" * 65, {}],
    ],
)
def test_the_schema_is_closed(value: object) -> None:
    """Anything but the array of tag and well-typed fields is refused."""
    with pytest.raises(PeerError):
        CODEC.decode(cbor2.dumps(value))


def test_the_deepest_message_passes() -> None:
    """A plan with its contingencies, deep inside the message that activates it, is within the depth limit."""
    boot, device = BootId("0" * 16), DeviceId("a" * 26)
    shard = Shard(device, boot)
    epoch = Epoch(1, device, 1)
    plan = Plan(epoch, "model", "f" * 64, (Lane((Stage(0, 3, (Group((shard,)),)),)),))
    message = Activate(PlanSet(plan, (plan,)), (epoch,))
    codec = Codec((Activate,))
    assert codec.decode(codec.encode(message)) == message


def test_messages_of_a_newer_version_are_told_apart() -> None:
    """An unknown tag is no error but `Unknown`; an unknown field of a known message is ignored."""
    assert CODEC.decode(cbor2.dumps(["Telepathy", {"x": 1}])) == Unknown("Telepathy")
    assert CODEC.decode(cbor2.dumps(["Plain", {"type": 4, "later": [1, 2]}])) == Plain(4)


def test_parts_of_a_newer_version_are_left_out_and_the_rest_is_heard() -> None:
    """A rumour of a type to come does not take the ping it rides on with it; trailing fields to come neither."""
    codec = Codec(get_args(cluster.Message))
    suspect = cluster.Suspect(DeviceId("a" * 26), 5, DeviceId("b" * 26))
    ping = cluster.Ping(7, BootId("1" * 16), (suspect,))
    tag, (kind, number, boot, rumours) = cbor2.loads(codec.encode(ping))
    newer = [["weather", {"rain": True}], *rumours, ["tide", 3]]
    assert codec.decode(cbor2.dumps([tag, [kind, number, boot, newer, "a field to come"]])) == ping
    told = [[*rumours[0], "a field to come"]]
    assert codec.decode(cbor2.dumps([tag, [kind, number, boot, told]])) == ping


def test_parts_that_are_none_are_refused() -> None:
    """What is no part of any version, or a known one out of its bounds, costs the message."""
    codec = Codec(get_args(cluster.Message))
    wrong: tuple[list[object], ...] = ([5], [[]], [[3, "x"]], [["suspect"]], [["suspect", "x", 1, "y"]], ["suspect"])
    for bad in wrong:
        with pytest.raises(PeerError):
            codec.decode(cbor2.dumps(["Gossip", ["gossip", bad]]))


def test_a_refusal_never_quotes_the_peer_raw() -> None:
    """Control characters and long texts of a peer do not reach a log line."""

    class Choice(msgspec.Struct, frozen=True):
        kind: Annotated[str, Meta(pattern="^a$")]

    with pytest.raises(PeerError) as caught:
        Codec((Choice,)).decode(cbor2.dumps(["Choice", {"kind": "\x1b[31m\n" * 500}]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_what_cannot_travel_is_a_programmer_error() -> None:
    """A foreign type, or a number that is not finite, is a ValueError at the sender, never a refusal at the peer."""
    with pytest.raises(ValueError, match="no message type"):
        CODEC.encode(Inner(1.0))
    with pytest.raises(ValueError, match="finite"):
        CODEC.encode(Letter(1, inner=Inner(float("nan"))))


def test_two_types_of_one_name_cannot_share_a_codec() -> None:
    """A tag means one type."""
    other = msgspec.defstruct("Letter", [])
    with pytest.raises(ValueError, match="named Letter"):
        Codec((Letter, other))
