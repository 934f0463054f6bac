"""From a walking checkpoint to what a bundle is made of: the actor, and what it promises to which robot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contracts import (
    ContractError,
    Feature,
    PolicyContract,
    PolicyObservation,
    PositionControl,
    RobotContract,
    Sensor,
    check_compatible,
    load_robot,
)
from contracts.locomotion import LocomotionContract
from contracts.robot import VELOCITY
from policies.base import Graph
from policies.hinfinity.checkpoint import LocomotionCheckpoint, load_networks
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.networks import Actor
from policies.parts import Parts, listed
from policies.runtime.locomotion import ACTOR, STATE
from policies.runtime.sampler import LocomotionSampler
from policies.tensors import CheckpointError, read_tensors
from policies.training_state import STATE_FILE

FAMILY = "hinfinity"
OBSERVATION_SET = "proprioception"
TASK = "walk as told"
HORIZON = 4
"""Commands of a chunk, all alike. The robot obeys the second at its next tick; two more are there for when the next
inference is late. After that, 75 ms after the observation, there is nothing to obey, and the controller falls back."""
CURRICULUM = ".environment.commands.curriculum"  # a group's, in the training's state: share of the ranges, and more
IMU, REQUEST = "sensor_msgs/msg/Imu", "geometry_msgs/msg/Twist"


class Mean(nn.Module):
    """An actor as it acts when it does not explore."""

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observation: Tensor) -> Tensor:
        """Actions [B, J] of observations [B, O], latest of the history first."""
        return self.actor(observation)


def walking_parts(checkpoint: Path | str, robot: Path | str | None = None) -> Parts:
    """The parts of a walking checkpoint, for the robot that it was trained on or for another contract of such a robot.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ContractError: there is no such robot, or the policy cannot drive it; says all that it lacks.
    """
    path = Path(checkpoint)
    networks, config = load_networks(path)
    obeyed = load_robot(config.robot if robot is None else robot)
    walk = config.locomotion
    command, imu, feature = _looked_at(obeyed, walk)
    contract = PolicyContract(
        policy=FAMILY,
        robot=obeyed.name,
        observation_set=OBSERVATION_SET,
        task=TASK,
        observations=(PolicyObservation(feature=feature, history=walk.history),),
        action=obeyed.action_feature,
        action_period_s=walk.period_s,
        horizon=HORIZON,
        execute=1,
        position_control=PositionControl(kp=walk.kp, kd=walk.kd),
    )
    check_compatible(contract, obeyed)
    sampler = LocomotionSampler(
        locomotion=walk,
        command_limits=_trained_commands(path, config),
        command=(command.fields[0], command.fields[1], command.fields[2]),
        orientation=(imu.fields[0], imu.fields[1], imu.fields[2], imu.fields[3]),
        angular_velocity=(imu.fields[4], imu.fields[5], imu.fields[6]),
    )
    seen = torch.zeros(2, walk.history * walk.observation_size)
    actor = Graph(Mean(networks.actor), {"observation": seen}, ("action",), batched=True)
    return Parts(contract, obeyed, sampler, {ACTOR: actor}, _told(config, sampler))


def _looked_at(robot: RobotContract, walk: LocomotionContract) -> tuple[Sensor, Sensor, Feature]:
    """The velocity command, the IMU and the observation. Raises ContractError: all that the robot lacks."""
    fields = robot.observation_sets.get(OBSERVATION_SET, {}).get(STATE, ())
    seen = [sensor for sensor in robot.sensors if set(sensor.fields) & set(fields)]
    found = {kind: [sensor for sensor in seen if sensor.type == kind] for kind in (REQUEST, IMU)}
    where = f"{STATE} of the observation set {OBSERVATION_SET!r}"
    lacks = [f"{where} must see one {kind}, not {len(found[kind])}" for kind in found if len(found[kind]) != 1]
    joints = [name for joint in walk.joint_names for name in (joint, joint + VELOCITY)]
    lacks += [f"{where} lacks {name}" for name in joints if name not in fields]
    parts = [sensor.fields[:7] for sensors in found.values() for sensor in sensors]
    lacks += [f"{where} lacks {name}" for part in parts for name in part if name not in fields]
    if robot.command.kind != "joint_position":
        lacks.append(f"its commands must be joint_position, not {robot.command.kind}")
    try:
        walk.order_of(robot.action_feature.names)
    except ValueError as error:
        lacks.append(str(error))
    if lacks:
        reasons = "\n".join(f"  - {reason}" for reason in lacks)
        raise ContractError(f"this walking policy cannot drive {robot.name}:\n{reasons}")
    (feature,) = (f for f in robot.observation_features(OBSERVATION_SET) if f.key == STATE)
    return found[REQUEST][0], found[IMU][0], feature


def _trained_commands(path: Path, config: LocomotionCheckpoint) -> tuple[float, float, float]:
    """Largest commands that training has come to, m/s and rad/s; without its state, those that it began with.

    Raises:
        CheckpointError: the checkpoint does not say, or its state is damaged.
    """
    commands = config.environment.get("commands")
    try:
        forward, left, turn, share = (float(commands[name]) for name in ("forward", "left", "turn", "start"))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: does not say which velocity commands it was trained for") from None
    state = path / STATE_FILE
    if state.exists():
        tensors, _ = read_tensors(state)
        shares = [float(values[0]) for name, values in tensors.items() if name.endswith(CURRICULUM)]
        if not shares:
            raise CheckpointError(f"{state}: does not say how far the velocity commands have come")
        share = min(shares)
    return share * forward, share * left, share * turn


def _told(config: LocomotionCheckpoint, sampler: LocomotionSampler) -> dict[str, str]:
    """Further rows of the model card."""
    forward, left, turn = (f"{limit:g}" for limit in sampler.command_limits)
    walk = config.locomotion
    return {
        "velocity commands": f"up to {forward} m/s forward and back, {left} m/s sideways, {turn} rad/s turning",
        "position control": f"kp {walk.kp:g} N m/rad, kd {walk.kd:g} N m s/rad; targets {walk.action_scale:g} rad x"
        " action from the default pose",
        "trained by": f"`{training_command(config)}`",
        "environment": listed({k: v for k, v in config.environment.items() if not isinstance(v, dict)}),
        "randomised": listed(config.environment.get("randomization", {})),
    }


def training_command(config: LocomotionCheckpoint) -> str:
    """What to type to train it again, but for the output: all that is not as it is by default."""
    environment: dict[str, Any] = config.environment
    kinds = environment.get("terrain", {}).get("kinds", [])
    terrain = "flat" if not kinds else "rough" if set(kinds) <= {"flat", "rough"} else "all"
    words = ["visuomotor train hinfinity", f"--robot {config.robot} --terrain {terrain}"]
    words += [f"--envs {environment['environments']}"] if "environments" in environment else []
    if config.start_from is not None:  # a bundle does not tell of the machine that made it
        start = Path(config.start_from)
        words.append(f"--start-from {start.name if start.is_absolute() else start}")
    defaults = HInfinityConfig().to_dict()
    for name, value in config.config.to_dict().items():
        if value != defaults[name] and value is not None:
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words.append(f"--{option} {' '.join(map(str, value)) if isinstance(value, tuple | list) else value}")
    return " ".join(words)
