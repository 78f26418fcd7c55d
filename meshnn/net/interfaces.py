"""The addresses of this machine, and which hosts an open mesh may speak with."""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ifaddr
import psutil

from meshnn.errors import NodeError

# An address for documentation: no device has it, and the way to it is the way to everywhere.
_FAR_AWAY = "192.0.2.1"
_ANY_PORT = 9
_SYSTEM_INTERFACES = Path("/sys/class/net")
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
# How long a list of interfaces is believed before a host that does not fit makes us look again.
FRESH_S = 5.0


def attached() -> dict[str, list[IPInterface]]:
    """Every interface of this machine by name, with its addresses and networks."""
    found: dict[str, list[IPInterface]] = {}
    for adapter in ifaddr.get_adapters():
        addresses = found.setdefault(adapter.name, [])
        for entry in adapter.ips:
            host = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            addresses.append(ipaddress.ip_interface(f"{host}/{entry.network_prefix}"))
    return found


def addresses_of(interface: str | None) -> tuple[str, ...]:
    """The IPv4 addresses to listen on and announce: all (None), those of a named interface, or one address.

    Raises NodeError where this machine has no such interface or address.
    """
    adapters = attached()
    if interface is None:
        return _v4(entry for entries in adapters.values() for entry in entries)
    if interface in adapters:
        addresses = _v4(adapters[interface])
    else:
        addresses = _v4(
            entry for entries in adapters.values() for entry in entries if str(entry.ip) == interface
        ) or _loopback(interface)
    if not addresses:
        raise NodeError(f"this machine has no interface or IPv4 address {interface}")
    return addresses


def present(interface: str | None) -> tuple[str, ...]:
    """The addresses of `addresses_of` on interfaces that are up and have their cable in; none where all are gone.

    Those of bridges, which are mostly for containers, come last. It is what a node looks at again and again to see its
    network change. It blocks for some ms.
    """
    try:
        addresses = addresses_of(interface)
    except NodeError:
        return ()
    states = psutil.net_if_stats()
    down = {
        str(entry.ip)
        for name, entries in attached().items()
        if name in states and not states[name].isup
        for entry in entries
    }
    bridged = {
        str(entry.ip)
        for name, entries in attached().items()
        if (_SYSTEM_INTERFACES / name / "bridge").exists()
        for entry in entries
    }
    return tuple(sorted((host for host in addresses if host not in down), key=lambda host: host in bridged))


def sources(towards: Iterable[str]) -> Counter[str]:
    """From which addresses of this device the system would speak to these hosts, and to how many of them.

    A host beyond every network counts where there is a default route. Nothing is sent.
    """
    found: Counter[str] = Counter()
    for host in (*towards, _FAR_AWAY):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                asking.connect((str(ipaddress.IPv4Address(host)), _ANY_PORT))
            except (OSError, ValueError):  # no way there, or a name, which would have to be looked up
                continue
            found[asking.getsockname()[0]] += 1
    return found


def own_address(hosts: Iterable[str], before: str = "", spoken_from: Mapping[str, int] | None = None) -> str:
    """Where others reach this device: at the address they know while it serves, else where it speaks from to most.

    `hosts` are those of `present`, `spoken_from` those of `sources`: a bridge of containers has an address too, and
    nobody is there. Loopback is a way for others only where there is nothing else; without any the known one stays.
    """
    given = tuple(hosts)
    outward = [host for host in given if not ipaddress.ip_address(host).is_loopback]
    serving = {host: count for host, count in (spoken_from or {}).items() if host in outward}
    if before in outward and (not serving or before in serving):
        return before
    if serving:
        return max(serving, key=lambda host: (serving[host], -outward.index(host)))
    if before and not outward:
        return before
    return next(iter(outward or given), before)


def is_wireless(host: str) -> bool:
    """Whether the interface with this address is a radio; False where the system does not say."""
    names = [name for name, entries in attached().items() if any(str(entry.ip) == host for entry in entries)]
    return any((_SYSTEM_INTERFACES / name / "wireless").exists() for name in names)


def announceable(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those of a machine's addresses that mean it to others: loopback ones only where it has no other.

    A peer that is told 127.0.0.1 dials itself.
    """
    given = tuple(addresses)
    return tuple(host for host in given if not ipaddress.ip_address(host).is_loopback) or given


def _v4(entries: Iterable[IPInterface]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(entry.ip) for entry in entries if entry.version == 4))


def _loopback(interface: str) -> tuple[str, ...]:
    """Linux answers on all of 127.0.0.0/8, though only one address of it is listed."""
    try:
        address = ipaddress.ip_address(interface)
    except ValueError:
        return ()
    return (interface,) if address.version == 4 and address.is_loopback else ()


class Vicinity:
    """Which hosts are near: on a directly attached network, on loopback, or named by a person."""

    def __init__(self, clock: Callable[[], float], look: Callable[[], Iterable[IPInterface]] | None = None) -> None:
        self._clock = clock
        self._look = look or (lambda: [entry for entries in attached().values() for entry in entries])
        self._networks = [entry.network for entry in self._look()]
        self._looked_at = clock()
        self._named: set[IPAddress] = set()

    def name(self, host: str) -> None:
        """Lets an IP address in, wherever it is."""
        self._named.add(_plain(host))

    def includes(self, host: str) -> bool:
        """Whether the IP address `host` is near; looks at the interfaces again, at most every 5 s, before saying no."""
        try:
            address = _plain(host)
        except ValueError:
            return False
        if self._near(address):
            return True
        now = self._clock()
        if now - self._looked_at < FRESH_S:
            return False
        self._looked_at = now
        try:
            self._networks = [entry.network for entry in self._look()]
        except OSError:  # no descriptor left to look through: what was seen last holds
            return False
        return self._near(address)

    def _near(self, address: IPAddress) -> bool:
        # A default route or a point-to-point link of prefix 0 is not a network one is attached to.
        return (
            address.is_loopback
            or address in self._named
            or any(network.prefixlen and address in network for network in self._networks)
        )


def _plain(host: str) -> IPAddress:
    """An address without its scope, and an IPv4 address as such where it came mapped into IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
