"""What several commands share: which local node they speak to, how they print."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def state_dir_option(function: F) -> F:
    """`--state-dir`: which local node a command speaks to."""
    return click.option(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="The state folder of the node to speak to (MESHNN_STATE_DIR).",
    )(function)


def json_option(function: F) -> F:
    """`--json`: for scripts."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def state_folder(given: Path | None) -> Path:
    """The state folder that is meant: typed, else of the environment, else this person's own."""
    from meshnn.config import default_state_dir

    if given is not None:
        return given
    named = os.environ.get("MESHNN_STATE_DIR")
    return Path(named) if named else default_state_dir(os.environ)
