"""Worlds are built once a session: building one takes longer than an episode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from sim import MetaWorldEnv, make_env
from sim.experts import Expert

Fingerprint = Callable[[MetaWorldEnv, int, int], str]


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[..., MetaWorldEnv]]:
    """make_env that hands out the same environment again."""
    made: list[MetaWorldEnv] = []

    @cache
    def make(task: str = "drawer-open", observation_set: str = "state") -> MetaWorldEnv:
        made.append(make_env(task, observation_set))
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
