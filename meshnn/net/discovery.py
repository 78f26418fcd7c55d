"""Finding a first peer by mDNS: a source of addresses to try, never of who is alive.

Each life announces `<device id, 12>-<boot id, 4>._meshnn._tcp.local.` with its port and the tag of its mesh.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

from zeroconf import Error, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import MeshError, NodeError
from meshnn.net.hello import PROTOCOL_VERSION
from meshnn.net.interfaces import Vicinity, announceable, present
from meshnn.net.security import mesh_tag
from meshnn.net.tasks import TaskSet
from meshnn.net.transport import Address
from meshnn.telemetry import logger

SERVICE = "_meshnn._tcp.local."
RESOLVE_MS = 3000
RESOLVES_AT_ONCE = 8
CANDIDATES_LIMIT = 256
ADDRESSES_LIMIT = 8  # of one peer
GOODBYE_S = 1.0
LOOK_EVERY_S = 2.0
RETRY_S = 10.0

_log = logger(__name__)
Found = Callable[[str, int], None]


class Discovery:
    """Announces this life of a device and calls `found(host, port)` for every address of every other node of its mesh.

    `interface` is as for the transport: an address or name to keep to, or None for all. What is found may be found
    again; an address may be out of reach: try them all. With `port` 0 it only looks and announces nothing.
    """

    def __init__(
        self, device_id: DeviceId, boot_id: BootId, mesh: str, port: int, interface: str | None, found: Found
    ) -> None:
        self._label = f"{device_id[:12]}-{boot_id[:4]}"  # unique by construction: no two lives share it
        self._tag = mesh_tag(mesh).hex()
        self._port = port
        self._found = found
        self._interface = interface
        self._loop = asyncio.get_running_loop()
        self._tasks = TaskSet("discovery")
        self._resolving: set[str] = set()
        self._slots = asyncio.Semaphore(RESOLVES_AT_ONCE)
        self._hosts: tuple[str, ...] = ()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None

    @property
    def _instance(self) -> str:
        return f"{self._label}.{SERVICE}"

    @property
    def announced(self) -> bool:
        """Whether mDNS works here and knows this node."""
        return self._info is not None

    async def start(self) -> None:
        """Looks and announces from now on. Where multicast does not work it says so in the log and tries again."""
        await self._open()
        self._tasks.spawn(self._watch_interfaces(), "interfaces")

    async def stop(self) -> None:
        """Says goodbye and ends, within some seconds."""
        await self._tasks.stop()
        await self._close()

    async def _open(self) -> None:
        try:
            self._hosts = await asyncio.to_thread(present, self._interface)
            if not self._hosts:
                raise NodeError(f"this machine has no address to announce ({self._interface or 'every interface'})")
            self._zeroconf = AsyncZeroconf(interfaces=list(self._hosts), ip_version=IPVersion.V4Only)
            async with asyncio.timeout(GOODBYE_S * 5):
                await self._zeroconf.zeroconf.async_wait_for_start()
        except (OSError, MeshError, Error) as error:
            _log.warning("no multicast", error=str(error))
            await self._close()
            return
        # First look, then speak: the answers to our question do not wait for our own announcement.
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._changed])
        if self._port:
            self._tasks.spawn(self._announce(self._zeroconf), "announce")

    async def _announce(self, zeroconf: AsyncZeroconf) -> None:
        info = AsyncServiceInfo(
            SERVICE,
            self._instance,
            port=self._port,
            addresses=[ipaddress.IPv4Address(host).packed for host in announceable(self._hosts)],
            properties={
                "v": str(PROTOCOL_VERSION),
                "port": str(self._port),
                "mesh": self._tag,
            },
            server=f"{self._label}.local.",
        )
        try:
            async with asyncio.timeout(GOODBYE_S * 10):
                # Unique names need no probing: cooperating responders skip its second.
                await (await zeroconf.async_register_service(info, cooperating_responders=True))
        except (OSError, Error) as error:
            _log.warning("mDNS announcement failed", error=str(error))
            return
        self._info = info

    async def _close(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        self._info = None
        if zeroconf is None:
            return
        try:
            async with asyncio.timeout(GOODBYE_S):
                if browser is not None:
                    await browser.async_cancel()
                await zeroconf.async_unregister_all_services()
        except (OSError, Error) as error:
            _log.warning("mDNS goodbye failed", error=str(error) or "timeout")
        try:
            async with asyncio.timeout(GOODBYE_S):
                await zeroconf.async_close()
        except OSError as error:
            _log.warning("mDNS did not close", error=str(error) or "timeout")

    async def _watch_interfaces(self) -> None:
        """Opens anew once this machine's addresses are other ones and stay so, or where it could not be opened."""
        before = self._hosts
        retry_at = self._loop.time() + RETRY_S
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                hosts = await asyncio.to_thread(present, self._interface)
            except OSError:
                continue
            failed = self._zeroconf is None and self._loop.time() >= retry_at
            if hosts and hosts == before and (hosts != self._hosts or failed):
                await self._close()
                await self._open()
                retry_at = self._loop.time() + RETRY_S
            before = hosts

    # -- what is found

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed or name == self._instance:
            return
        if name not in self._resolving and len(self._resolving) < CANDIDATES_LIMIT:
            self._resolving.add(name)
            self._tasks.spawn(self._resolve(zeroconf, name), "resolve", lambda: self._resolving.discard(name))

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            async with self._slots, asyncio.timeout(2 * RESOLVE_MS / 1000):
                known = await info.async_request(zeroconf, RESOLVE_MS)
        except (OSError, Error) as error:
            _log.debug("not resolved", error=str(error))
            return
        if known and info.properties.get(b"mesh") == self._tag.encode():
            for host, port in addresses_in(info):
                self._found(host, port)


def addresses_in(info: AsyncServiceInfo) -> list[Address]:
    """Every IPv4 address a peer announced, those on networks we are attached to first; a few at most."""
    near = Vicinity(lambda: 0.0)
    hosts = info.parsed_addresses(IPVersion.V4Only)[:ADDRESSES_LIMIT]
    return [(host, info.port or 0) for host in sorted(hosts, key=lambda host: not near.includes(host)) if info.port]


async def find(mesh: str, interface: str | None = None, wait_s: float = 2.0) -> list[Address]:
    """The addresses of nodes of a mesh that mDNS shows: as soon as there are any, else nothing after `wait_s`."""
    addresses: list[Address] = []
    first = asyncio.Event()

    def found(host: str, port: int) -> None:
        addresses.append((host, port))
        first.set()

    discovery = Discovery(DeviceId("looking"), BootId(""), mesh, 0, interface, found)
    await discovery.start()
    try:
        async with asyncio.timeout(wait_s):
            await first.wait()
    except TimeoutError:
        return []
    finally:
        await discovery.stop()
    return list(dict.fromkeys(addresses))
