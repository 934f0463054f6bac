"""Messages of arrays, and chunks and commands of messages. (What sensors and cameras say: `contracts.messages`.)

A message that is not exactly what the contract says is an error with a reason.
"""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped, Twist
from numpy.typing import NDArray
from sensor_msgs.msg import Image, Imu, JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from contracts import Camera, RobotContract, Sensor
from contracts.messages import RefusedMessage
from contracts.robot import IMU, JOINT_STATE, POSE, TWIST, VELOCITY
from execution.chunk import MAX_HORIZON, ActionChunk

NANOSECONDS = 1_000_000_000
PERIOD_TOLERANCE_NS = 1_000  # time_from_start is k * period, rounded

SensorMessage: TypeAlias = "JointState | PoseStamped | Imu | Twist"
SENSOR_MESSAGES: dict[str, type[SensorMessage]] = {
    JOINT_STATE: JointState,
    POSE: PoseStamped,
    IMU: Imu,
    TWIST: Twist,
}


def sensor_message_type(sensor: Sensor) -> type[SensorMessage]:
    """The message class of a sensor's topic."""
    return SENSOR_MESSAGES[sensor.type]


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds of a message's stamp."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def to_stamp(nanoseconds: int) -> Time:
    """The inverse of `stamp_ns`."""
    sec, nanosec = divmod(nanoseconds, NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def sensor_message(sensor: Sensor, stamp: int, values: Sequence[float] | NDArray[np.float64]) -> SensorMessage:
    """One measurement as a message.

    Args:
        sensor: which one.
        stamp: time of the measurement, ns of ROS time.
        values: one a field, in the contract's order. (A PoseStamped's orientation is the identity; a Twist has no
            stamp.)
    """
    values = [float(value) for value in values]
    if len(values) != len(sensor.fields):
        raise ValueError(f"sensor {sensor.name!r} has {len(sensor.fields)} fields, not {len(values)}")
    message = sensor_message_type(sensor)()
    if isinstance(message, Twist):
        message.linear.x, message.linear.y, message.angular.z = values
        return message
    message.header.stamp = to_stamp(stamp)
    message.header.frame_id = sensor.frame
    if isinstance(message, PoseStamped):
        position = message.pose.position
        position.x, position.y, position.z = values
    elif isinstance(message, Imu):  # covariances stay 0: unknown
        q, w, a = message.orientation, message.angular_velocity, message.linear_acceleration
        q.x, q.y, q.z, q.w, w.x, w.y, w.z, a.x, a.y, a.z = values
    else:
        given = dict(zip(sensor.fields, values, strict=True))
        message.name = list(sensor.positions or sensor.velocities)
        message.position = array.array("d", [given[joint] for joint in sensor.positions])
        if sensor.velocities:
            message.velocity = array.array("d", [given[joint + VELOCITY] for joint in message.name])
    return message


def image_message(camera: Camera, stamp: int, image: NDArray[np.uint8]) -> Image:
    """A picture, uint8 [height, width, 3] RGB, taken at `stamp` (ns of ROS time), as a message."""
    if image.shape != (camera.height, camera.width, 3) or image.dtype != np.uint8:
        wanted = (camera.height, camera.width, 3)
        raise ValueError(f"camera {camera.name!r}: {image.dtype} {image.shape}, not uint8 {wanted}")
    message = Image()
    message.header.stamp = to_stamp(stamp)
    message.header.frame_id = camera.frame
    message.height, message.width, message.step = camera.height, camera.width, camera.width * 3
    message.encoding = camera.encoding
    message.data = array.array("B", image.tobytes())  # a NumPy array would be checked element by element: 44 ms
    return message


def chunk_message(chunk: ActionChunk, stamp: int) -> JointTrajectory:
    """An action chunk as a message: points[k].positions is action k, whatever its unit; the contract names it.

    Args:
        chunk: what to send.
        stamp: time of the observation that it answers, ns of ROS time (the chunk's own may be on another clock).
    """
    message = JointTrajectory()
    message.header.stamp = to_stamp(stamp)
    message.joint_names = list(chunk.names)
    for k, action in enumerate(chunk.actions):
        sec, nanosec = divmod(k * chunk.period_ns, NANOSECONDS)
        point = JointTrajectoryPoint(time_from_start=Duration(sec=sec, nanosec=nanosec))
        point.positions = array.array("d", action.tobytes())
        message.points.append(point)
    return message


def chunk_from_message(message: JointTrajectory, period_ns: int, start_ns: int | None = None) -> ActionChunk:
    """An action chunk.

    Args:
        message: what came.
        period_ns: time between two actions; points[k] must be due k of these after the start.
        start_ns: the message's stamp, told on the caller's clock; None: as it is, in ROS time.

    Raises:
        RefusedMessage: reason `size`, `names`, `period` or `non_finite`.
    """
    names, points = tuple(message.joint_names), message.points
    if not 1 <= len(points) <= MAX_HORIZON:
        raise RefusedMessage("size", f"a chunk has 1 to {MAX_HORIZON} points, not {len(points)}")
    if not names or len(set(names)) != len(names):
        raise RefusedMessage("names", f"a chunk names each of its channels once, not {list(names)}")
    for k, point in enumerate(points):
        if len(point.positions) != len(names):
            raise RefusedMessage("size", f"point {k} has {len(point.positions)} positions for {len(names)} names")
        due_ns = point.time_from_start.sec * NANOSECONDS + point.time_from_start.nanosec
        if abs(due_ns - k * period_ns) > PERIOD_TOLERANCE_NS:
            raise RefusedMessage("period", f"point {k} is due after {due_ns} ns; it must be {k} x {period_ns} ns")
    actions = np.array([point.positions for point in points], dtype=np.float64)
    if not np.isfinite(actions).all():
        k, i = np.argwhere(~np.isfinite(actions))[0]
        raise RefusedMessage("non_finite", f"point {k} has {actions[k, i]} in {names[i]}")
    start_ns = stamp_ns(message.header.stamp) if start_ns is None else start_ns
    return ActionChunk(actions, start_ns, period_ns, names)


def command_message(values: NDArray[np.float64], robot: RobotContract) -> Float64MultiArray:
    """A command [dim] as ros2_controllers' forward_command_controller takes it: one number a channel, in order."""
    message = Float64MultiArray()
    size = len(robot.command.channels)
    message.layout.dim = [MultiArrayDimension(label="channels", size=size, stride=size)]
    message.data = array.array("d", np.asarray(values, dtype=np.float64).tobytes())
    return message


def command_from_message(message: Float64MultiArray, robot: RobotContract) -> NDArray[np.float64]:
    """A command [dim], finite and within every channel's range.

    Raises:
        RefusedMessage: reason `size`, `layout`, `non_finite` or `range`.
    """
    channels = robot.command.channels
    if len(message.data) != len(channels):
        raise RefusedMessage("size", f"a command has {len(channels)} elements, not {len(message.data)}")
    sizes = [dim.size for dim in message.layout.dim]
    if message.layout.data_offset != 0 or (sizes and math.prod(sizes) != len(channels)):
        raise RefusedMessage(
            "layout", f"layout {sizes}, offset {message.layout.data_offset}, do not describe {len(channels)} elements"
        )
    for channel, value in zip(channels, message.data, strict=True):
        if not math.isfinite(value):
            raise RefusedMessage("non_finite", f"{channel.name}: {value}")
        if not channel.min <= value <= channel.max:
            raise RefusedMessage("range", f"{channel.name}: {value} is not within [{channel.min}, {channel.max}]")
    return np.array(message.data, dtype=np.float64)
