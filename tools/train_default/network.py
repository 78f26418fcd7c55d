"""The network, in PyTorch: a small residual network whose padding is that of TFLite."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Architecture:
    """Channels of the stem, and per stage (channels, blocks, stride); `classes` outputs."""

    stem: int = 24
    stages: tuple[tuple[int, int, int], ...] = ((32, 1, 1), (64, 2, 2), (128, 2, 2), (192, 2, 2))
    classes: int = 20


class ConvNorm(nn.Module):  # type: ignore[misc,unused-ignore]
    """A convolution without bias and its batch normalisation; SAME padding as TFLite does it."""

    def __init__(self, entry: int, channels: int, kernel: int, stride: int) -> None:
        """`entry` channels in, `channels` out, a square `kernel`, `stride` 1 or 2."""
        super().__init__()
        self.stride, self.kernel = stride, kernel
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(entry, channels, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        """[n, entry, h, w] to [n, channels, h / stride, w / stride]; h and w are even where the stride is 2."""
        if self.stride == 2 and self.kernel == 3:
            # TFLite's SAME pads an even size only at its end; PyTorch's padding is equal on both sides.
            images = functional.pad(images, (0, 1, 0, 1))
        return cast(Tensor, self.norm(self.conv(images)))


class Block(nn.Module):  # type: ignore[misc,unused-ignore]
    """Two 3x3 convolutions beside a shortcut, which is pooled and projected where the shape changes."""

    def __init__(self, entry: int, channels: int, stride: int) -> None:
        """`entry` channels in, `channels` out; `stride` 2 halves rows and columns."""
        super().__init__()
        self.stride = stride
        self.first = ConvNorm(entry, channels, 3, stride)
        self.second = ConvNorm(channels, channels, 3, 1)
        self.shortcut = None if entry == channels and stride == 1 else ConvNorm(entry, channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[n, entry, h, w] to [n, channels, h / stride, w / stride]."""
        beside = images
        if self.stride == 2:
            beside = functional.avg_pool2d(beside, 2)
        if self.shortcut is not None:
            beside = self.shortcut(beside)
        return functional.relu(beside + self.second(functional.relu(self.first(images))))


class Network(nn.Module):  # type: ignore[misc,unused-ignore]
    """Stem, stages of residual blocks, mean over the picture, one dense layer; logits out."""

    def __init__(self, architecture: Architecture) -> None:
        """Fresh weights, from the global random state of torch."""
        super().__init__()
        self.architecture = architecture
        self.stem = ConvNorm(3, architecture.stem, 3, 2)
        blocks: list[Block] = []
        entry = architecture.stem
        for channels, count, stride in architecture.stages:
            for index in range(count):
                blocks.append(Block(entry, channels, stride if index == 0 else 1))
                entry = channels
        self.blocks = nn.ModuleList(blocks)
        self.dense = nn.Linear(entry, architecture.classes)
        for block in blocks:
            nn.init.zeros_(block.second.norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Float images [n, 3, 64, 64], normalised to (x - 128) / 128, to logits [n, classes]."""
        features = functional.relu(self.stem(images))
        for block in self.blocks:
            features = block(features)
        return cast(Tensor, self.dense(features.mean(dim=(2, 3)).float()))


def normalised(pixels: Tensor) -> Tensor:
    """Bytes 0..255 as the network's input: (x - 128) / 128, channels last in memory."""
    return ((pixels.float() - 128.0) / 128.0).contiguous(memory_format=torch.channels_last)
