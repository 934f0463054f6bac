"""What a walking policy sees and what its actions mean: the same arithmetic in training and on the robot.

For arrays of one robot ([J]) or of many ([N, J]) alike. The layout and its scales are those of HIMLoco
(arXiv 2312.11460), which took them from legged_gym (arXiv 2109.11978).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contracts.serialization import Contract, require, require_finite, require_unique

COMMAND_SCALE = (2.0, 2.0, 0.25)
ANGULAR_VELOCITY_SCALE = 0.25
JOINT_VELOCITY_SCALE = 0.05
CLIP = 100.0  # of scaled observations and of actions; only what has gone wrong is so large

Indices = NDArray[np.int64]


class LocomotionContract(Contract, frozen=True, kw_only=True):
    """A policy of joint positions that is told where to go.

    Attributes:
        joint_names: the order in which the policy was trained. A robot's own may differ: see `order_of`.
        default_pose: what action 0 commands, rad, one a joint.
        action_scale: what action 1 adds to it, rad.
        kp, kd: of the position control it was trained with, N m/rad and N m s/rad.
        period_s: between two actions.
        history: observations that the policy sees at once, the latest first.
    """

    joint_names: tuple[str, ...]
    default_pose: tuple[float, ...]
    action_scale: float
    kp: float
    kd: float
    period_s: float = 0.02
    history: int = 6

    def __post_init__(self) -> None:
        require(bool(self.joint_names), "joint_names names no joint")
        require_unique("the joint", self.joint_names)
        require(len(self.default_pose) == len(self.joint_names), "default_pose must have one position a joint")
        require_finite("a figure of the position control", *self.default_pose, self.action_scale, self.kp, self.kd)
        require(min(self.action_scale, self.kp, self.period_s) > 0, "action_scale, kp and period_s must be positive")
        require(self.kd >= 0 and self.history > 0, "kd cannot be negative, and history must be positive")

    @property
    def observation_size(self) -> int:
        """Elements of one observation: 45 with twelve joints."""
        return 9 + 3 * len(self.joint_names)

    def order_of(self, names: tuple[str, ...]) -> Indices:
        """Where each of `joint_names` stands in `names`: `values[..., order]` is in the policy's order, [J].

        Raises:
            ValueError: `names` does not hold each joint once.
        """
        if sorted(names) != sorted(self.joint_names):
            raise ValueError(f"the policy moves {', '.join(self.joint_names)}; the robot has {', '.join(names)}")
        return np.array([names.index(name) for name in self.joint_names])

    def observation(
        self,
        command: ArrayLike,
        angular_velocity: ArrayLike,
        projected_gravity: ArrayLike,
        joint_position: ArrayLike,
        joint_velocity: ArrayLike,
        last_action: ArrayLike,
    ) -> NDArray[np.float32]:
        """One observation, scaled, float32 [..., 9 + 3 J]; joints in the order of `joint_names`.

        Args:
            command: velocity to go with, forward and left, m/s, and about the vertical, rad/s, in the trunk's heading,
                [..., 3].
            angular_velocity: of the trunk, in its frame, rad/s, [..., 3].
            projected_gravity: the unit vector downward in the trunk's frame, [..., 3].
            joint_position, joint_velocity: rad, rad/s, [..., J].
            last_action: what the policy gave last; 0 at the start, [..., J].
        """
        parts = (
            np.multiply(command, COMMAND_SCALE),
            np.multiply(angular_velocity, ANGULAR_VELOCITY_SCALE),
            projected_gravity,
            np.subtract(joint_position, self.default_pose),
            np.multiply(joint_velocity, JOINT_VELOCITY_SCALE),
            last_action,
        )
        return np.clip(np.concatenate(parts, axis=-1, dtype=np.float32), -CLIP, CLIP)

    def targets(self, action: ArrayLike) -> NDArray[np.float64]:
        """Joint positions that an action [..., J] commands, rad, in the order of `joint_names`, [..., J]."""
        return np.asarray(self.default_pose) + self.action_scale * np.asarray(action, dtype=np.float64)


def projected_gravity(orientation: ArrayLike) -> NDArray[np.float64]:
    """The unit vector downward in the frame of a body whose orientation in the world (z up) is x y z w, [..., 4]."""
    x, y, z, w = np.moveaxis(np.asarray(orientation, dtype=np.float64), -1, 0)
    square = np.maximum(x * x + y * y + z * z + w * w, np.finfo(np.float64).tiny)
    across = np.stack((2 * (w * y - x * z), -2 * (w * x + y * z), 2 * (x * x + y * y)), axis=-1) / square[..., None]
    return across - (0.0, 0.0, 1.0)


def roll_history(history: NDArray[np.float32], observation: NDArray[np.float32]) -> None:
    """Put `observation` [..., D] first in `history` [..., H, D], in place; the oldest falls out."""
    history[..., 1:, :] = history[..., :-1, :].copy()
    history[..., 0, :] = observation
