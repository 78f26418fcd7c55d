"""What the death of a device would mean for a plan, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def told(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """One row of a plan's `deaths`: the device, whether it is covered, and else for how long nothing is answered."""
    name = names.get(row["device"], row["device"][:12])
    state = {
        "prepared": "prepared",
        "on disk": "on disk",
        "fetch": f"needs a fetch of {row['fetch_bytes'] / 1e6:.1f} MB",
        "none": "nothing can take its place",
        "unknown": "not known yet",
    }[row["state"]]
    wait = f", answers again after about {row['reroute_ms'] / 1000:.1f} s" if row["reroute_ms"] else ""
    return f"{name}: {state}{wait}"
