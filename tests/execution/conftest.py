"""Robots of other kinds than the project's own, for the execution room."""

from __future__ import annotations

import pytest

from contracts import RobotContract, load_robot


@pytest.fixture(scope="session")
def robot() -> RobotContract:
    """Twist and gripper at 80 Hz: heartbeat 60 ms, chunk 250 ms, recovery 500 ms, no ramp."""
    return load_robot("metaworld_sawyer")


def _changed(robot: RobotContract, **changes) -> RobotContract:
    """The same robot with other `task`, `command` or other entries; channels are merged by name."""
    data = robot.to_dict()
    channels = changes.pop("channels", {})
    for channel in data["command"]["channels"]:
        channel.update(channels.get(channel["name"], {}))
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    return RobotContract.from_dict(data)


@pytest.fixture(scope="session")
def changed():
    """changed(robot, task={...}, command={...}, channels={name: {...}}) -> RobotContract."""
    return _changed


@pytest.fixture(scope="session")
def arm(robot) -> RobotContract:
    """A two-joint position-controlled arm at 80 Hz that ramps in over 0.1 s."""
    channel = {"unit": "rad", "min": -2.0, "max": 2.0, "max_rate": 2.0, "hold": "measured"}
    limits = {"position_min": -1.5, "position_max": 1.5}
    return RobotContract.from_dict(
        {
            "name": "arm",
            "body": "external",
            "control_rate_hz": 80,
            "joint_names": ["shoulder", "elbow"],
            "home": [0, 0],
            "sensors": [
                {
                    "name": "joints",
                    "topic": "joint_states",
                    "type": "sensor_msgs/msg/JointState",
                    "fields": ["shoulder", "elbow"],
                    "units": ["rad", "rad"],
                    "rate_hz": 80,
                    "timeout_s": 0.1,
                }
            ],
            "observation_sets": {"state": {"observation.state": ["shoulder", "elbow"]}},
            "command": {
                "topic": "commands",
                "kind": "joint_position",
                "timeout_s": 0.05,
                "channels": [
                    {"name": "shoulder", "measured_by": "shoulder", **channel, **limits},
                    {"name": "elbow", "measured_by": "elbow", **channel},
                ],
            },
            "task": {"heartbeat_timeout_s": 0.06, "chunk_timeout_s": 0.25, "recover_s": 0.5, "ramp_s": 0.1},
            "source": "made up",
        }
    )
