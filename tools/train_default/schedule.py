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


def advance(progress: float, steps: int, step_s: float, seconds_left: float | None) -> float:
    """How much one step adds to `progress`, so that it reaches 1 after `steps` more, or when the time is over.

    With a time limit, a step that took `step_s` counts for its part of the time that was left before it: the schedule
    keeps to the clock however the machine's speed changes, and `steps` is then only the most there will be.
    """
    by_count = (1.0 - progress) / max(steps, 1)
    if seconds_left is None:
        return by_count
    part = 1.0 if seconds_left <= 0 else step_s / (seconds_left + step_s)
    return max(by_count, (1.0 - progress) * part)
