"""ROS 2's standard messages without ROS: their definitions, and CDR bytes to objects and back."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rosbags.serde.errors import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

HISTORY_KEEP_LAST = 1
RELIABILITY = {"reliable": 1, "best_effort": 2}
DURABILITY = {"transient_local": 1, "volatile": 2}


class MessageError(ValueError):
    """A message that cannot be read or written; says of which type, and why."""


@functools.cache
def typestore() -> Typestore:
    """The message types of ROS 2 Kilted; those used here are the same in Jazzy and newer."""
    return get_typestore(Stores.ROS2_KILTED)


@functools.cache
def message_definition(type_name: str) -> str:
    """The text of a message type (`sensor_msgs/msg/Image`) with all that it is made of, as MCAP's `ros2msg` wants it.

    Raises:
        MessageError: it is not one of ROS 2's standard messages.
    """
    if type_name not in typestore().types:
        raise MessageError(
            f"{type_name!r} is not a standard ROS 2 message type; one like 'sensor_msgs/msg/Image' would be right"
        )
    return typestore().generate_msgdef(type_name, ros_version=2)[0]


def is_definition(type_name: str, definition: str) -> bool:
    """True if the text defines the message type and all that it is made of, as `message_definition` gives it."""
    try:
        types = get_types_from_msg(definition, type_name)
        store = get_typestore(Stores.EMPTY)
        store.register(types)
        store.generate_msgdef(type_name, ros_version=2)
    except TypesysError:
        return False
    return True


def message_type(type_name: str) -> Any:
    """The class of a message type: message_type("std_msgs/msg/Bool")(data=True). Raises MessageError."""
    message_definition(type_name)
    return typestore().types[type_name]


def serialize(message: Any, type_name: str) -> bytes:
    """A message of the type as CDR bytes. Raises MessageError."""
    message_definition(type_name)
    try:
        return bytes(typestore().serialize_cdr(message, type_name))
    except SerdeError as error:
        raise MessageError(f"{type_name}: {error}") from None


def deserialize(data: bytes, type_name: str) -> Any:
    """CDR bytes as a message of the type. Raises MessageError where they are damaged or the type is not known."""
    message_definition(type_name)
    try:
        return typestore().deserialize_cdr(data, type_name)
    except SerdeError as error:
        raise MessageError(f"{type_name}: {error}") from None


def time_message(stamp_ns: int) -> Any:
    """builtin_interfaces/Time of a stamp in nanoseconds."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return message_type("builtin_interfaces/msg/Time")(seconds, nanoseconds)


def header_message(stamp_ns: int, frame: str = "") -> Any:
    """std_msgs/Header."""
    return message_type("std_msgs/msg/Header")(time_message(stamp_ns), frame)


def stamp_ns(message: Any) -> int:
    """The header stamp of a message, ns."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def joint_state(stamp: int, frame: str, names: list[str], positions: ArrayLike, velocities: ArrayLike = ()) -> Any:
    """sensor_msgs/JointState; `stamp` in ns; of positions and velocities, each is one a name, or none at all."""
    given = (np.asarray(numbers, dtype=np.float64) for numbers in (positions, velocities, ()))
    return message_type("sensor_msgs/msg/JointState")(header_message(stamp, frame), names, *given)


def number_array(values: np.ndarray) -> Any:
    """std_msgs/Float64MultiArray of one dimension."""
    layout = message_type("std_msgs/msg/MultiArrayLayout")(dim=[], data_offset=0)
    return message_type("std_msgs/msg/Float64MultiArray")(layout, np.asarray(values, dtype=np.float64))


def qos_yaml(reliability: str, durability: str, depth: int) -> str:
    """A topic's quality of service as rosbag2 keeps it in `offered_qos_profiles`.

    Args:
        reliability: `reliable` or `best_effort`.
        durability: `volatile` or `transient_local`.
        depth: of the keep-last history.
    """
    forever = "{sec: 9223372036, nsec: 854775807}"
    return (
        f"- {{history: {HISTORY_KEEP_LAST}, depth: {depth}, reliability: {RELIABILITY[reliability]}, "
        f"durability: {DURABILITY[durability]}, deadline: {forever}, lifespan: {forever}, liveliness: 1, "
        f"liveliness_lease_duration: {forever}, avoid_ros_namespace_conventions: false}}"
    )
