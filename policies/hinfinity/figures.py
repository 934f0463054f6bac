"""Figures of an iteration, to be logged."""

from __future__ import annotations

import math
from collections import defaultdict

from torch import Tensor

from policies.hinfinity.forces import NOBODY, PUSHERS, direction_entropy
from policies.hinfinity.rollout import Rollout


class Tally:
    """Means by name; NaN does not count."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, **figures: float) -> None:
        """One value each."""
        for name, value in figures.items():
            if not math.isnan(value):
                self._sums[name] += value
                self._counts[name] += 1

    def means(self) -> dict[str, float]:
        """Of all that was added."""
        return {name: value / self._counts[name] for name, value in self._sums.items()}


def force_figures(rollout: Rollout, who: Tensor, period_s: float) -> dict[str, float]:
    """What the forces were, what they cost a second, and how often robots fell, by who pushed.

    `cost_per_newton`: what robots lose more than those that nobody pushes, where there are some, per newton; with what
    falls cost besides, the constraint bounds it by eta.
    `direction_entropy` is of the forces that acted: with 0.3 of its vertical part, chance itself has 0.91.
    """
    figures: dict[str, float] = {}
    for name, number in ({"nobody": NOBODY} | PUSHERS).items():
        rows = who == number
        if not rows.any():
            continue
        cost = float(rollout.cost[:, rows].mean()) / period_s
        figures[f"cost/{name}"] = cost
        figures[f"falls_per_minute/{name}"] = float(rollout.fell[:, rows].float().mean()) * 60 / period_s
        force = rollout.force[:, rows].flatten(0, 1)
        if force.any():
            size = float(force.norm(dim=-1).mean())
            figures[f"force/{name}"] = size
            figures[f"direction_entropy/{name}"] = direction_entropy(force)
            figures[f"cost_per_newton/{name}"] = (cost - figures.get("cost/nobody", 0.0)) / size
    return figures


def falls_that_pay(value: Tensor, fall: Tensor, who: Tensor) -> dict[str, float]:
    """Share of the steps in which a robot does better to fall than to go on, by who pushed: it should be hardly any.

    Args:
        value: expected reward from the steps on, [T, N].
        fall: what a fall is worth to each robot, in reward, [N].
        who: pushes it, [N].
    """
    pays = (value < fall).float()
    return {f"fall_pays/{name}": float(pays[:, who == n].mean()) for name, n in PUSHERS.items() if (who == n).any()}
