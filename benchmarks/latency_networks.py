"""Networks of known sizes with random weights, which make no difference to the time, and observations for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from contracts import PolicyContract, load_robot
from contracts.feature import vector
from execution.observation import Observation
from policies.base import make_contract
from policies.checkpoint import WEIGHTS_FILE, CheckpointConfig, write_config
from policies.registry import policy_type
from policies.tensors import write_tensors

Engine = Literal["openvino", "onnxruntime", "torch"]

ROBOT = "metaworld_sawyer"  # whose contract the networks are made for: a state of 39 numbers, 4 actions
SEED = 0  # of weights, observations and noise
LIMIT = 0.5  # of every number seen and given; with 1 the normalisation would be nothing, and be optimised away


@dataclass(frozen=True)
class Network:
    """A network to be made.

    Attributes:
        name: of its rows.
        family: of the policy.
        choices: what differs from the family's default configuration.
        engines: that run it, a row each.
        action_dim: numbers in an action; the robot's own has 4.
        every: it is measured only in every so many rounds: a slow one need not hold up the others.
    """

    name: str
    family: str
    choices: dict[str, Any]
    engines: tuple[Engine, ...]
    action_dim: int = 4
    every: int = 1


REFERENCE = Network("diffusion DDIM-16", "diffusion", {"inference_steps": 16}, ("openvino", "onnxruntime", "torch"))
PAPER_REFERENCE = Network(
    "diffusion paper DDIM-16",
    "diffusion",
    {"inference_steps": 16, "widths": (256, 512, 1024), "timestep_dim": 256},
    ("openvino",),
    every=10,
)
CARP_PAPER = {  # the paper's state-based policy
    "depth": 8, "width": 64, "heads": 8, "mlp_ratio": 4, "modulation": "block", "codes": 512, "lookup": "cosine",
    "tokenizer_channels": (4, 8),
}  # fmt: skip
STREAMING_PAPER = {  # 50 evaluations an observation, and the network of REFERENCE
    "execute": 8, "evaluations": 50, "scheduler": "ddpm", "prediction": "epsilon", "widths": (48, 96, 192),
    "kernel_size": 5, "level_dim": 64,
}  # fmt: skip
NETWORKS = (
    REFERENCE,
    PAPER_REFERENCE,
    Network("diffusion DDIM-10", "diffusion", {"inference_steps": 10}, ("openvino",)),
    Network("CARP 8x64", "carp", CARP_PAPER, ("openvino", "onnxruntime", "torch")),
    Network("CARP 8x64 10-dim", "carp", CARP_PAPER, ("openvino", "torch"), action_dim=10),
    # the operators of 8x64, hardly an operation
    Network("CARP 8x8", "carp", {**CARP_PAPER, "width": 8}, ("openvino",)),
    Network("CARP default", "carp", {}, ("openvino",)),
    Network("streaming default", "streaming", {}, ("openvino", "onnxruntime", "torch")),
    Network("streaming, 2 evaluations", "streaming", {"evaluations": 2}, ("openvino",)),
    Network("streaming paper's setting", "streaming", STREAMING_PAPER, ("openvino",), every=10),
)


def write_untrained(network: Network, path: Path) -> None:
    """A checkpoint of random weights, normalised as if every number of the data lay within [-LIMIT, LIMIT].

    No weight is left at the 0 or 1 that it begins with: an engine could optimise that away.
    """
    robot = load_robot(ROBOT)
    kind = policy_type(network.family)
    config = kind.config_type.from_dict(network.choices)
    contract = make_contract(network.family, config, robot, "state", "drawer-open")
    if network.action_dim != contract.action.shape[0]:
        names = tuple(f"channel_{index}" for index in range(network.action_dim))
        contract = msgspec.structs.replace(contract, action=vector("action", names, ("1",) * network.action_dim))
    torch.manual_seed(SEED)
    policy = kind(config, contract)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    features = [contract.action, *(o.feature for o in contract.observations)]
    policy.fit_normalization({f.key: {"min": [-LIMIT] * f.shape[0], "max": [LIMIT] * f.shape[0]} for f in features})
    path.mkdir()
    write_config(path, CheckpointConfig(policy=config.to_dict(), contract=contract, robot=robot, training={}))
    write_tensors(path / WEIGHTS_FILE, policy.state_dict(), {})


def random_observation(contract: PolicyContract, random: np.random.Generator) -> Observation:
    """Every number of a state within [-LIMIT, LIMIT], every picture noise; made at time 0."""
    values: dict[str, NDArray[Any]] = {}
    for wanted in contract.observations:
        shape = (wanted.history, *wanted.feature.shape)
        if wanted.feature.is_image:
            values[wanted.feature.key] = random.integers(0, 256, shape, dtype=np.uint8)
        else:
            values[wanted.feature.key] = random.uniform(-LIMIT, LIMIT, shape).astype(np.float32)
    return Observation(stamp_ns=0, values=values)
