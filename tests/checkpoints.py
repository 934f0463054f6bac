"""A policy's checkpoint without its training."""

from __future__ import annotations

from pathlib import Path

from contracts import RobotContract
from policies.base import Policy
from policies.checkpoint import WEIGHTS_FILE, CheckpointConfig, write_config
from policies.tensors import write_tensors


def write_checkpoint(policy: Policy, robot: RobotContract, path: Path) -> Path:
    """What `visuomotor export` needs; returns `path`, which need not be there yet."""
    path.mkdir(parents=True, exist_ok=True)
    config = CheckpointConfig(policy=policy.config.to_dict(), contract=policy.contract, robot=robot, training={})
    write_config(path, config)
    write_tensors(path / WEIGHTS_FILE, policy.state_dict(), {})
    return path
