"""A checkpoint: `config.json` and `model.safetensors` (averaged weights), read strictly; nothing in it can run code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from contracts import PolicyContract, RobotContract
from contracts.serialization import Contract
from policies.base import Policy
from policies.config import PolicyConfig
from policies.registry import policy_type

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which file and what is wrong with it."""


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

    def policy_config(self) -> PolicyConfig:
        """The typed configuration of the policy. Raises ContractError or ValueError."""
        return policy_type(self.contract.policy).config_type.from_dict(self.policy, source=f"{CONFIG_FILE}: policy")

    def build(self) -> Policy:
        """A network with fresh weights. Raises ContractError or ValueError."""
        return policy_type(self.contract.policy)(self.policy_config(), self.contract)


def is_checkpoint(path: Path | str) -> bool:
    """True for a directory that holds a checkpoint's weights."""
    return (Path(path) / WEIGHTS_FILE).is_file()


def load_checkpoint(path: Path | str) -> tuple[Policy, CheckpointConfig]:
    """The policy, in evaluation mode on the CPU, and what is known of it.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not exactly those of this network.
    """
    path = Path(path)
    config = load_config(path)
    try:
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


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `module` if, and only if, they are exactly its own.

    Raises:
        CheckpointError: lists every tensor that is missing, not known, of another shape or dtype, or not finite.
    """
    wanted = module.state_dict()
    found = [f"missing: {name}" for name in wanted if name not in tensors]
    found += [f"not of this network: {name}" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        if name not in wanted:
            continue
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            right = f"{wanted[name].dtype} {tuple(wanted[name].shape)}"
            found.append(f"{name}: is {tensor.dtype} {tuple(tensor.shape)}, must be {right}")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            found.append(f"{name}: has numbers that are not finite")
    if found:
        raise CheckpointError(f"{source}: not this network's weights:\n" + "\n".join(f"  - {f}" for f in found))
    module.load_state_dict(dict(tensors), strict=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that at any moment the old or the new one is there, whole."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, dict(metadata)))


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, sync, rename."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_config(path: Path, config: CheckpointConfig) -> None:
    """Write `config.json` into the directory `path`."""
    write_atomically(path / CONFIG_FILE, config.to_json().encode())
