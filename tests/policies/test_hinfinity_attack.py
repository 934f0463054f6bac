"""A disturber finds the weakness of a policy that does not learn."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from policies.hinfinity.attack import Attack, Attacker, attack_config
from policies.hinfinity.environment import Environment
from policies.hinfinity.networks import Disturber


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Ledge:
    """Balls that are pushed about and braked by a policy; they fall beyond x = 1 only, and start again at 0."""

    period_s, cost_bound = 0.02, 0.02

    def __init__(self, count: int = 64) -> None:
        self.count, self.largest = count, 0.0
        self.position, self.age = np.zeros((count, 3)), np.arange(count) * 3
        self._look()

    def _look(self) -> None:
        self.observation = self.privileged = self.position.astype(np.float32)

    def step(self, action, force):
        self.largest = max(self.largest, float(np.linalg.norm(force, axis=1).max()))
        self.position += 0.01 * force + action
        self.age += 1
        fell = self.position[:, 0] > 1
        timed_out = ~fell & (self.age >= 200)
        final = self.position.astype(np.float32)
        self.position[fell | timed_out], self.age[fell | timed_out] = 0, 0
        self._look()
        zeros = np.zeros(self.count, dtype=np.float32)
        return SimpleNamespace(reward=zeros, cost=zeros, fell=fell, timed_out=timed_out, final_privileged=final)


def as_environment(ledge: Ledge) -> Environment:
    """It has what an attack asks of one."""
    return cast(Environment, ledge)


def brake(observation):
    return -0.05 * observation


def test_it_learns_where_to_push():
    steps: list[int] = []
    ledge = Ledge()
    found = Attack(as_environment(ledge), brake, force_n=8.0)
    figures = found.run(20_000, steps.append)
    assert figures["falls_per_minute_last"] > 5 * max(figures["falls_per_minute_first"], 0.1)
    assert figures["steps"] == sum(steps) == 14 * 24 * 64
    assert 7 < ledge.largest <= 8.0
    forces = Attacker(found.disturber, 8.0, 500).force(np.zeros((500, 3), dtype=np.float32))
    assert forces[:, 0].mean() > 2
    assert np.linalg.norm(forces, axis=1).max() <= 8.0


def test_an_attack_pushes_in_all_directions():
    torch.manual_seed(0)
    disturber = Disturber(3, attack_config(8.0))
    forces = Attacker(disturber, 8.0, 2000).force(np.zeros((2000, 3), dtype=np.float32))
    spread = np.abs(forces).mean(axis=0)
    np.testing.assert_allclose(spread, spread.mean(), rtol=0.1)


def test_a_seed_is_an_attack():
    weights: list[torch.Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(weights))  # nothing may depend on it
        found = Attack(as_environment(Ledge()), brake, force_n=8.0, seed=seed)
        found.run(4000)
        weights.append(torch.cat([p.detach().flatten() for p in found.disturber.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_walking_does_not_wait_for_what_only_imitation_needs():
    code = """
import sys
import policies.hinfinity.attack, policies.hinfinity.train
print([m for m in ("accelerate", "diffusers") if m in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
