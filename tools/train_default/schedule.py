"""How fast to learn: a one-cycle schedule over progress 0..1, and progress that can be planned in minutes."""

import math

WARM_UP = 0.04
"""Part of the training over which the rate rises to its peak."""


def learning_rate(progress: float, peak: float) -> float:
    """The rate at `progress` (0 = start, 1 = end): a linear rise, then half a cosine down to zero."""
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, 0.02)
    fraction = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * fraction))


def epochs_left(done: int, planned: int, seconds_left: float | None, epoch_s: float | None) -> int:
    """How many more epochs to plan for, at least 1.

    Without a time limit it is what remains of `planned`. With one it is as many as the measured `epoch_s` allows, and
    `planned` only bounds it; before any epoch was measured, `planned` is taken at its word.
    """
    remaining = max(planned - done, 1)
    if seconds_left is None or epoch_s is None:
        return remaining
    return max(1, min(remaining, int(seconds_left / epoch_s)))


def advance(progress: float, epochs: int, steps: int) -> float:
    """How much one step adds to `progress` so that it reaches 1 after `epochs` epochs of `steps` steps."""
    return (1.0 - progress) / (epochs * steps)


def expected_epoch_s(seconds: list[float]) -> float | None:
    """How long the next epoch may take: the mean of the last five, since other work comes and goes; None before any."""
    recent = seconds[-5:]
    return sum(recent) / len(recent) if recent else None
