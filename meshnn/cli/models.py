"""`meshnn models`: give the mesh models, see them, take them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from meshnn.cli.give import ADD_DEADLINE_S, Manner, give
from meshnn.cli.options import json_option, state_dir_option, state_folder
from meshnn.cli.pull import pull
from meshnn.client import find, need
from meshnn.errors import UnknownModelError


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
    """Give FILE to the mesh; returns when every member knows it, two devices hold it and a plan serves it.

    With no node running the model is stored for the one that will.
    """
    manner = Manner(replace, no_wait, deadline)
    click.echo(give(state_folder(state_dir), file, name or file.stem, manner))


@command.command("list", short_help="List the models and who holds them.")
@click.option("--catalogue", is_flag=True, help="Also list the models that `meshnn models pull` knows by name.")
@json_option
@state_dir_option
def listing(catalogue: bool, as_json: bool, state_dir: Path | None) -> None:
    """List the models of the mesh; with no node running, those stored here and those of the catalogue."""
    from meshnn.cli.listing import rows, show

    found = rows(state_folder(state_dir), catalogue=catalogue)
    if as_json:
        click.echo(json.dumps(found))
    else:
        show(found)


@command.command("show", short_help="Show a model's operators and its cheapest cuts.")
@click.argument("model")
@json_option
@state_dir_option
def show(model: str, as_json: bool, state_dir: Path | None) -> None:
    """Show the operators of MODEL, a file or a model's name, and the cuts that move the fewest bytes."""
    from meshnn.cli import operators

    folder = state_folder(state_dir)
    path = Path(model)
    node = None if path.is_file() else find(folder)
    if node is not None:
        card = operators.card_of_json(node.request("GET", node.model_path(model, "/card"), timeout_s=40).line)
    else:
        card = operators.card_of_file(path if path.is_file() else _file_of(folder, model))
    operators.show(card, as_json=as_json)


def _file_of(folder: Path, name: str) -> Path:
    """The file of a name where no node runs: stored here, or shipped; UnknownModelError."""
    from meshnn.cli.stored import stored_names
    from meshnn.device.store import Store
    from meshnn.known_models import catalogue, shipped_file

    record = stored_names(folder).get(name)
    path = shipped_file("default.tflite") if name == "default" else None
    path = path if record is None else Store(folder).path("model", record.digest)
    if path is not None:
        return path
    if any(entry.name == name for entry in catalogue()):
        raise UnknownModelError(f"{name} is in the catalogue but not here: `meshnn models pull {name}`")
    raise UnknownModelError(f"{name} is no file, and no node runs on this device that might know the name")


@command.command("remove", short_help="Forget a model in the whole mesh.")
@click.argument("name")
@state_dir_option
def remove(name: str, state_dir: Path | None) -> None:
    """Forget NAME in the whole mesh."""
    node = need(state_folder(state_dir))
    told: dict[str, Any] = node.request("DELETE", node.model_path(name)).json()
    click.echo(f"removed {told['removed']}")


command.add_command(pull)
