"""The training loop: seeded, checkpointed after every epoch, able to end at a given time."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.train_default.augment import augmented, mixed
from tools.train_default.layers import Floats
from tools.train_default.network import Architecture, Network, normalised
from tools.train_default.photos import PhotoSet
from tools.train_default.schedule import advance, learning_rate

Report = Callable[[int, float, int, dict[str, float] | None], None]
"""Called after every step as (epoch, progress 0 to 1, step, None), after an epoch with its figures."""

DONE = 1.0 - 1e-9
"""Progress at which a training is over; not 1 sharp, since progress is a sum."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train; the figures that were chosen are the defaults."""

    epochs: int = 90
    batch: int = 128
    peak_rate: float = 0.1
    decay: float = 5e-4
    momentum: float = 0.9
    average: float = 0.998
    temperature: float = 2.0
    teacher_share: float = 0.8
    mixup_share: float = 0.25
    smoothing: float = 0.05
    seed: int = 3


@dataclass(slots=True)
class State:
    """Everything that a training needs to go on where it stopped."""

    network: Network
    averaged: Network
    optimiser: torch.optim.SGD
    generator: torch.Generator
    progress: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned: `pixels` uint8 [n, 3, 64, 64], `classes` int64 [n], the teacher's `logits` [n, classes]."""

    pixels: Tensor
    classes: Tensor
    logits: Tensor


def material_of(photos: PhotoSet, logits: Floats | None) -> Material:
    """Photos as tensors; without the teacher's `logits` they are good for checking only."""
    pixels = torch.from_numpy(np.ascontiguousarray(photos.pixels.transpose(0, 3, 1, 2)))
    scores = np.zeros((len(photos), len(photos.labels)), np.float32) if logits is None else logits
    return Material(pixels, torch.from_numpy(photos.classes), torch.from_numpy(scores))


def fresh(recipe: Recipe, architecture: Architecture) -> State:
    """A state before the first step, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    network = Network(architecture).to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    plain = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, recipe.peak_rate, recipe.momentum, nesterov=True)
    return State(network, copy.deepcopy(network), optimiser, torch.Generator().manual_seed(recipe.seed))


def save(state: State, path: Path) -> None:
    """Write the checkpoint, whole or not at all."""
    parts = {
        "architecture": asdict(state.network.architecture),
        "network": state.network.state_dict(),
        "averaged": state.averaged.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "generator": state.generator.get_state(),
        "progress": state.progress,
        "history": state.history,
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(parts, unfinished)
    unfinished.replace(path)


def load(path: Path, recipe: Recipe) -> State:
    """The state that `save` wrote."""
    parts: dict[str, Any] = torch.load(path, weights_only=True)
    shape = parts["architecture"]
    state = fresh(
        recipe, Architecture(shape["stem"], tuple(tuple(stage) for stage in shape["stages"]), shape["classes"])
    )
    state.network.load_state_dict(parts["network"])
    state.averaged.load_state_dict(parts["averaged"])
    state.optimiser.load_state_dict(parts["optimiser"])
    state.generator.set_state(parts["generator"])
    state.progress, state.history = parts["progress"], parts["history"]
    return state


def train(
    state: State,
    recipe: Recipe,
    material: Material,
    check: Material,
    folder: Path,
    finish_s: float | None,
    report: Report,
) -> None:
    """Train until the recipe's epochs are done, or until `finish_s` on the monotonic clock; checkpoints go to `folder`.

    With a time limit the last epoch may be a part of one. The check after each epoch comes on top of the time.
    """
    while state.progress < DONE:
        epoch, started = len(state.history) + 1, time.monotonic()

        def stepped(step: int, epoch: int = epoch) -> None:
            report(epoch, state.progress, step, None)

        loss = run_epoch(state, recipe, material, finish_s, stepped)
        top_1, top_5 = accuracy(state.averaged, check)
        line = {"epoch": epoch, "loss": loss, "top_1": top_1, "top_5": top_5, "progress": state.progress}
        line["seconds"] = time.monotonic() - started
        state.history.append(line)
        save(state, folder / "checkpoint.pt")
        (folder / "history.json").write_text(json.dumps(state.history))
        report(epoch, state.progress, -1, line)


def run_epoch(
    state: State, recipe: Recipe, material: Material, finish_s: float | None, stepped: Callable[[int], None]
) -> float:
    """One pass over the material in a fresh order, or as much of it as there is time for; the mean loss."""
    state.network.train()
    order = torch.randperm(len(material.classes), generator=state.generator)
    batches = order.split(recipe.batch)
    if len(batches[-1]) < recipe.batch and len(batches) > 1:
        batches = batches[:-1]
    planned = max(recipe.epochs - len(state.history), 1) * len(batches)
    total, number = 0.0, 0
    while number < len(batches) and state.progress < DONE:
        began = time.monotonic()
        total += learn(state, recipe, material, batches[number])
        now = time.monotonic()
        left = None if finish_s is None else finish_s - now
        state.progress += advance(state.progress, planned - number, now - began, left)
        stepped(number)
        number += 1
    return total / max(number, 1)


def learn(state: State, recipe: Recipe, material: Material, batch: Tensor) -> float:
    """One step of the optimiser on one batch, the averaged weights following; the loss before it."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.progress, recipe.peak_rate)
    loss = batch_loss(state, recipe, material, batch)
    state.optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
    nn.utils.clip_grad_norm_(state.network.parameters(), 5.0)
    state.optimiser.step()
    _follow(state.averaged, state.network, recipe.average)
    return float(loss.detach())


def batch_loss(state: State, recipe: Recipe, material: Material, batch: Tensor) -> Tensor:
    """Distance from the teacher's softened answer, mixed with that from the true class."""
    images = augmented(normalised(material.pixels[batch]), state.generator)
    count = material.logits.shape[1]
    soft = functional.softmax(material.logits[batch] / recipe.temperature, dim=1)
    hard = functional.one_hot(material.classes[batch], count) * (1 - recipe.smoothing) + recipe.smoothing / count
    images, targets = mixed(images, torch.cat([soft, hard], dim=1), recipe.mixup_share, state.generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = state.network(images.contiguous(memory_format=torch.channels_last))
    logits = logits.float()
    taught = -(targets[:, :count] * functional.log_softmax(logits / recipe.temperature, dim=1)).sum(dim=1).mean()
    true = -(targets[:, count:] * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
    return recipe.teacher_share * recipe.temperature**2 * taught + (1 - recipe.teacher_share) * true


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def accuracy(network: Network, material: Material) -> tuple[float, float]:
    """Parts of the material whose class is the first answer, and among the first five."""
    network.eval()
    first = fifth = 0
    for pixels, classes in zip(material.pixels.split(256), material.classes.split(256), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(normalised(pixels))
        found = logits.float().topk(5, dim=1).indices == classes[:, None]
        first += int(found[:, 0].sum())
        fifth += int(found.any(dim=1).sum())
    return first / len(material.classes), fifth / len(material.classes)


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def _follow(averaged: Network, network: Network, share: float) -> None:
    """Move the averaged weights and statistics a little towards the network's."""
    mine, theirs = list(averaged.parameters()), list(network.parameters())
    torch._foreach_lerp_(mine, theirs, 1 - share)
    for target, source in zip(averaged.buffers(), network.buffers(), strict=True):
        if target.is_floating_point():
            target.lerp_(source, 1 - share)
        else:
            target.copy_(source)
