"""What many quadrupeds do at one moment, as arrays of one row an environment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.legged.figures import JOINTS, LEGS
from sim.legged.terrain import Terrain

Array = NDArray[np.float64]

NQ, NV = 7 + len(JOINTS), 6 + len(JOINTS)
POSITIONS = slice(1, 1 + NQ)  # of MuJoCo's full physics state: time, qpos, qvel
VELOCITIES = slice(1 + NQ, 1 + NQ + NV)
STATE_SIZE = 1 + NQ + NV

SENSORS = {
    "orientation": slice(0, 4),
    "gyro": slice(4, 7),
    "accelerometer": slice(7, 10),
    "velocimeter": slice(10, 13),
    "torque": slice(13, 25),
    "foot_position": slice(25, 37),
    "foot_force": slice(37, 41),
}
"""Places in MuJoCo's sensor data, as `sim.legged.mjcf` writes the sensors."""


@dataclass(frozen=True, eq=False)
class QuadrupedState:
    """One row an environment; contiguous float64 (but for `foot_contact` and `diverged`); joints as in JOINTS, feet as
    in LEGS. What is marked * is of the last physics step's beginning, 5 ms earlier than the rest, as MuJoCo has it.

    Attributes:
        position: of the trunk's origin in the world, m, [N, 3].
        orientation: of the trunk in the world, quaternion w x y z (MuJoCo's order, not ROS's), [N, 4].
        linear_velocity: of the trunk's origin, in the trunk's frame, m/s, [N, 3].
        angular_velocity: of the trunk, in its frame, rad/s, [N, 3].
        projected_gravity: the unit vector downward in the trunk's frame, [N, 3]; (0, 0, -1) when level.
        height: of the trunk's origin above the ground below it, m, [N].
        joint_position, joint_velocity: rad, rad/s, [N, 12].
        torque: * of the actuators, N m, [N, 12].
        acceleration: * that the IMU measures (at rest, 9.81 upward), in the trunk's frame, m/s^2, [N, 3].
        foot_position: * of the feet's centres in the world, m, [N, 4, 3].
        foot_height: * of the feet's lowest points above the ground below them, m, [N, 4].
        foot_contact: * whether a foot touches the ground, bool, [N, 4].
        diverged: the physics gave numbers that are not finite: reset it, and learn nothing from it, bool, [N].
    """

    position: Array
    orientation: Array
    linear_velocity: Array
    angular_velocity: Array
    projected_gravity: Array
    height: Array
    joint_position: Array
    joint_velocity: Array
    torque: Array
    acceleration: Array
    foot_position: Array
    foot_height: Array
    foot_contact: NDArray[np.bool_]
    diverged: NDArray[np.bool_]


def read_state(physics: Array, sensors: Array, terrain: Terrain, foot_radius: float) -> QuadrupedState:
    """From MuJoCo's full physics states [N, 38] and sensor data [N, 41]; nothing is shared with them."""
    qpos, qvel = physics[:, POSITIONS], physics[:, VELOCITIES]
    feet = sensors[:, SENSORS["foot_position"]].reshape(-1, len(LEGS), 3).copy()
    diverged = np.logical_not(np.isfinite(np.concatenate((physics, sensors), axis=1)).all(axis=1), dtype=np.bool_)
    ground = np.concatenate((qpos[:, None, :2], feet[:, :, :2]), axis=1)
    ground_height = terrain.height(np.where(diverged[:, None, None], 0.0, ground))
    return QuadrupedState(
        position=qpos[:, :3].copy(),
        orientation=qpos[:, 3:7].copy(),
        linear_velocity=to_body(qpos[:, 3:7], qvel[:, :3]),
        angular_velocity=qvel[:, 3:6].copy(),
        projected_gravity=to_body(qpos[:, 3:7], np.broadcast_to((0.0, 0.0, -1.0), (len(qpos), 3))),
        height=qpos[:, 2] - ground_height[:, 0],
        joint_position=qpos[:, 7:].copy(),
        joint_velocity=qvel[:, 6:].copy(),
        torque=sensors[:, SENSORS["torque"]].copy(),
        acceleration=sensors[:, SENSORS["accelerometer"]].copy(),
        foot_position=feet,
        foot_height=feet[:, :, 2] - foot_radius - ground_height[:, 1:],
        foot_contact=sensors[:, SENSORS["foot_force"]] > 0,
        diverged=diverged,
    )


def replace_rows(state: QuadrupedState, rows: NDArray[np.int64], other: QuadrupedState) -> QuadrupedState:
    """A copy of `state` in which `rows` [K] are those of `other` (of K environments)."""
    arrays = {name: value.copy() for name, value in vars(state).items()}
    for name, value in vars(other).items():
        arrays[name][rows] = value
    return QuadrupedState(**arrays)


def take_rows(state: QuadrupedState, rows: NDArray[np.int64]) -> QuadrupedState:
    """A copy of `rows` [K] alone."""
    return QuadrupedState(**{name: value[rows] for name, value in vars(state).items()})


def to_body(orientation: Array, vectors: Array) -> Array:
    """World vectors [N, 3] in the frame that quaternions w x y z [N, 4] turn into the world's."""
    w, axis = orientation[:, :1], -orientation[:, 1:]
    twice = 2.0 * _cross(axis, vectors)
    return vectors + w * twice + _cross(axis, twice)


def _cross(one: Array, other: Array) -> Array:
    """Of vectors [N, 3] each; NumPy's own takes four times as long, for the sake of other shapes."""
    (a, b, c), (x, y, z) = one.T, other.T
    return np.stack((b * z - c * y, c * x - a * z, a * y - b * x), axis=-1)


def yaw_quaternion(yaw: Array) -> Array:
    """w x y z [N, 4] of turns about the vertical, rad [N]."""
    zeros = np.zeros_like(yaw)
    return np.stack((np.cos(yaw / 2), zeros, zeros, np.sin(yaw / 2)), axis=-1)


def heading(orientation: Array) -> Array:
    """Yaw of quaternions w x y z [N, 4], rad, [N]."""
    w, x, y, z = orientation.T
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def turn(vectors: Array, yaw: Array) -> Array:
    """Vectors [N, ..., 2 or 3] turned about the vertical by `yaw` [N], rad."""
    yaw = yaw.reshape(-1, *(1,) * (vectors.ndim - 2))
    c, s = np.cos(yaw), np.sin(yaw)
    x, y = vectors[..., 0], vectors[..., 1]
    turned = np.broadcast_to(vectors, (len(yaw), *vectors.shape[1:])).copy()
    turned[..., 0], turned[..., 1] = c * x - s * y, s * x + c * y
    return turned
