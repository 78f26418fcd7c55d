"""The small edges: HELLO in words, ports and addresses, supervised tasks."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import NodeError, PeerError
from meshnn.net import interfaces
from meshnn.net.hello import Hello, Refusal, SkewError, decode_hello, decode_refusal, encode_hello, is_elder, judge
from meshnn.net.interfaces import (
    FRESH_S,
    Vicinity,
    addresses_of,
    announceable,
    attached,
    is_wireless,
    own_address,
    present,
    sources,
)
from meshnn.net.sockets import DEFAULT_PORT, listen, tune
from meshnn.net.tasks import TaskSet
from meshnn.telemetry import captured
from tests.net.recorder import LOCAL, eventually

ME = Hello("lab", "me", BootId("1" * 16), 7766, device_id=DeviceId("a" * 26))
YOU = Hello("lab", "you", BootId("2" * 16), 7767, device_id=DeviceId("b" * 26))


def test_hello_survives_the_wire_and_refusals_too() -> None:
    """What one end says the other reads."""
    assert decode_hello(encode_hello(ME)) == ME
    assert decode_refusal(encode_hello(Refusal("wrong_mesh", "no"))) == Refusal("wrong_mesh", "no")


@given(data=st.binary(max_size=100))
def test_garbage_for_a_hello_only_ever_raises_peer_error(data: bytes) -> None:
    """No bytes whatever bring out another exception than PeerError."""
    for decode in (decode_hello, decode_refusal):
        try:
            decode(data)
        except PeerError:
            continue


@pytest.mark.parametrize("change", [{"port": 70_000}, {"boot_id": "x"}, {"channel": "gossip"}, {"name": "x" * 64}])
def test_a_hello_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    """Each field has its bounds."""
    fields = msgspec.to_builtins(YOU) | change
    with pytest.raises(PeerError):
        decode_hello(cbor2.dumps(fields))


def test_a_hello_of_a_neighbouring_version_is_understood() -> None:
    """What only one of two versions knows changes nothing: unknown fields are ignored, missing ones have defaults."""
    fields = msgspec.to_builtins(YOU)
    assert decode_hello(cbor2.dumps(fields | {"of_a_version_to_come": [1, {"deep": True}]})) == YOU
    older = {key: value for key, value in fields.items() if key != "up_ms"}
    assert decode_hello(cbor2.dumps(older)) == YOU
    assert decode_refusal(cbor2.dumps({"reason": "full", "line": "no", "more": 1})) == Refusal("full", "no")


def test_the_elder_of_two_lives_is_the_same_seen_from_both() -> None:
    """Exactly one of two lives is the elder, by age, and by boot id where what they say took as long to arrive."""
    for mine_ms, theirs_ms in ((0, 5000), (5000, 0), (0, 900), (900, 0), (7, 7)):
        one, two = msgspec.structs.replace(ME, up_ms=mine_ms), msgspec.structs.replace(YOU, up_ms=theirs_ms)
        assert is_elder(one, two) != is_elder(two, one)
        later = msgspec.structs.replace(two, up_ms=theirs_ms + 90)  # the same two lives, 90 ms on the way
        assert is_elder(one, later) == is_elder(one, two)


def test_another_version_is_understood_as_such_whatever_else_it_says() -> None:
    """A HELLO of a version to come need only say its version."""
    with pytest.raises(SkewError, match="version 2"):
        decode_hello(cbor2.dumps({"version": 2, "all": "else", "is": "new"}))


@pytest.mark.parametrize(
    ("theirs", "certified", "expected", "reason"),
    [
        (YOU, YOU.device_id, None, None),
        (YOU, YOU.device_id, YOU.device_id, None),
        (YOU, ME.device_id, None, "wrong_key"),
        (YOU, YOU.device_id, DeviceId("c" * 26), "wrong_device"),
        (msgspec.structs.replace(YOU, mesh="home"), YOU.device_id, None, "wrong_mesh"),
        (ME, ME.device_id, None, "self"),
        (msgspec.structs.replace(YOU, device_id=ME.device_id), ME.device_id, None, "cloned"),
        (msgspec.structs.replace(YOU, device_id=ME.device_id, up_ms=1001), ME.device_id, None, "cloned_here"),
    ],
)
def test_who_may_link_is_judged_by_name(
    theirs: Hello, certified: DeviceId, expected: DeviceId | None, reason: str | None
) -> None:
    """Every reason against a link has its word."""
    refusal = judge(ME, theirs, certified, expected)
    assert (refusal.reason if refusal is not None else None) == reason


def test_both_sockets_get_one_number_and_the_next_is_taken_where_it_is_in_use() -> None:
    """Two nodes on one machine get different default ports, each for streams and datagrams."""
    first, second = listen([LOCAL], 0), listen([LOCAL], 0)
    try:
        assert first.port != second.port
        assert min(first.port, second.port) >= DEFAULT_PORT
        for bound in (first, second):
            assert {held.getsockname() for held in (*bound.streams, *bound.datagrams)} == {(LOCAL, bound.port)}
        with pytest.raises(NodeError, match=f"port {first.port} is in use"):
            listen([LOCAL], first.port)
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_number_half_in_use_is_not_taken(kind: socket.SocketKind) -> None:
    """A port that is free for one of the two only is no port for us, and nothing stays bound."""
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind((LOCAL, 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        with pytest.raises(NodeError, match="in use"):
            listen([LOCAL], other.getsockname()[1])


def test_an_address_of_another_machine_is_named() -> None:
    """Listening on what is not ours is one clear line."""
    with pytest.raises(NodeError, match=r"cannot listen on 203\.0\.113\.200"):
        listen(["203.0.113.200"], 0)


def test_loopback_is_not_announced_to_a_network() -> None:
    """A peer told 127.0.0.1 would dial itself: loopback is announced only where there is nothing else."""
    assert announceable(("127.0.0.1", "203.0.113.5", "203.0.113.6")) == ("203.0.113.5", "203.0.113.6")
    assert announceable(("127.0.0.1",)) == ("127.0.0.1",)


def test_an_interface_is_a_name_or_an_address() -> None:
    """Loopback by address or name; all of them; or an error naming what is not there."""
    assert addresses_of(LOCAL) == (LOCAL,)
    assert addresses_of("127.0.0.5") == ("127.0.0.5",)
    assert LOCAL in addresses_of(None)
    name = next(name for name, entries in attached().items() if any(str(entry.ip) == LOCAL for entry in entries))
    assert LOCAL in addresses_of(name)
    for missing in ("203.0.113.200", "no-such-interface"):
        with pytest.raises(NodeError, match=missing):
            addresses_of(missing)


def test_the_address_others_know_is_kept_while_it_is_there() -> None:
    """A second interface changes nothing, a lost address is replaced, and loopback is nobody's way to us."""
    assert own_address(("127.0.0.1", "10.0.0.5", "10.1.0.5"), "10.1.0.5") == "10.1.0.5"
    assert own_address(("127.0.0.1", "10.0.0.6"), "10.0.0.5") == "10.0.0.6"
    assert own_address(("127.0.0.1",), "10.0.0.5") == "10.0.0.5"
    assert own_address((), "10.0.0.5") == "10.0.0.5"
    assert own_address(("127.0.0.1", "10.0.0.6"), "127.0.0.1") == "10.0.0.6"
    assert own_address(("127.0.0.1",), "127.0.0.1") == "127.0.0.1"
    assert own_address(("127.0.0.1", "10.0.0.6")) == "10.0.0.6"
    assert own_address(("127.0.0.1",)) == "127.0.0.1"


