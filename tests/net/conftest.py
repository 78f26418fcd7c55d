"""Peers of one test: started on the loopback interface, stopped whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshnn.cluster.member import BootId
from meshnn.net.transport import Limits
from meshnn.wire.codec import Codec
from tests.net.recorder import CODEC, MESH, Peer, StartPeer, start_peer


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[StartPeer]:
    """Call it to start a device by name, and await that; the same name again is the same device in another life."""
    started: list[Peer] = []

    async def start(
        name: str, mesh: str = MESH, limits: Limits | None = None, codec: Codec = CODEC, boot: BootId | None = None
    ) -> Peer:
        peer = await start_peer(tmp_path / name, mesh, limits, codec, boot)
        started.append(peer)
        return peer

    yield start
    await asyncio.gather(*(peer.transport.stop() for peer in started))
