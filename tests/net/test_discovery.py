"""mDNS on the loopback interface: nodes of one mesh find each other, and only those."""

from __future__ import annotations

import asyncio

from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.discovery import Discovery, find
from tests.net.recorder import DEADLINE_S, LOCAL, eventually


class Finder:
    """A node that announces a port and collects what it finds."""

    def __init__(self, letter: str, mesh: str, port: int) -> None:
        self.found: set[tuple[str, int]] = set()
        self.news = asyncio.Event()
        self.discovery = Discovery(DeviceId(letter * 26), BootId(letter * 16), mesh, port, LOCAL, self._add)

    def _add(self, host: str, port: int) -> None:
        self.found.add((host, port))
        self.news.set()

    async def until(self, port: int) -> None:
        """Waits until a port was found."""
        async with asyncio.timeout(DEADLINE_S):
            while (LOCAL, port) not in self.found:
                self.news.clear()
                await self.news.wait()


async def test_nodes_of_one_mesh_find_each_other_and_no_others() -> None:
    """Each finds the other, not itself, not the neighbour's mesh; a caller that is no node finds them too."""
    # Names of meshes that no real node on this machine has.
    a, b, other = Finder("a", "test-d-one", 40001), Finder("b", "test-d-one", 40002), Finder("c", "test-d-two", 40003)
    for finder in (other, a, b):
        await finder.discovery.start()
    try:
        await a.until(40002)
        await b.until(40001)
        await eventually(lambda: a.discovery.announced)
        looked_up = await find("test-d-one", LOCAL, DEADLINE_S)
        assert looked_up
        assert set(looked_up) <= {(LOCAL, 40001), (LOCAL, 40002)}
        assert a.found == {(LOCAL, 40002)}
        assert b.found == {(LOCAL, 40001)}
        assert other.found == set()
    finally:
        for finder in (a, b, other):
            await finder.discovery.stop()


async def test_looking_where_nobody_is_ends_in_time() -> None:
    """No node, no answer: an empty list, not a wait for ever."""
    assert await find("test-d-nobody", LOCAL, 0.3) == []


async def test_an_interface_that_is_gone_is_a_warning_not_an_end() -> None:
    """Without multicast a node still starts and stops; it is found by other means."""
    discovery = Discovery(DeviceId("a" * 26), BootId("a" * 16), "test-d-gone", 40004, "203.0.113.200", print)
    await discovery.start()
    assert not discovery.announced
    await discovery.stop()