def test_a_network_of_containers_is_no_way_to_us() -> None:
    """Of several addresses that from which the system speaks to most others counts; the known one while it serves."""
    hosts = ("127.0.0.1", "172.17.0.1", "10.0.0.7", "10.0.0.8")
    assert own_address(hosts, "10.0.0.5", {"10.0.0.7": 1, "10.0.0.8": 3}) == "10.0.0.8"
    assert own_address(hosts, "10.0.0.7", {"10.0.0.7": 1, "10.0.0.8": 3}) == "10.0.0.7"
    assert own_address(hosts, "172.17.0.1", {"10.0.0.8": 3}) == "10.0.0.8"
    assert own_address(hosts, "172.17.0.1", {}) == "172.17.0.1"
    assert own_address(hosts, "10.0.0.5", {"127.0.0.1": 3}) == "172.17.0.1"
    assert own_address(hosts, "", {"10.0.0.7": 2, "10.0.0.8": 2}) == "10.0.0.7"


def test_a_bridge_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else tells, the address of a bridge is the last to be thought of."""
    bridge, cable = ipaddress.ip_interface("172.17.0.1/16"), ipaddress.ip_interface("10.0.0.7/24")
    (tmp_path / "docker0" / "bridge").mkdir(parents=True)
    monkeypatch.setattr(interfaces, "_SYSTEM_INTERFACES", tmp_path)
    monkeypatch.setattr(interfaces, "attached", lambda: {"docker0": [bridge], "eth0": [cable]})
    assert present(None) == ("10.0.0.7", "172.17.0.1")


def test_the_system_says_from_where_it_speaks() -> None:
    """To loopback from loopback; a host that is none is no way."""
    found = sources(["127.0.0.1", "127.0.0.2", "no host", "300.1.1.1"])
    assert found[LOCAL] >= 2


def test_a_radio_is_told_from_a_cable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own list of interfaces says it; loopback, and what nobody has, is no radio."""
    assert not is_wireless(LOCAL)
    assert not is_wireless("203.0.113.200")
    name = next(name for name, entries in attached().items() if any(str(entry.ip) == LOCAL for entry in entries))
    (tmp_path / name / "wireless").mkdir(parents=True)
    monkeypatch.setattr(interfaces, "_SYSTEM_INTERFACES", tmp_path)
    assert is_wireless(LOCAL)


