"""Datagrams: the header survives, garbage is refused, a counter counts once."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn.errors import PeerError
from meshnn.wire.datagram import (
    BODY_LIMIT_BYTES,
    HEADER,
    DatagramHeader,
    ReplayWindow,
    Sieve,
    boot_id_bytes,
    counter_of,
    decode_datagram,
    device_id_bytes,
    device_id_text,
    encode_datagram,
    life_of,
)

device_ids = st.binary(min_size=16, max_size=16).filter(any).map(device_id_text)
boot_ids = st.binary(min_size=8, max_size=8).filter(any).map(bytes.hex)
headers = st.builds(
    DatagramHeader,
    mesh_tag=st.binary(min_size=8, max_size=8),
    sender=device_ids,
    boot_id=boot_ids,
    counter=st.integers(0, 2**64 - 1),
    target=st.just("") | device_ids,
    target_boot=st.just("") | boot_ids,
    key_id=st.integers(0, 255),
)
SOMEONE = DatagramHeader(b"12345678", device_id_text(b"a" * 16), "01" * 8, 1)


@given(header=headers, body=st.binary(min_size=1, max_size=BODY_LIMIT_BYTES))
def test_what_is_sent_comes_back(header: DatagramHeader, body: bytes) -> None:
    """Header and body survive the wire unchanged."""
    assert decode_datagram(encode_datagram(header, body)) == (header, body)


@given(data=st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"mD\x01" + tail))
def test_garbage_only_ever_raises_peer_error(data: bytes) -> None:
    """No bytes whatever bring out another exception than PeerError."""
    try:
        decode_datagram(data)
    except PeerError:
        return


@pytest.mark.parametrize("data", [b"", b"m", b"mD\x01", bytes(200), b"mD\x02" + bytes(100), bytes(1400)])
def test_what_is_no_datagram_of_ours_is_refused(data: bytes) -> None:
    """Wrong magic, wrong version, too short, too long."""
    with pytest.raises(PeerError):
        decode_datagram(data)


def test_a_datagram_without_a_body_is_refused() -> None:
    """A bare header says nothing."""
    with pytest.raises(PeerError):
        decode_datagram(encode_datagram(SOMEONE, b"x")[: HEADER.size])


def test_a_body_over_the_limit_is_not_sent() -> None:
    """1200 bytes go, 1201 do not."""
    assert len(encode_datagram(SOMEONE, bytes(BODY_LIMIT_BYTES))) == HEADER.size + BODY_LIMIT_BYTES
    with pytest.raises(PeerError, match="1201"):
        encode_datagram(SOMEONE, bytes(BODY_LIMIT_BYTES + 1))


@given(raw=st.binary(min_size=16, max_size=16))
def test_a_device_id_is_its_bytes(raw: bytes) -> None:
    """16 bytes and 26 characters of lower-case base32 are the same thing."""
    text = device_id_text(raw)
    assert len(text) == 26
    assert text == text.lower()
    assert device_id_bytes(text) == raw


@given(text=st.text(max_size=30))
def test_other_texts_are_no_ids(text: str) -> None:
    """Nothing but the canonical text of an id is taken for one."""
    for parse, back in ((device_id_bytes, device_id_text), (boot_id_bytes, bytes.hex)):
        try:
            raw = parse(text)
        except PeerError:
            continue
        assert back(raw) == text


@given(counters=st.lists(st.integers(0, 60), max_size=80))
def test_a_replay_window_is_a_set_of_the_recent(counters: list[int]) -> None:
    """Among the last 16 counters each is accepted once; what is older is not accepted at all."""
    window = ReplayWindow(16)
    seen: set[int] = set()
    for counter in counters:
        highest = max(seen, default=-1)
        expected = counter not in seen and counter > highest - 16
        assert window.accept(counter) == expected
        if expected:
            seen.add(counter)


def test_a_replay_window_survives_a_great_leap() -> None:
    """A counter at the end of its range costs no memory and closes the window behind it."""
    window = ReplayWindow()
    assert window.accept(0)
    assert window.accept(2**64 - 1)
    assert not window.accept(0)
    assert window.accept(2**64 - 2)
    assert not window.accept(2**64 - 1)


@given(header=headers, mine=device_ids, boot=boot_ids, mesh=st.booleans(), target=st.booleans(), sealed=st.booleans())
def test_the_sieve_tells_from_the_bytes_what_the_header_says(
    header: DatagramHeader, mine: str, boot: str, mesh: bool, target: bool, sealed: bool
) -> None:
    """Each reason for itself, the life and the counter; the fields lie where the header has them."""
    changes: dict[str, object] = {} if sealed else {"key_id": 0}
    changes |= {"target": mine, "target_boot": boot} if target else {}
    header = msgspec.structs.replace(header, **changes)
    sieve = Sieve(header.mesh_tag if mesh else b"another!", mine, boot)
    data = encode_datagram(header, b"x")
    expected = ""
    if header.mesh_tag != (header.mesh_tag if mesh else b"another!"):
        expected = "wrong_mesh_datagram"
    elif header.key_id:
        expected = "unknown_key"
    elif header.sender == mine:
        expected = "own_datagram"
    elif header.target not in {"", mine} or header.target_boot not in {"", boot}:
        expected = "datagram_for_another"
    assert sieve.reason_against(data) == expected
    assert life_of(data) == device_id_bytes(header.sender) + boot_id_bytes(header.boot_id)
    assert counter_of(data) == header.counter


@given(data=st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"mD\x01\0" + b"12345678" + tail))
def test_the_sieve_lets_nothing_through_that_is_no_datagram(data: bytes) -> None:
    """What it takes can be decoded."""
    sieve = Sieve(b"12345678", SOMEONE.sender, SOMEONE.boot_id)
    if not sieve.reason_against(data):
        decode_datagram(data)


def test_the_sieve_takes_what_is_for_me_or_for_anybody() -> None:
    """Named by device, by device and life, or not at all; not one's own, and not with another key."""
    me, boot = device_id_text(b"m" * 16), "02" * 8
    sieve = Sieve(SOMEONE.mesh_tag, me, boot)
    for target, life in (("", ""), (me, ""), (me, boot)):
        header = msgspec.structs.replace(SOMEONE, target=target, target_boot=life)
        assert sieve.reason_against(encode_datagram(header, b"x")) == ""
    assert sieve.reason_against(encode_datagram(SOMEONE, b"x")[: HEADER.size]) == "garbage_datagram"
    mine = msgspec.structs.replace(SOMEONE, sender=me)
    assert sieve.reason_against(encode_datagram(mine, b"x")) == "own_datagram"
