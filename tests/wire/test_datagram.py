"""Datagrams: the header survives, garbage is refused, a counter counts once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn.errors import PeerError
from meshnn.wire.datagram import (
    BODY_LIMIT_BYTES,
    HEADER,
    DatagramHeader,
    ReplayWindow,
    boot_id_bytes,
    decode_datagram,
    device_id_bytes,
    device_id_text,
    encode_datagram,
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
