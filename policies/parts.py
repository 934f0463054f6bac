"""What a bundle is made of, from a checkpoint of whatever kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contracts import PolicyContract, RobotContract
from policies.base import Graph
from policies.checkpoint import load_checkpoint
from policies.runtime.bundle import is_bundle
from policies.runtime.sampler import Sampler
from policies.tensors import CheckpointError


@dataclass(frozen=True)
class Parts:
    """All of a trained policy that acting needs.

    Attributes:
        contract: what it sees and gives.
        robot: contract of the robot that it is for.
        sampler: how its graphs become actions.
        graphs: by name.
        told: of the model card, further rows: title -> text.
    """

    contract: PolicyContract
    robot: RobotContract
    sampler: Sampler
    graphs: dict[str, Graph]
    told: dict[str, str]


def load_parts(
    checkpoint: Path | str, sampling: Mapping[str, str] | None = None, robot: Path | str | None = None
) -> Parts:
    """Open a checkpoint of demonstrations' or of `visuomotor train hinfinity`.

    Args:
        checkpoint: its directory.
        sampling: choices to be made otherwise than in training (`CheckpointConfig.with_sampling`).
        robot: name or path of the contract of the robot that a walking policy is for; None: as trained. Its joints,
            channels and fields may stand in another order.

    Raises:
        CheckpointError: the checkpoint cannot be used, or not so.
        ContractError: there is no such robot, or the policy cannot drive it.
    """
    from policies.hinfinity.checkpoint import is_walking
    from policies.hinfinity.export import walking_parts

    if is_bundle(checkpoint):
        raise CheckpointError(f"{checkpoint} is a bundle already; name the checkpoint that it was exported from")
    if is_walking(checkpoint):
        if sampling:
            raise CheckpointError(f"{next(iter(sampling))} cannot be chosen after training; of walking nothing can")
        return walking_parts(checkpoint, robot)
    if robot is not None:
        raise CheckpointError("a policy of demonstrations is for the robot that they are of, and no other")
    policy, config = load_checkpoint(checkpoint, sampling)
    told = {
        "network": listed(config.policy),
        "data": listed(config.training.get("data", {})),
        "training": listed(config.training.get("config", {})),
    }
    return Parts(config.contract, config.robot, policy.sampler(), policy.graphs(), told)


def listed(values: Mapping[str, object]) -> str:
    """Names and values as text."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
