"""Worlds are built once a session: building one takes longer than an episode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from contracts import load_robot
from policies.base import make_contract
from policies.diffusion.config import DiffusionConfig
from policies.diffusion.policy import DiffusionPolicy
from policies.runtime import Runtime
from policies.torch_runtime import TorchGraph
from sim import MetaWorldEnv
from sim.experts import Expert

Fingerprint = Callable[[MetaWorldEnv, int, int], str]


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[..., MetaWorldEnv]]:
    """Makes a MetaWorldEnv, and hands out the same one when it is asked again."""
    made: list[MetaWorldEnv] = []

    @cache
    def make(task: str = "drawer-open", observation_set: str = "state") -> MetaWorldEnv:
        made.append(MetaWorldEnv(task, observation_set))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def fingerprint() -> Fingerprint:
    """Hash of everything that an expert's first steps from a seed lead to, bit for bit, pictures included."""

    def fingerprint(env: MetaWorldEnv, seed: int, steps: int) -> str:
        expert = Expert(env.task)
        digest = hashlib.sha256()
        observation, _ = env.reset(seed=seed)
        for _ in range(steps):
            for value in (*observation.values(), env.state, env.qpos, env.qvel):
                digest.update(np.ascontiguousarray(value).tobytes())
            observation, *_ = env.step(expert.act(env))
        return digest.hexdigest()

    return fingerprint


@pytest.fixture(scope="session")
def two_task_runtime() -> Runtime:
    """A real policy, never trained, that knows `push` and `reach`."""
    robot = load_robot("metaworld_sawyer")
    config = DiffusionConfig(widths=(16, 32), timestep_dim=16, inference_steps=5)
    task = "push the puck to the goal\nmove the gripper to the goal"
    policy = DiffusionPolicy(config, make_contract("diffusion", config, robot, "state", task))
    size = policy.contract.observations[0].feature.shape[0]
    reach = {"min": [-0.3] * 4, "max": [0.3] * 4}
    policy.fit_normalization({"observation.state": {"min": [-1.0] * size, "max": [1.0] * size}, "action": reach})
    graphs = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    return Runtime(policy.contract, policy.sampler(), graphs)
