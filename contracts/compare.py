"""Does this policy fit this robot? Every reason why not, by name, before anything moves."""

from __future__ import annotations

from contracts.feature import Feature
from contracts.policy import PolicyContract
from contracts.robot import RobotContract
from contracts.serialization import ContractError

RATE_TOLERANCE = 1e-6  # relative


class ContractMismatch(ContractError):
    """The policy does not fit the robot; the message lists every difference."""


def differences(policy: PolicyContract, robot: RobotContract) -> list[str]:
    """Every way in which `policy` does not fit `robot`, a sentence each; empty when it fits."""
    found = []
    if policy.robot != robot.name:
        found.append(f"robot: the policy was trained for {policy.robot!r}, this is {robot.name!r}")
    period = robot.control_period_s
    if abs(policy.action_period_s - period) > RATE_TOLERANCE * period:
        found.append(
            f"rate: the policy acts every {policy.action_period_s * 1e3:.3f} ms, the robot every {period * 1e3:.3f} ms"
        )
    blind_s = (policy.execute - 1) * policy.action_period_s  # age of the last action before it looks again
    if blind_s > robot.task.chunk_timeout_s + RATE_TOLERANCE:
        found.append(
            f"timing: the policy looks again after {policy.execute} actions, the last of them {blind_s:.3g} s after "
            f"what it answers; nothing older than task.chunk_timeout_s, {robot.task.chunk_timeout_s:g} s, is obeyed"
        )
    wanted, stated = policy.position_control, robot.command.position_control
    if wanted is not None and stated is not None and wanted != stated:
        found.append(
            f"position control: the policy was trained with kp {wanted.kp:g} and kd {wanted.kd:g}, "
            f"the robot has kp {stated.kp:g} and kd {stated.kd:g}"
        )
    found += _feature_differences(policy.action, robot.action_feature)
    if policy.observation_set not in robot.observation_sets:
        found.append(
            f"observations: the policy needs the set {policy.observation_set!r}, "
            f"the robot has {sorted(robot.observation_sets)}"
        )
        return found
    offered = {f.key: f for f in robot.observation_features(policy.observation_set)}
    for observation in policy.observations:
        key = observation.feature.key
        if key not in offered:
            found.append(f"{key}: the policy needs it, the robot's set {policy.observation_set!r} does not have it")
        else:
            found += _feature_differences(observation.feature, offered[key])
    return found


def check_compatible(policy: PolicyContract, robot: RobotContract) -> None:
    """Refuse a policy that does not fit.

    Raises:
        ContractMismatch: with every difference, one a line.
    """
    found = differences(policy, robot)
    if found:
        listed = "\n".join(f"  - {difference}" for difference in found)
        raise ContractMismatch(f"this {policy.policy} policy does not fit {robot.name}; nothing was started:\n{listed}")


def _feature_differences(wanted: Feature, offered: Feature) -> list[str]:
    """Differences of one array: size, then order, names and units element by element. (The key tells the type.)"""
    key = wanted.key
    found = []
    if wanted.shape != offered.shape:
        found.append(f"{key}: the policy has shape {wanted.shape}, the robot {offered.shape}")
    if wanted.is_image:
        return found
    if set(wanted.names) == set(offered.names) and wanted.names != offered.names:
        found.append(f"{key}: other order: the policy has {list(wanted.names)}, the robot {list(offered.names)}")
    else:
        missing = [n for n in wanted.names if n not in offered.names]
        extra = [n for n in offered.names if n not in wanted.names]
        if missing:
            found.append(f"{key}: the policy has {missing}, which the robot does not")
        if extra:
            found.append(f"{key}: the robot has {extra}, which the policy does not")
    offered_units = dict(zip(offered.names, offered.units, strict=True))
    for name, unit in zip(wanted.names, wanted.units, strict=True):
        if name in offered_units and offered_units[name] != unit:
            found.append(f"{key}.{name}: the policy uses {unit!r}, the robot {offered_units[name]!r}")
    return found
