"""What walking is rewarded for: HIMLoco's terms (arXiv 2312.11460), each of them a rate per second.

The two tracking terms are the task; the cost of the H-infinity constraint (arXiv 2404.14405) is what they fall short of
their bound. The others shape how the robot walks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.legged.state import Array, QuadrupedState

TRACKING_VARIANCE = 0.25  # (m/s)^2 and (rad/s)^2 at which a tracking term has fallen to 1/e
SWING_HEIGHT_M = 0.08  # of a foot's lowest point above the ground: HIMLoco's 0.2 m below a trunk at 0.3 m
TASK_TERMS = ("velocity", "yaw_rate")


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the terms of `reward_terms`, by their names.

    Attributes:
        velocity, yaw_rate: tracking the command; the others are penalties.
        vertical_velocity, roll_pitch_rate, orientation, height: of the trunk.
        joint_acceleration, power: of the joints.
        foot_clearance: feet that move low or high above the ground.
        action_rate, smoothness: first and second differences of the actions.
    """

    velocity: float = 1.0
    yaw_rate: float = 0.5
    vertical_velocity: float = -2.0
    roll_pitch_rate: float = -0.05
    orientation: float = -0.2
    height: float = -1.0
    joint_acceleration: float = -2.5e-7
    power: float = -2e-5
    foot_clearance: float = -0.01
    action_rate: float = -0.01
    smoothness: float = -0.01

    @property
    def task_bound(self) -> float:
        """Largest sum of the task's terms, per second."""
        return sum(getattr(self, name) for name in TASK_TERMS)


def weighted_terms(terms: dict[str, Array], weights: RewardWeights, shaping: float) -> dict[str, Array]:
    """Each term times its weight, per second, [N]; of those that are not the task's, the share `shaping`."""
    shares = {name: 1.0 if name in TASK_TERMS else shaping for name in terms}
    return {name: weight * shares[name] * terms[name] for name, weight in vars(weights).items()}


def reward_terms(
    state: QuadrupedState,
    command: NDArray[np.float64],
    actions: NDArray[np.float64],
    joint_velocity_before: Array,
    foot_position_before: Array,
    standing_height: float,
    period_s: float,
) -> dict[str, Array]:
    """Every term by name, without its weight, [N].

    Args:
        state: after the step.
        command: forward and left, m/s, and turning, rad/s, [N, 3].
        actions: this one, the last, and the one before that, [N, 3, 12].
        joint_velocity_before: at the step's beginning, rad/s, [N, 12].
        foot_position_before: at the step's beginning, in the world, m, [N, 4, 3].
        standing_height: that the trunk should keep above the ground below it, m.
        period_s: of a step.
    """
    velocity_error = _squares(state.linear_velocity[:, :2] - command[:, :2])
    yaw_error = (state.angular_velocity[:, 2] - command[:, 2]) ** 2
    foot_velocity = (state.foot_position[:, :, :2] - foot_position_before[:, :, :2]) / period_s
    foot_speed = np.sqrt(_squares(foot_velocity))
    change, last_change = actions[:, 0] - actions[:, 1], actions[:, 1] - actions[:, 2]
    return {
        "velocity": np.exp(-velocity_error / TRACKING_VARIANCE),
        "yaw_rate": np.exp(-yaw_error / TRACKING_VARIANCE),
        "vertical_velocity": state.linear_velocity[:, 2] ** 2,
        "roll_pitch_rate": _squares(state.angular_velocity[:, :2]),
        "orientation": _squares(state.projected_gravity[:, :2]),
        "height": (state.height - standing_height) ** 2,
        "joint_acceleration": _squares((state.joint_velocity - joint_velocity_before) / period_s),
        "power": np.einsum("ij,ij->i", np.abs(state.torque), np.abs(state.joint_velocity)),
        "foot_clearance": ((state.foot_height - SWING_HEIGHT_M) ** 2 * foot_speed).sum(axis=1),
        "action_rate": _squares(change),
        "smoothness": _squares(change - last_change),
    }


def _squares(values: Array) -> Array:
    """Sum of squares over the last axis."""
    return np.einsum("...j,...j->...", values, values)
