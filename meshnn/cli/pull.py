"""`meshnn models pull`: a model of the catalogue or of any web server, downloaded, checked and added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click

from meshnn.cli.give import ADD_DEADLINE_S, Manner, give
from meshnn.cli.options import state_dir_option, state_folder
from meshnn.client import find
from meshnn.errors import DeadlineError, ModelConflictError, ModelError, NoPlanError, UsageError

if TYPE_CHECKING:
    from meshnn.download import Source

DOWNLOADS = "downloads"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be fetched, and what it will be called."""

    source: Source
    name: str
    licence: str


@click.command("pull", short_help="Download a model and add it.")
@click.argument("model", metavar="NAME|URL")
@click.option("--name", help="What to call it (default: its name in the catalogue, or the address's last part).")
@click.option("--replace", is_flag=True, help="Bind the name to this file even if it means another.")
@click.option("--no-wait", is_flag=True, help="Return once this device has it.")
@click.option(
    "--deadline",
    type=click.FloatRange(0.001, 3600),
    default=ADD_DEADLINE_S,
    show_default=True,
    help="Seconds for adding it, once it is here.",
)
@state_dir_option
def pull(model: str, name: str | None, replace: bool, no_wait: bool, deadline: float, state_dir: Path | None) -> None:
    """Download a model and add it to the mesh: a NAME of `meshnn models list --catalogue`, or an http(s) URL.

    A URL may end in #sha256=HEX; what arrives must have that digest. A download that broke off goes on from there
    when the same command is given again. With no node running the model is stored for the one that will.
    """
    from meshnn.download import discard, fetch

    wanted = _wanted(model, name)
    if wanted is None:
        click.echo(f"{model} ships with meshnn: nothing to download")
        return
    folder = state_folder(state_dir)
    if not replace and _is_here(folder, wanted):
        click.echo(f"{wanted.name} is here already: nothing to download")
        return
    with _bar(wanted.name) as told:
        file = fetch(wanted.source, folder / DOWNLOADS, told)
    try:
        line = give(folder, file, wanted.name, Manner(replace, no_wait, deadline))
    except (ModelError, NoPlanError, DeadlineError):
        discard(file)  # no model, or the node has its own copy; after anything else it is kept for the next try
        raise
    discard(file)
    click.echo(line)
    if wanted.licence:
        click.echo(f"licence, as stated at its origin: {wanted.licence}")


def _wanted(model: str, name: str | None) -> Wanted | None:
    """The source of what was typed, or None for a model that ships; UsageError, UnknownModelError."""
    from meshnn.download import Source, source_of
    from meshnn.known_models import known

    if "://" not in model:
        if Path(model).is_file():
            raise UsageError(f"{model} is a file here: `meshnn models add {model}`")
        entry = known(model)
        if not entry.url:
            return None
        return Wanted(Source(entry.url, entry.sha256, entry.size_bytes), name or entry.name, entry.licence)
    source = source_of(model)
    name = name or PurePosixPath(unquote(urlsplit(source.url).path)).stem
    if not name:
        raise UsageError(f"{source.url} has no file's name in it: say --name NAME")
    return Wanted(source, name, "")


def _is_here(folder: Path, wanted: Wanted) -> bool:
    """Whether the name means this very file already; ModelConflictError where it means another."""
    digest = _digest_here(folder, wanted.name)
    if digest is None or not wanted.source.sha256:
        return False
    if digest != wanted.source.sha256:
        raise ModelConflictError(f"{wanted.name!r} is another file already; use --replace or --name")
    return True


def _digest_here(folder: Path, name: str) -> str | None:
    """What a name means to the mesh, or to this device where no node runs; None where it means nothing yet."""
    node = find(folder)
    if node is not None:
        rows: list[dict[str, Any]] = node.get("/api/v1/models")
        return next((str(row["digest"]) for row in rows if row["name"] == name), None)
    from meshnn.cli.stored import stored_names

    record = stored_names(folder).get(name)
    return None if record is None else record.digest


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr where that is a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=None)
        yield lambda have, total: progress.update(task, completed=have, total=total)
