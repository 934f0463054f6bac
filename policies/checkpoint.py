"""A checkpoint: `config.json` and `model.safetensors` (averaged weights), read strictly; nothing in it can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from contracts import PolicyContract, RobotContract
from contracts.serialization import Contract
from episodes.files import write_atomic
from policies.base import Policy
from policies.config import ChunkConfig
from policies.registry import policy_type
from policies.tensors import CheckpointError, load_strictly, read_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class CheckpointConfig(Contract, frozen=True, kw_only=True):
    """`config.json`: all that is needed to build the network again, and where it came from.

    Attributes:
        policy: the configuration of the family that `contract.policy` names.
        contract: the policy's promise.
        robot: the contract of the robot whose data it learned from.
        training: the trainer's configuration and what the data was, for people and for `resume`.
    """

    policy: dict[str, Any]
    contract: PolicyContract
    robot: RobotContract
    training: dict[str, Any]

    def policy_config(self) -> ChunkConfig:
        """The typed configuration of the policy. Raises ContractError or ValueError."""
        return policy_type(self.contract.policy).config_type.from_dict(self.policy, source=f"{CONFIG_FILE}: policy")

    def with_sampling(self, choices: Mapping[str, str]) -> CheckpointConfig:
        """The same with other choices of `Policy.sampling`, name -> value as text, such as `inference_steps` -> `16`.

        Raises:
            ValueError: training depends on such a choice, or there is none, or not this value.
        """
        kind = policy_type(self.contract.policy)
        unknown = sorted(set(choices) - set(kind.sampling))
        if unknown:
            can = ", ".join(kind.sampling)
            raise ValueError(f"{unknown[0]} cannot be chosen after training; of a {kind.family} policy can: {can}")
        values = {name: yaml.safe_load(value) for name, value in choices.items()}
        config = kind.config_type.from_dict(self.policy | values, source="sampling")
        return msgspec.structs.replace(self, policy=config.to_dict())

    def build(self) -> Policy:
        """A network with fresh weights. Raises ContractError or ValueError."""
        policy = policy_type(self.contract.policy)(self.policy_config(), self.contract)
        policy.fit_robot(self.robot)
        return policy


def is_checkpoint(path: Path | str) -> bool:
    """True for a directory that holds a checkpoint's weights."""
    return (Path(path) / WEIGHTS_FILE).is_file()


def require_state(state: Path) -> None:
    """Raises CheckpointError where weights lie without the training state beside them, with which they were made.

    Training could not go on with them, and would write its own in their place.
    """
    if is_checkpoint(state.parent) and not state.exists():
        raise CheckpointError(
            f"{state.parent} holds a checkpoint without its {state.name}, which training would replace: choose another "
            f"directory, or remove {WEIGHTS_FILE}"
        )


def load_checkpoint(path: Path | str, sampling: Mapping[str, str] | None = None) -> tuple[Policy, CheckpointConfig]:
    """The policy, in evaluation mode on the CPU, and what is known of it.

    `sampling`: choices to be made anew (`CheckpointConfig.with_sampling`).

    Raises:
        CheckpointError: a file is missing or damaged, the weights are not exactly those of this network, or a choice
            cannot be made.
    """
    path = Path(path)
    config = load_config(path)
    try:
        config = config.with_sampling(sampling or {})
        policy = config.build()
    except ValueError as error:
        raise CheckpointError(f"{path / CONFIG_FILE}: {error}") from None
    tensors, _ = read_tensors(path / WEIGHTS_FILE)
    load_strictly(policy, tensors, str(path / WEIGHTS_FILE))
    return policy.eval(), config


def load_config(path: Path) -> CheckpointConfig:
    """Read a checkpoint's `config.json`. Raises CheckpointError."""
    try:
        return CheckpointConfig.load(path / CONFIG_FILE)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def write_config(path: Path, config: CheckpointConfig) -> None:
    """Write `config.json` into the directory `path`."""
    write_atomic(path / CONFIG_FILE, config.to_json().encode())