def test_what_is_present_is_up_and_what_is_gone_is_nothing() -> None:
    """Loopback is up; an address this machine does not have is absent, not an error."""
    assert present(LOCAL) == (LOCAL,)
    assert LOCAL in present(None)
    assert present("203.0.113.200") == ()


def test_the_vicinity_is_what_is_attached_loopback_and_what_is_named() -> None:
    """Neighbouring networks and default routes are not near; a network that appears is, after a while."""
    now = 0.0
    networks = [ipaddress.ip_interface("192.0.2.7/25"), ipaddress.ip_interface("10.9.9.9/0")]
    vicinity = Vicinity(lambda: now, lambda: networks)
    near = ("192.0.2.1", "::ffff:192.0.2.1", LOCAL, "::1")
    assert all(vicinity.includes(host) for host in near)
    assert not any(vicinity.includes(host) for host in ("192.0.2.128", "8.8.8.8", "2001:db8::1", "a name", ""))
    vicinity.name("8.8.8.8")
    assert vicinity.includes("8.8.8.8")
    networks.append(ipaddress.ip_interface("198.51.100.3/24"))
    assert not vicinity.includes("198.51.100.9")
    now = FRESH_S
    assert vicinity.includes("198.51.100.9")


def test_a_look_that_fails_keeps_what_was_seen() -> None:
    """Without a descriptor to look at the interfaces through, who was near stays near, and nobody else becomes it."""
    now = 0.0
    networks = [ipaddress.ip_interface("192.0.2.7/25")]

    def look() -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
        if now:
            raise OSError(24, "Too many open files")
        return list(networks)

    vicinity = Vicinity(lambda: now, look)
    now = 2 * FRESH_S
    assert not vicinity.includes("198.51.100.9")
    assert vicinity.includes("192.0.2.1")


def test_streams_are_tuned() -> None:
    """Small messages leave at once, and a vanished host is noticed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        tune(stream)
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


async def test_a_failing_task_is_reported_and_its_siblings_live() -> None:
    """One link's failure is a log line, never another link's end; stop awaits every task."""
    tasks = TaskSet("test")
    ended: list[str] = []
    waiting = asyncio.Event()

    async def fail() -> None:
        raise RuntimeError("on purpose")

    async def wait() -> None:
        try:
            await waiting.wait()
        finally:
            await asyncio.sleep(0)
            ended.append("sibling")

    with captured() as lines:
        tasks.spawn(wait(), "wait", lambda: ended.append("callback"))
        tasks.spawn(fail(), "fail")
        await eventually(lambda: len(tasks) == 1)
    assert [line["event"] for line in lines] == ["task failed"]
    await tasks.stop()
    await eventually(lambda: len(ended) == 2)
    assert sorted(ended) == ["callback", "sibling"]
    tasks.spawn(wait(), "too late", lambda: ended.append("late"))
    assert len(tasks) == 0
    assert ended[-1] == "late"
