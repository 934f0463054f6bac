"""What a policy answers: a few actions, and when each of them is meant to be carried out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_HORIZON = 10_000
TICK_TOLERANCE = 0.01
"""Fraction of a period by which "now" may lie before an action's time and still be taken as that time. Stamps are
rounded to nanoseconds and pass through two clocks, so "the same tick" is never exactly the same number."""


@dataclass(frozen=True)
class ActionChunk:
    """Actions for consecutive periods; action k is meant for `start_ns + k * period_ns`.

    Attributes:
        actions: float64 [horizon, dim], read-only, in the units of the robot contract's channels.
        start_ns: stamp of the observation that it answers.
        period_ns: time between two actions.
        names: the channel of each of the `dim` elements.

    Raises:
        ValueError: not two-dimensional, empty, not finite, names that do not match, or an impossible time.
    """

    actions: NDArray[np.float64]
    start_ns: int
    period_ns: int
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        actions = np.array(self.actions, dtype=np.float64)  # a copy: nobody changes a chunk after it was checked
        if actions.ndim != 2 or not 1 <= len(actions) <= MAX_HORIZON or actions.shape[1] < 1:
            raise ValueError(f"an action chunk is [horizon, dim] with 1 to {MAX_HORIZON} actions, not {actions.shape}")
        if len(self.names) != actions.shape[1]:
            raise ValueError(f"an action has {actions.shape[1]} elements, but {len(self.names)} names: {self.names}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"a name stands twice in {self.names}")
        if not np.isfinite(actions).all():
            k, i = np.argwhere(~np.isfinite(actions))[0]
            raise ValueError(f"action {k} has {actions[k, i]} in {self.names[i]}; every element must be finite")
        if self.period_ns <= 0:
            raise ValueError(f"period_ns must be positive, not {self.period_ns}")
        actions.flags.writeable = False
        object.__setattr__(self, "actions", actions)

    @property
    def horizon(self) -> int:
        """Number of actions."""
        return len(self.actions)

    def index(self, now_ns: int) -> int:
        """Which action is meant for `now_ns`: negative before the first one, `horizon` or more after the last."""
        tolerance = int(self.period_ns * TICK_TOLERANCE)
        return (now_ns - self.start_ns + tolerance) // self.period_ns
