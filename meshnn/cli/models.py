"""`meshnn models`: give the mesh models, see them, take them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnn.cli.options import json_option, state_dir_option, state_folder
from meshnn.client import find, need
from meshnn.errors import ModelError, UnknownModelError

ADD_DEADLINE_S = 60.0


@click.group("models", short_help="Add, list, show, remove or download models.")
def command() -> None:
    """The models of the mesh."""


@command.command("add", short_help="Give the mesh a TFLite model.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="What to call it (default: the file's stem).")
@click.option("--replace", is_flag=True, help="Bind the name to this file even if it means another.")
@click.option("--no-wait", is_flag=True, help="Return once this device has it.")
@click.option(
    "--deadline", type=click.FloatRange(0.001, 3600), default=ADD_DEADLINE_S, show_default=True, help="Seconds."
)
@state_dir_option
def add(file: Path, name: str | None, replace: bool, no_wait: bool, deadline: float, state_dir: Path | None) -> None:
    """Give FILE to the mesh; returns when every member knows it, two devices hold it and a plan serves it."""
    name = name or file.stem
    folder = state_folder(state_dir)
    node = find(folder)
    if node is None:
        from meshnn.cli.alone import store_model

        click.echo(store_model(folder, file, name, replace=replace))
        return
    query = {"name": name, "replace": int(replace), "no_wait": int(no_wait), "deadline": deadline}
    try:
        with file.open("rb") as body:
            told = node.request("POST", "/api/v1/models", body, query, timeout_s=deadline + 30).json()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"{file} cannot be read: {reason}") from error
    click.echo(f"{told['name']} is served: {told['bytes'] / 1e6:.1f} MB held by {len(told['holders'])} devices")


@command.command("list", short_help="List the models and who holds them.")
@json_option
@state_dir_option
def listing(as_json: bool, state_dir: Path | None) -> None:
    """List the models of the mesh."""
    reply = need(state_folder(state_dir)).request("GET", "/api/v1/models")
    if as_json:
        click.echo(reply.line.decode())
        return
    for row in reply.json():
        click.echo(f"{row['name']}\t{row['bytes'] / 1e6:.1f} MB\t{len(row['holders'])} holders\t{row['digest'][:12]}")


@command.command("show", short_help="Show a model's operators and its cheapest cuts.")
@click.argument("model")
@json_option
@state_dir_option
def show(model: str, as_json: bool, state_dir: Path | None) -> None:
    """Show the operators of MODEL, a file or a model of the mesh, and the cuts that move the fewest bytes."""
    from meshnn.cli import operators

    path = Path(model)
    if path.is_file():
        card = operators.card_of_file(path)
    else:
        node = find(state_folder(state_dir))
        if node is None:
            raise UnknownModelError(f"{model} is no file, and no node runs on this device that might know the name")
        card = operators.card_of_json(node.request("GET", node.model_path(model, "/card"), timeout_s=40).line)
    operators.show(card, as_json=as_json)


@command.command("remove", short_help="Forget a model in the whole mesh.")
@click.argument("name")
@state_dir_option
def remove(name: str, state_dir: Path | None) -> None:
    """Forget NAME in the whole mesh."""
    node = need(state_folder(state_dir))
    told: dict[str, Any] = node.request("DELETE", node.model_path(name)).json()
    click.echo(f"removed {told['removed']}")
