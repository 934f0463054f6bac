"""What training asks of an environment: who makes one knows nothing of PPO, who trains knows nothing of MuJoCo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.locomotion import LocomotionContract
from contracts.reflection import Reflection

Float32 = NDArray[np.float32]


class Transition(Protocol):
    """What a step brought, one row an environment; where an episode ended, the next one has begun already."""

    @property
    def reward(self) -> Float32:
        """[N]."""

    @property
    def cost(self) -> Float32:
        """What the task's rewards fell short of their bound, within [0, Environment.cost_bound], [N]."""

    @property
    def fell(self) -> NDArray[np.bool_]:
        """The episode ended for good: nothing comes after it, [N]."""

    @property
    def timed_out(self) -> NDArray[np.bool_]:
        """The episode was cut off: values go on beyond it, [N]."""

    @property
    def final_privileged(self) -> Float32:
        """Where `timed_out`: what the critic would have seen next, [N, P]."""

    @property
    def velocity_error(self) -> Float32:
        """m/s, [N]."""

    @property
    def figures(self) -> Mapping[str, float]:
        """By name, to be logged."""


class Environment(Protocol):
    """Many robots at one task, stepped together."""

    @property
    def contract(self) -> LocomotionContract:
        """What a policy sees and what its actions mean."""

    @property
    def count(self) -> int:
        """N, environments."""

    @property
    def period_s(self) -> float:
        """Of a step."""

    @property
    def cost_bound(self) -> float:
        """Largest cost of a step."""

    @property
    def observation(self) -> Float32:
        """What the actor sees now, its history included, [N, O]."""

    @property
    def privileged(self) -> Float32:
        """What critic and disturber see now, [N, P]."""

    @property
    def velocity(self) -> slice:
        """Where the trunk's velocity stands in `privileged`: three numbers, which the actor's estimator learns."""

    @property
    def mirror(self) -> Mapping[str, Reflection] | None:
        """Of `observation`, `privileged` and `action` by name, left and right exchanged; None: no two like sides."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What it is, in plain data, to tell one run from another."""

    def step(self, action: Float32, force: NDArray[np.float64] | None = None) -> Transition:
        """One control period.

        Args:
            action: [N, A].
            force: on the trunks, in their heading's frame (x forward, y left, z up), N, [N, 3]; None: none.
        """

    def snapshot(self) -> dict[str, NDArray]:
        """All that `restore` needs to go on from here bit for bit."""

    def restore(self, snapshot: dict[str, NDArray]) -> None:
        """Back to a snapshot. Raises ValueError if it does not fit."""
