"""Optimisers that never take a number that is not finite, and say so when that happens too often."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from policies.hinfinity.mirror import Mirror
from policies.hinfinity.slopes import Slope, slope
from policies.stopping import TrainingDiverged

MOST_BAD = 50  # updates one after another: then training has diverged


class Guard:
    """Counts what was skipped.

    Attributes:
        skipped: updates that were not made because a number was not finite, in all.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._in_a_row = 0
        self._lock = threading.Lock()

    def count(self, finite: bool, what: str) -> None:
        """An update was `finite`, or was skipped for the sake of `what`. Raises TrainingDiverged after too many."""
        with self._lock:
            self._in_a_row = 0 if finite else self._in_a_row + 1
            self.skipped += not finite
        if self._in_a_row >= MOST_BAD:
            raise TrainingDiverged(
                f"{MOST_BAD} updates in a row had no finite numbers ({what}); the last checkpoint is from before."
                " A smaller learning_rate or desired_kl may help"
            )


class GuardedAdam:
    """Adam with a clipped gradient; it keeps parameters symmetric that a `mirror` watches over."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        gradient_clip: float,
        guard: Guard,
        mirror: Mirror | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.adam = torch.optim.Adam(self.parameters, fused=True)
        self.gradient_clip, self.guard, self.mirror = gradient_clip, guard, mirror

    def step(self, loss: Tensor, learning_rate: float, name: str) -> bool:
        """Descend, unless loss or gradient is not finite; whether it was done. Raises TrainingDiverged."""
        return self.descend(slope(loss, self.parameters), learning_rate, name)

    def descend(self, by: Slope, learning_rate: float, name: str) -> bool:
        """As `step`, with the slope at hand."""
        for parameter, gradient in zip(self.parameters, by.gradients, strict=True):
            parameter.grad = gradient
        if self.mirror is not None:
            self.mirror.gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        finite = math.isfinite(by.loss) and bool(torch.isfinite(norm))
        self.guard.count(finite, f"{name}: loss {by.loss}, norm of the gradient {float(norm)}")
        if finite:
            for group in self.adam.param_groups:
                group["lr"] = learning_rate
            self.adam.step()
        return finite
