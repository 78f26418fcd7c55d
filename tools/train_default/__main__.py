"""The command: `python -m tools.train_default FOLDER` trains, exports and measures the default model."""

import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SHARED = Path(__file__).resolve().parents[3] / "shared"


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--shared",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=_SHARED,
    help="Holds datasets/tiny20.tar and the teachers in testdata/models.",
)
@click.option("--epochs", default=90, show_default=True, help="Passes over the training photos.")
@click.option("--finish-by-minutes", type=float, help="End after so many minutes; the schedule is fitted to the time.")
@click.option("--seed", default=3, show_default=True, help="Of the weights, the order, the changes to the photos.")
@click.option("--threads", default=2, show_default=True, help="Threads for the arithmetic.")
@click.option("--export-only", is_flag=True, help="Write the files from the checkpoint there is, without training.")
def main(
    folder: Path,
    shared: Path,
    epochs: int,
    finish_by_minutes: float | None,
    seed: int,
    threads: int,
    export_only: bool,
) -> None:
    """Train the default model in FOLDER, going on from the checkpoint there; write default.tflite and its float twin.

    FOLDER keeps checkpoint.pt, history.json, the teachers' answers, default.tflite, default_float32.tflite and
    report.json. With --epochs and one seed a run repeats; with --finish-by-minutes the number of epochs depends on the
    machine's speed.
    """
    try:
        import torch
    except ImportError as missing:
        raise click.ClickException("PyTorch is not here (dependency group `train`)") from missing
    from tools.train_default.sitting import opened
    from tools.train_default.training import Recipe

    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    finish_s = None if finish_by_minutes is None else time.monotonic() + finish_by_minutes * 60
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console()) as progress:
        sitting = opened(folder, shared, Recipe(epochs=epochs, seed=seed), progress)
        if not export_only:
            sitting.train(finish_s)
        sitting.write()


if __name__ == "__main__":
    main()
