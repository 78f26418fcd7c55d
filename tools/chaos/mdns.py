"""What mDNS says of a mesh: `python -m tools.chaos.mdns MESH SECONDS` on a device's network prints the addresses."""

from __future__ import annotations

import asyncio
import json
import sys

from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.discovery import Discovery


async def addresses(mesh: str, seconds: float) -> list[tuple[str, int]]:
    """Every address that is announced within so long."""
    found: dict[tuple[str, int], None] = {}
    discovery = Discovery(DeviceId("looking"), BootId(""), mesh, 0, None, lambda *place: found.setdefault(place))
    await discovery.start()
    await asyncio.sleep(seconds)
    await discovery.stop()
    return list(found)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(addresses(sys.argv[1], float(sys.argv[2])))))
