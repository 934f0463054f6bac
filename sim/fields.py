"""Which number of the simulation each field of the robot contract is."""

from __future__ import annotations

from contracts import RobotContract

HAND = ("hand_x", "hand_y", "hand_z", "hand_opening")
OBJECT = ("x", "y", "z", "qx", "qy", "qz", "qw")
FRAME = HAND + tuple(f"object1_{axis}" for axis in OBJECT) + tuple(f"object2_{axis}" for axis in OBJECT)
STATE = FRAME + tuple(f"previous_{name}" for name in FRAME) + ("goal_x", "goal_y", "goal_z")
"""Names of Meta-World's 39-vector (SawyerXYZEnv._get_obs): a frame, the frame before it, the goal."""

MEASURABLE = {"ee_x": "hand_x", "ee_y": "hand_y", "ee_z": "hand_z", "gripper_opening": "hand_opening"}
"""What a real arm measures too, and the element of the 39-vector that is the same number."""


def field_indices(robot: RobotContract) -> dict[str, int]:
    """Field -> its place in (39-vector, then joint positions in the order of `robot.joint_names`).

    Raises:
        ValueError: the robot has a sensor field that this world cannot measure.
    """
    indices = {name: index for index, name in enumerate((*STATE, *robot.joint_names))}
    indices |= {name: indices[source] for name, source in MEASURABLE.items()}
    unknown = [f for sensor in robot.sensors for f in sensor.fields if f not in indices]
    if unknown:
        raise ValueError(f"Meta-World cannot measure {', '.join(unknown)} of robot {robot.name!r}")
    return indices
