"""Changes to a batch of photos that leave their classes: mirrored, shifted, stretched, recoloured, partly covered."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """A changed copy of normalised images, float [n, 3, h, w]."""
    return covered(recoloured(moved(images, generator), generator), generator)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored or not, cut or shrunk by up to a quarter, stretched, shifted and turned a little."""
    count = len(images)
    draw = torch.rand(count, 6, generator=generator)
    mirror = torch.where(draw[:, 0] < 0.5, -1.0, 1.0)
    size = torch.exp(math.log(0.72) + draw[:, 1] * math.log(1.15 / 0.72))
    aspect = torch.exp((draw[:, 2] - 0.5) * 2 * math.log(1.45))
    turn = (draw[:, 3] - 0.5) * 2 * math.radians(8)
    across, down = size * aspect.sqrt(), size / aspect.sqrt()
    room = (1 - size).abs() + 0.12
    shift_x, shift_y = (draw[:, 4] - 0.5) * 2 * room, (draw[:, 5] - 0.5) * 2 * room
    rows = torch.stack(
        [
            torch.stack([across * mirror * turn.cos(), -down * turn.sin(), shift_x], dim=1),
            torch.stack([across * mirror * turn.sin(), down * turn.cos(), shift_y], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with another brightness, contrast and saturation; one in thirty grey."""
    draw = torch.rand(len(images), 4, 1, 1, 1, generator=generator)
    grey = images.mean(dim=1, keepdim=True)
    saturation = torch.where(draw[:, 3] < 1 / 30, torch.zeros(()), 0.7 + 0.6 * draw[:, 0])
    changed = grey + (images - grey) * saturation
    changed = changed * (0.75 + 0.5 * draw[:, 1]) + (draw[:, 2] - 0.5) * 0.4
    return changed.clamp(-1.0, 1.0)


def covered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images with a square of up to a third of their side made grey."""
    count, _, height, width = images.shape
    draw = torch.rand(count, 4, generator=generator)
    side = torch.where(draw[:, 0] < 0.5, torch.zeros(()), draw[:, 1] * 0.35)
    rows = ((torch.arange(height) + 0.5) / height)[None, :] - draw[:, 2:3]
    columns = ((torch.arange(width) + 0.5) / width)[None, :] - draw[:, 3:4]
    inside = (rows.abs() < side[:, None] / 2)[:, :, None] & (columns.abs() < side[:, None] / 2)[:, None, :]
    return images.masked_fill(inside[:, None], 0.0)


def mixed(images: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A `share` of the batch blended with other photos of it (mixup); targets [n, classes] are blended alike."""
    count = len(images)
    draw = torch.rand(count, 2, generator=generator)
    weight = torch.where(draw[:, 0] < share, 0.5 + 0.5 * draw[:, 1], torch.ones(()))
    other = torch.randperm(count, generator=generator)
    blended = images * weight[:, None, None, None] + images[other] * (1 - weight)[:, None, None, None]
    return blended, targets * weight[:, None] + targets[other] * (1 - weight)[:, None]
