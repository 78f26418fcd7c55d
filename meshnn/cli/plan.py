"""`meshnn plan`: who runs what, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnn.cli.options import json_option, state_dir_option, state_folder
from meshnn.client import need


@click.group("plan", short_help="Show who runs what.")
def command() -> None:
    """The plans of the mesh."""


@command.command("show", short_help="Show the active plans.")
@json_option
@state_dir_option
def show(as_json: bool, state_dir: Path | None) -> None:
    """Show the active plans: stages, memory, which deaths are covered."""
    reply = need(state_folder(state_dir)).request("GET", "/api/v1/plans")
    if as_json:
        click.echo(reply.line.decode())
        return
    plans: list[dict[str, Any]] = reply.json()
    if not plans:
        click.echo("no plan is active")
    for plan in plans:
        click.echo(f"{plan['model']} {plan['epoch']} (window {plan['window']}, {plan['share']} for each origin)")
        for stage in plan["stages"]:
            used = plan["memory_bytes"].get(stage["device_id"], 0) / 1e6
            split = "" if stage["split"] == "none" else f", {stage['split']} part {stage['part']}"
            first, last = stage["operators"]
            click.echo(f"  {stage['device']}: operators {first}-{last}{split}, {used:.1f} MB on the device")
        for device, how in sorted(plan["covered"].items()):
            click.echo(f"  the death of {device[:12]} is {how}")
