"""A push on a simulated robot, as a message and back."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Vector3, Wrench, WrenchStamped
from std_msgs.msg import Header

from contracts.messages import RefusedMessage
from ros_nodes.body import HEADING, WORLD, Push
from ros_nodes.conversions import to_stamp

MAX_FORCE_N = 400.0


def push_message(push: Push, stamp: int) -> WrenchStamped:
    """A push as a message; `stamp` in ns of ROS time."""
    x, y, z = (float(value) for value in push.force)
    header = Header(stamp=to_stamp(stamp), frame_id=push.frame)
    return WrenchStamped(header=header, wrench=Wrench(force=Vector3(x=x, y=y, z=z)))


def push_from_message(message: WrenchStamped) -> Push:
    """A push, finite and within MAX_FORCE_N.

    Raises:
        RefusedMessage: reason `frame`, `torque`, `non_finite` or `range`.
    """
    frame, force, torque = message.header.frame_id, message.wrench.force, message.wrench.torque
    if frame not in (WORLD, HEADING):
        raise RefusedMessage("frame", f"a push in the frame {frame!r}; {WORLD!r} or {HEADING!r} would be right")
    if (torque.x, torque.y, torque.z) != (0.0, 0.0, 0.0):
        raise RefusedMessage("torque", f"a push with the torque {torque}; zero would be right")
    values = np.array([force.x, force.y, force.z])
    if not np.isfinite(values).all():
        raise RefusedMessage("non_finite", f"a push of {values} N")
    if np.abs(values).max() > MAX_FORCE_N or np.linalg.norm(values) > MAX_FORCE_N:
        raise RefusedMessage("range", f"a push of {values} N; at most {MAX_FORCE_N:g} N would be right")
    return Push(values, frame)
