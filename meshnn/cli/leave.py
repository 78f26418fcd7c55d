"""`meshnn leave`: the node of this device says goodbye and ends."""

from __future__ import annotations

from pathlib import Path

import click

from meshnn.cli.options import state_dir_option, state_folder
from meshnn.client import need


@click.command("leave", short_help="Leave the mesh: the node of this device ends.")
@state_dir_option
def command(state_dir: Path | None) -> None:
    """Let the node of this device say goodbye to the mesh and end."""
    need(state_folder(state_dir)).request("POST", "/api/v1/leave")
    click.echo("left")
