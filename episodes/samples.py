"""Messages made from measurements, and what is asked of a recorded one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contracts.feature import Feature
from contracts.robot import IMU, POSE, TWIST, VELOCITY, Camera, RobotContract, Sensor
from episodes.messages import header_message, joint_state, message_type, stamp_ns

IMAGE = "sensor_msgs/msg/Image"
BOOL = "std_msgs/msg/Bool"
STRING = "std_msgs/msg/String"


def topic_name(namespace: str, topic: str) -> str:
    """A topic of the contract in full: within the robot's namespace (`/left`), unless it is absolute."""
    return topic if topic.startswith("/") else f"{namespace}/{topic}"


def is_sustained(robot: RobotContract) -> bool:
    """Whether success is not to have failed (to walk as requested), rather than to have got there."""
    return any(sensor.is_request for sensor in robot.sensors)


def check_finite(values: Sequence[float]) -> None:
    """Raise ValueError unless every number is finite, also as the float32 that a dataset keeps."""
    with np.errstate(over="ignore"):
        if not np.isfinite(np.array(values, dtype=np.float32)).all():
            raise ValueError(f"holds a number that is not finite in 32 bits: {values}")


def named_positions(message: Any) -> dict[str, float]:
    """A JointState's positions by name. Raises ValueError when names and positions do not pair."""
    if len(message.name) != len(message.position) or len(set(message.name)) != len(message.name):
        raise ValueError(f"has {len(message.name)} names (each may stand once) for {len(message.position)} positions")
    return dict(zip(message.name, (float(value) for value in message.position), strict=True))


@dataclass
class Timeline:
    """Values with their stamps, ns; asked for the newest at or before a time."""

    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, stamp: int, value: Any) -> None:
        """Take one sample, in any order."""
        self.stamps.append(stamp)
        self.values.append(value)

    def newest(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each time, int64 [T], the index of the newest sample at or before it (-1: none) and its age in ns."""
        stamps = np.array(self.stamps, dtype=np.int64)
        order = np.argsort(stamps, kind="stable")
        positions = np.searchsorted(stamps[order], times, side="right") - 1
        if not len(order):
            return positions, np.zeros_like(times)
        indices = np.where(positions >= 0, order[positions], -1)
        return indices, times - stamps[indices]


def sensor_message(robot: RobotContract, sensor: Sensor, values: dict[str, float], stamp: int) -> Any:
    """A sensor's message with the values there are, by field name."""
    if sensor.type == POSE:
        point = message_type("geometry_msgs/msg/Point")(*(values[name] for name in sensor.fields))
        still = message_type("geometry_msgs/msg/Quaternion")(0.0, 0.0, 0.0, 1.0)
        pose = message_type("geometry_msgs/msg/Pose")(point, still)
        return message_type(POSE)(header_message(stamp, sensor.frame), pose)
    if sensor.type == IMU:
        qx, qy, qz, qw, *rest = (values[name] for name in sensor.fields)
        orientation = message_type("geometry_msgs/msg/Quaternion")(qx, qy, qz, qw)
        vector, unknown = message_type("geometry_msgs/msg/Vector3"), np.zeros(9)
        header, turning, pushed = header_message(stamp, sensor.frame), vector(*rest[:3]), vector(*rest[3:])
        return message_type(IMU)(header, orientation, unknown, turning, unknown, pushed, unknown)
    if sensor.type == TWIST:
        x, y, yaw = (values[name] for name in sensor.fields)
        vector = message_type("geometry_msgs/msg/Vector3")
        return message_type(TWIST)(vector(x, y, 0.0), vector(0.0, 0.0, yaw))
    joints = [name for name in sensor.positions if name in values]
    turning = [name for name in sensor.velocities if name + VELOCITY in values]
    names = joints or turning
    rates = [values[name + VELOCITY] for name in names] if set(names) <= set(turning) else []
    return joint_state(stamp, sensor.frame, names, [values[name] for name in joints], rates)


def image_message(camera: Camera, image: np.ndarray, stamp: int) -> Any:
    """A camera's message of one picture, uint8 [height, width, 3]."""
    height, width, _ = image.shape
    data = np.ascontiguousarray(image).reshape(-1)
    header = header_message(stamp, camera.frame)
    return message_type(IMAGE)(header, height, width, camera.encoding, 0, width * 3, data)


def episode_message(description: dict[str, Any]) -> Any:
    """The `episode` topic's message."""
    return message_type(STRING)(data=json.dumps(description))


def sensors_of(robot: RobotContract, features: tuple[Feature, ...]) -> tuple[list[Sensor], list[Camera]]:
    """The sensors and cameras that measure any part of the features."""
    fields = {name for feature in features if not feature.is_image for name in feature.names}
    cameras = {feature.camera for feature in features if feature.is_image}
    return (
        [sensor for sensor in robot.sensors if fields & set(sensor.fields)],
        [camera for camera in robot.cameras if camera.name in cameras],
    )


def message_stamp(message: Any) -> int:
    """Header stamp, ns; raises ValueError for one before 1970."""
    stamp = stamp_ns(message)
    if stamp < 0:
        raise ValueError(f"is stamped {stamp} ns")
    return stamp
