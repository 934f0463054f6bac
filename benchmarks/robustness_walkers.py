"""Trained walking policies of any form, as functions of many robots' observations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.robustness_regimes import PERIOD_S
from contracts.locomotion import LocomotionContract
from policies.hinfinity.attack import Actor
from policies.hinfinity.checkpoint import load_networks
from policies.runtime.backends import compile_graph
from policies.runtime.bundle import is_bundle, read_bundle
from policies.runtime.locomotion import ACTOR
from policies.runtime.sampler import LocomotionSampler
from sim.legged.figures import load_figures
from sim.legged.task import locomotion_contract


@dataclass(frozen=True)
class Walker:
    """A trained policy.

    Attributes:
        path: where it came from.
        robot: that it walks with.
        digest: SHA-256 of all that decides how it walks.
        act: its actions.
    """

    path: Path
    robot: str
    digest: str
    act: Actor


def load_walker(path: Path, threads: int = 1) -> Walker:
    """A checkpoint of `visuomotor train hinfinity`, or a bundle exported from one.

    Raises:
        ValueError: it is neither or damaged, or its observations, actions or gains are not those of the simulation.
        ModuleNotFoundError: a bundle needs ONNX Runtime, which is not installed.
    """
    if is_bundle(path):
        walker, contract = _load_bundle(path, threads)
    else:
        walker, contract = _load_checkpoint(path)
    expected = locomotion_contract(load_figures(walker.robot), PERIOD_S)
    names = [name for name in expected.to_dict() if getattr(contract, name) != getattr(expected, name)]
    if names:
        raise ValueError(f"{path}: its {', '.join(names)} are not those of the simulated {walker.robot}")
    return walker


def _load_checkpoint(path: Path) -> tuple[Walker, LocomotionContract]:
    networks, config = load_networks(path)
    actor = networks.actor

    @torch.inference_mode()
    def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return actor(torch.from_numpy(observation)).numpy()

    digest = hashlib.sha256(config.robot.encode() + config.locomotion.to_json().encode())
    for name, tensor in sorted(actor.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return Walker(path, config.robot, digest.hexdigest(), act), config.locomotion


def _load_bundle(path: Path, threads: int) -> tuple[Walker, LocomotionContract]:
    bundle = read_bundle(path)
    if not isinstance(bundle.sampler, LocomotionSampler) or ACTOR not in bundle.graphs:
        raise ValueError(f"{path} is not the bundle of a walking policy")
    contract = bundle.sampler.locomotion
    # Another engine rounds otherwise, and robots would fall in other episodes than in those that are kept.
    graph = compile_graph("onnxruntime", bundle.graphs[ACTOR], threads, ACTOR)

    def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return graph({"observation": observation})[0]

    digest = hashlib.sha256(bundle.robot.name.encode() + contract.to_json().encode() + bundle.graphs[ACTOR])
    return Walker(path, bundle.robot.name, digest.hexdigest(), act), contract
