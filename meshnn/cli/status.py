"""`meshnn status`: who is here, who leads, which models are served by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnn.cli.deaths import told
from meshnn.cli.options import json_option, state_dir_option, state_folder
from meshnn.client import need


@click.command("status", short_help="Show the mesh as this device sees it.")
@json_option
@state_dir_option
def command(as_json: bool, state_dir: Path | None) -> None:
    """Show members, leader, models and plans, as this device sees them."""
    reply = need(state_folder(state_dir)).request("GET", "/api/v1/status")
    if as_json:
        click.echo(reply.line.decode())
        return
    _show(reply.json())


def _show(status: dict[str, Any]) -> None:
    """The mesh as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    names = {member["id"]: member["name"] for member in status["members"]}
    leader = names.get(status["leader"], "none yet")
    console.print(f"mesh {status['mesh']}, leader {leader}, term {status['term']}, epoch {status['epoch'] or 'none'}")
    for trouble in status["health"]["troubles"]:
        console.print(f"[bold red]this device is degraded: {trouble['subject']}:[/] ", end="")
        console.print(trouble["reason"], markup=False, highlight=False)
    members = Table("device", "id", "state", "address", "memory MB", "speed")
    for row in status["members"]:
        own = " (this device)" if row["id"] == status["self"] else ""
        memory, speed = f"{row['memory_mb']:.0f}", f"{row['speed']:.2f}"
        state = row["state"] + (", degraded" if row.get("health") == "degraded" else "")
        members.add_row(row["name"] + own, row["id"][:12], state, row["address"], memory, speed)
    console.print(members)
    if not status["models"]:
        console.print("no models were added: `meshnn models add FILE`; `meshnn ask` uses the one that ships")
        return
    models = Table("model", "digest", "MB", "held by")
    for row in status["models"]:
        held = ", ".join(names.get(holder, holder[:12]) for holder in row["holders"])
        models.add_row(row["name"], row["digest"][:12], f"{row['bytes'] / 1e6:.1f}", held)
    console.print(models)
    for plan in status["plans"]:
        stages = "; ".join(_stage(stage) for stage in plan["stages"])
        missing = ", ".join(names.get(device, device[:12]) for device in plan["waits_for"]) if plan["pinned"] else ""
        pinned = f", pinned{f'; it waits for {missing}' if missing else ''}" if plan["pinned"] else ""
        console.print(f"plan of {plan['model']} ({plan['epoch']}{pinned}): {stages}")
        for row in plan["deaths"]:
            console.print(f"  the death of {told(row, names)}")


def _stage(stage: dict[str, Any]) -> str:
    """One shard in a few words."""
    split = "" if stage["split"] == "none" else f" {stage['split']} part {stage['part']}"
    return f"{stage['device']}: {stage['operators'][0]}-{stage['operators'][1]}{split}"
