"""What a sensor's or a camera's message must be to count, and the numbers or the picture that it holds.

Messages are told by their fields, not by their classes: those that a robot's nodes hear (rclpy's) and those that lie in
a recording (rosbags') look alike. So both are judged by one rule: what a node refuses is no training data either.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.robot import IMU, JOINT_STATE, POSE, TWIST, VELOCITY, Camera, Sensor

UNIT_TOLERANCE = 0.01  # an orientation's length may differ from 1 by this


class RefusedMessage(ValueError):
    """A message that must be dropped; `reason` is short, for counting; the text says what would be right."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def sensor_fields(
    message: Any, sensor: Sensor, needed: Collection[str] | None = None
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """What a sensor's message measured, or asks for.

    Args:
        message: of the sensor's type.
        sensor: whose message it is.
        needed: the fields that a JointState must have; None: all of the sensor's. (A recording made from a dataset has
            no others than the dataset.)

    Returns:
        The contract's field names, in its order, and a finite value for each. A JointState may carry more joints, and
        lacks at most fields that are not needed; a Twist's other three components, which no field stands for, are left
        out, but must be finite too.

    Raises:
        RefusedMessage: reason `size`, `names`, `frame`, `orientation` (an Imu's is no rotation, or it has none) or
            `non_finite`.
    """
    fields = sensor.fields
    values: tuple[float, ...]
    if sensor.type in (POSE, IMU) and message.header.frame_id != sensor.frame:
        raise RefusedMessage("frame", f"{sensor.name}: frame {message.header.frame_id!r}, not {sensor.frame!r}")
    if sensor.type == POSE:
        position = message.pose.position
        values = (position.x, position.y, position.z)
    elif sensor.type == IMU:
        values = _imu_values(message, sensor)
    elif sensor.type == TWIST:
        linear, angular = message.linear, message.angular
        if not all(map(math.isfinite, (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z))):
            raise RefusedMessage("non_finite", f"{sensor.name}: {message}")
        values = (linear.x, linear.y, angular.z)
    else:
        fields, values = _joint_values(message, sensor, set(fields if needed is None else needed))
    if not all(math.isfinite(value) for value in values):
        raise RefusedMessage("non_finite", f"{sensor.name}: {dict(zip(fields, values, strict=True))}")
    return fields, values


class SensorReader:
    """Reads what comes on a sensor's topic, which others may share: an arm and its gripper on `joint_states`."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self._heard = False

    def read(self, message: Any) -> tuple[tuple[str, ...], tuple[float, ...]] | None:
        """What the sensor measured: see `sensor_fields`. None: it is a message of other joints only.

        That is known once the sensor was heard; until then it may be this sensor's, under other names.

        Raises:
            RefusedMessage: as `sensor_fields`.
        """
        if self._heard and not concerns(message, self.sensor):
            return None
        read = sensor_fields(message, self.sensor)
        self._heard = True
        return read


def concerns(message: Any, sensor: Sensor) -> bool:
    """False of a JointState of other joints only."""
    return sensor.type != JOINT_STATE or not {*sensor.positions, *sensor.velocities}.isdisjoint(message.name)


def _joint_values(message: Any, sensor: Sensor, needed: set[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """A JointState's fields and numbers in the order of the sensor's, joints found by name. Raises RefusedMessage."""
    names = list(message.name)
    if len(set(names)) != len(names):
        raise RefusedMessage("names", f"{sensor.name}: a joint stands twice in {names}")
    given: dict[str, float] = {}
    for what, joints, suffix in (("position", sensor.positions, ""), ("velocity", sensor.velocities, VELOCITY)):
        numbers = getattr(message, what)
        if not joints or (not len(numbers) and needed.isdisjoint(joint + suffix for joint in joints)):
            continue
        if len(numbers) != len(names):
            raise RefusedMessage("size", f"{sensor.name}: {len(names)} names but {what} has {len(numbers)} numbers")
        given.update((name + suffix, float(number)) for name, number in zip(names, numbers, strict=True))
    missing = [field for field in sensor.fields if field in needed and field not in given]
    if missing:
        raise RefusedMessage("names", f"{sensor.name}: {missing} missing; there are {names}")
    fields = tuple(field for field in sensor.fields if field in given)
    return fields, tuple(given[field] for field in fields)


def _imu_values(message: Any, sensor: Sensor) -> tuple[float, ...]:
    """The ten numbers of an Imu, in the order of `contracts.Sensor`. Raises RefusedMessage `orientation`."""
    if message.orientation_covariance[0] == -1:  # how a driver says that it does not estimate one (REP-145)
        raise RefusedMessage("orientation", f"{sensor.name}: this IMU gives no orientation")
    q, w, a = message.orientation, message.angular_velocity, message.linear_acceleration
    length = math.hypot(q.x, q.y, q.z, q.w)
    if abs(length - 1) > UNIT_TOLERANCE:  # NaN is told by the caller
        raise RefusedMessage("orientation", f"{sensor.name}: a quaternion of length {length:g} is no orientation")
    return (q.x, q.y, q.z, q.w, w.x, w.y, w.z, a.x, a.y, a.z)


def image_array(message: Any, camera: Camera) -> NDArray[np.uint8]:
    """A picture, uint8 [height, width, 3] RGB (a view of the message's own memory); what pads its rows is left out.

    Raises:
        RefusedMessage: reason `size`, `encoding`, `step`, `frame` or `data`.
    """
    if (message.height, message.width) != (camera.height, camera.width):
        got, wanted = f"{message.height}x{message.width}", f"{camera.height}x{camera.width}"
        raise RefusedMessage("size", f"{camera.name}: a picture of {got} (height x width), the contract says {wanted}")
    if message.encoding != camera.encoding:
        raise RefusedMessage("encoding", f"{camera.name}: encoding {message.encoding!r}, not {camera.encoding!r}")
    if message.header.frame_id != camera.frame:
        raise RefusedMessage("frame", f"{camera.name}: frame {message.header.frame_id!r}, not {camera.frame!r}")
    row = camera.width * 3
    if message.step < row:
        raise RefusedMessage("step", f"{camera.name}: step {message.step} is less than the {row} bytes of a row")
    if len(message.data) != camera.height * message.step:
        raise RefusedMessage("data", f"{camera.name}: {len(message.data)} bytes, not {camera.height * message.step}")
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(camera.height, message.step)
    return rows[:, :row].reshape(camera.height, camera.width, 3)
