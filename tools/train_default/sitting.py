"""One sitting of the training in its folder: teachers, training from where the last one stopped, files, figures."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.progress import Progress, TaskID

from tools.train_default import exporting, teacher, training
from tools.train_default.evaluation import judged
from tools.train_default.layers import Floats
from tools.train_default.network import Architecture
from tools.train_default.photos import PhotoSet, read_photos

FOLDS = 5
"""Parts of the training photos; each part's soft targets come from a layer fitted on the others."""


def opened(folder: Path, shared: Path, recipe: training.Recipe, progress: Progress) -> "Sitting":
    """A sitting in `folder`, its photos read from `shared`/datasets, its teachers those in `shared`/testdata/models."""
    archive = shared / "datasets" / "tiny20.tar"
    photos, check = read_photos(archive, "train"), read_photos(archive, "val")
    return Sitting(folder, shared / "testdata" / "models", photos, check, recipe, progress)


@dataclass(frozen=True, slots=True)
class Sitting:
    """What a sitting works with: its folder, where the teachers lie, the photos, the recipe, the bars to move."""

    folder: Path
    teachers: Path
    photos: PhotoSet
    check: PhotoSet
    recipe: training.Recipe
    progress: Progress

    def train(self, finish_s: float | None) -> None:
        """Train to the end of the recipe, or until `finish_s` on the monotonic clock; the checkpoint stays behind."""
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists():
            state = training.load(checkpoint, self.recipe)
        else:
            state = training.fresh(self.recipe, Architecture(classes=len(self.photos.labels)))
        material = training.material_of(self.photos, self.soft_targets())
        check = training.material_of(self.check, None)
        training.train(state, self.recipe, material, check, self.folder, finish_s, self._reporter())

    def soft_targets(self) -> Floats:
        """The teachers' class scores for every training photo, float32 [n, classes]; computed once, then read."""
        kept = self.folder / "soft_targets.npy"
        if not kept.exists():
            outputs = {name: self._asked(name) for name in teacher.TEACHERS}
            self.progress.console.print("fitting the teachers' last layer")
            features, count = teacher.describe(outputs), len(self.photos.labels)
            np.save(kept, teacher.cross_fit(features, self.photos.classes, count, FOLDS, self.recipe.seed))
        scores: Floats = np.load(kept)
        return scores

    def write(self) -> None:
        """Write both files from the checkpoint, and report.json with what they get right."""
        checkpoint = self.folder / "checkpoint.pt"
        if not checkpoint.exists():
            raise click.ClickException(f"{checkpoint} is not there: nothing to export")
        network = training.load(checkpoint, self.recipe).averaged
        weights = {name: value.numpy() for name, value in network.state_dict().items()}
        task = self.progress.add_task("calibrating", total=exporting.CALIBRATION_PHOTOS)
        advance = self._advancer(task)
        made = exporting.export(weights, network.architecture.stages, self.photos, self.recipe.seed, advance)
        files = {"default.tflite": made.integer, "default_float32.tflite": made.twin}
        (self.folder / "report.json").write_text(
            json.dumps({name: self._written(name, model) for name, model in files.items()}, indent=1)
        )

    def _written(self, name: str, model: bytes) -> dict[str, object]:
        """Write one file; its figures."""
        (self.folder / name).write_bytes(model)
        judgement, labels = judged(model, self.check), self.photos.labels
        self.progress.console.print(exporting.summary(name, model, judgement))
        return {
            "sha256": hashlib.sha256(model).hexdigest(),
            "size_bytes": len(model),
            "top_1": judgement.top_1,
            "top_5": judgement.top_5,
            "classes": exporting.weakest(judgement, labels, len(labels)),
        }

    def _asked(self, name: str) -> Floats:
        """One teacher's outputs for the training photos; asked once, then read from the folder."""
        kept = self.folder / f"{name}.npy"
        if not kept.exists():
            task = self.progress.add_task(f"asking {name}", total=len(self.photos))
            model = self.teachers / f"{name}.tflite"
            np.save(kept, teacher.ask_network(model, self.photos, self._advancer(task)))
        outputs: Floats = np.load(kept)
        return outputs

    def _advancer(self, task: TaskID) -> Callable[[int], None]:
        """A function that moves the bar of `task`."""

        def advance(count: int) -> None:
            self.progress.advance(task, count)

        return advance

    def _reporter(self) -> training.Report:
        """What moves the training's bar, and prints a line per epoch."""
        task = self.progress.add_task("training", total=None)
        steps = len(self.photos) // self.recipe.batch

        def report(epoch: int, progress: float, step: int, line: dict[str, float] | None) -> None:
            done = steps if line is not None else step + 1
            self.progress.update(task, description=f"epoch {epoch}, {progress:.1%} of all", completed=done, total=steps)
            if line is not None:
                figures = ", ".join(f"{key} {value:.4g}" for key, value in line.items())
                self.progress.console.print(figures)

        return report
