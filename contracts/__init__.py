"""What a robot and a policy promise each other.

Both promises are small frozen trees, read strictly from YAML or JSON: an unknown key, a missing one, a wrong type or a
limit that makes no sense is an error that names the place. They travel inside every dataset, checkpoint, bundle and
recording, and are compared before anything moves.
"""

from contracts.compare import ContractMismatch, check_compatible, differences
from contracts.feature import Feature
from contracts.policy import PolicyContract, PolicyObservation
from contracts.robot import (
    Camera,
    CommandChannel,
    CommandInterface,
    PositionControl,
    RobotContract,
    Sensor,
    TaskInterface,
    available_robots,
    load_robot,
)
from contracts.serialization import ContractError

__all__ = [
    "Camera",
    "CommandChannel",
    "CommandInterface",
    "ContractError",
    "ContractMismatch",
    "Feature",
    "PolicyContract",
    "PolicyObservation",
    "PositionControl",
    "RobotContract",
    "Sensor",
    "TaskInterface",
    "available_robots",
    "check_compatible",
    "differences",
    "load_robot",
]
