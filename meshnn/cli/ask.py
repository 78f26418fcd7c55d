"""`meshnn ask`: answer photos or raw tensors, by the mesh or by this device alone."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import click

from meshnn.cli.options import json_option, state_dir_option, state_folder
from meshnn.cli.wish import Asker, Wish
from meshnn.client import LocalNode, Reply, find
from meshnn.errors import MeshError, NoMeshError
from meshnn.input_file import read_file

ASK_DEADLINE_S = 30.0
# What is left of a deadline when the node of this device dies is at least so long, in seconds.
LEAST_S = 1.0


@click.command("ask", short_help="Ask a model about photos.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", help="The model to ask (default: the one that was added, else the one that ships).")
@click.option("--top", type=click.IntRange(1, 100_000), default=5, show_default=True, help="Predictions to print.")
@click.option(
    "--deadline", type=click.FloatRange(0.001, 3600), default=ASK_DEADLINE_S, show_default=True, help="Seconds."
)
@click.option(
    "--tensors", type=click.Path(file_okay=False, path_type=Path), help="Write raw tensors as npz files there."
)
@json_option
@state_dir_option
def command(
    inputs: tuple[str, ...],
    model: str | None,
    top: int,
    deadline: float,
    tensors: Path | None,
    as_json: bool,
    state_dir: Path | None,
) -> int:
    """Answer each INPUT, a photo or an .npz of raw input tensors.

    The node of this device asks its mesh; without one, a mesh nearby is asked; without that, this device answers
    alone and says so.
    """
    wish = Wish(model, top, deadline, as_json, tensors)
    folder = state_folder(state_dir)
    node = find(folder)
    with ExitStack() as stack:
        another = _by_another(folder, stack)
        return _ask_all(inputs, wish, another if node is None else _by_node(node, another))


def _by_node(node: LocalNode, another: Asker) -> Asker:
    """The node of this device; what it leaves unanswered when it dies another one answers, within the deadline."""

    def ask(data: bytes, source: str, wish: Wish) -> Reply:
        began = time.monotonic()
        try:
            return node.ask(data, source, wish.deadline_s, wish.query)
        except NoMeshError:
            left_s = wish.deadline_s - (time.monotonic() - began)
            return another(data, source, dataclasses.replace(wish, deadline_s=max(left_s, LEAST_S)))

    return ask


def _by_another(folder: Path, stack: ExitStack) -> Asker:
    """Whoever answers where no node runs, looked for when the first input that can be read is there."""

    @cache
    def found() -> Asker:
        from meshnn.cli.elsewhere import asker

        return stack.enter_context(asker(folder))

    def ask(data: bytes, source: str, wish: Wish) -> Reply:
        return found()(data, source, wish)

    return ask


def _ask_all(inputs: tuple[str, ...], wish: Wish, ask: Asker) -> int:
    """Every input in order; the exit code of the first that failed."""
    code = 0
    stems: dict[str, int] = {}
    for source in inputs:
        try:
            reply = ask(read_file(Path(source)), source, wish)
        except MeshError as error:
            code = code or error.exit_code
            _print_failure(source, error, as_json=wish.as_json)
            continue
        if wish.tensors is not None:
            _write_tensors(wish.tensors, source, reply.rest, stems)
        click.echo(reply.line.decode() if wish.as_json else _told(reply.json()))
    return code


def _write_tensors(folder: Path, source: str, arrays: bytes, stems: dict[str, int]) -> None:
    """`<stem>.npz`; equal stems get `-2`, `-3` and so on."""
    stem = Path(source).stem
    stems[stem] = stems.get(stem, 0) + 1
    name = stem if stems[stem] == 1 else f"{stem}-{stems[stem]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.npz").write_bytes(arrays)
    except OSError as error:
        raise MeshError(f"{folder} cannot be written: {error.strerror}") from error


def _print_failure(source: str, error: MeshError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"input": source, "ok": False, "error": {"code": error.code, "message": str(error)}}))
    else:
        click.echo(f"meshnn: {error}" if source in str(error) else f"meshnn: {source}: {error}", err=True)


def _told(answer: dict[str, Any]) -> str:
    """An answer for a person."""
    best = ", ".join(f"{p['label'] or p['index']} {p['score']:.2f}" for p in answer["predictions"])
    stages = answer["plan"]["stages"]
    ran = "; ".join(
        f"{s['device']} ran {s['operators'][0]}-{s['operators'][1]} in {s['compute_ms']:.1f} ms" for s in stages
    )
    return f"{answer['input']}: {best}\n  {answer['latency_ms']:.0f} ms with {answer['model']}: {ran}"
