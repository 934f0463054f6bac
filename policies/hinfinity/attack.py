"""A disturber that learns to bring down a policy that does not learn: how bad can forces of a given size be for it?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from policies.hinfinity.adversary import Adversary
from policies.hinfinity.config import STD, HInfinityConfig
from policies.hinfinity.environment import Environment, Float32
from policies.hinfinity.forces import Forces
from policies.hinfinity.guarded import Guard
from policies.hinfinity.networks import Disturber
from policies.hinfinity.rollout import Rollout

UNBOUND = 1e6  # largest mean of its forces before they are squashed: it may push from one side only

Actor = Callable[[Float32], Float32]
"""Observations [N, O] to actions [N, A]."""


def attack_config(force_n: float, seed: int = 0) -> HInfinityConfig:
    """Everybody is pushed by the disturber, by up to `force_n` N in any direction, from the beginning.

    What a benchmark measures does not change with what training is by default.
    """
    return HInfinityConfig(
        disturber="hinfinity", share_random=0.0, share_none=0.0, warmup=0, chance_first=0, force_start_n=force_n,
        force_max_n=force_n, force_ramp=0, disturber_vertical=1.0, hold=(10, 25), rest=(0, 0), settle=(0, 0), epochs=5,
        precision="fp32", seed=seed, disturber_fall=5.0, disturber_price=0.0, disturber_balance=0.0,
        disturber_mean=UNBOUND, disturber_std=STD[0],
    )  # fmt: skip


def new_disturber(privileged: int, config: HInfinityConfig) -> Disturber:
    """With the first weights of the configuration's seed; `privileged`: numbers that it sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Disturber(privileged, config)


class Attack:
    """Trains a disturber against `actor` in `environment`, as training against a learning policy would.

    Args:
        environment: many robots at their task.
        actor: the policy.
        force_n: no force is larger, N.
        seed: of all that is random but for the environment.

    Attributes:
        disturber: what is trained.
    """

    def __init__(self, environment: Environment, actor: Actor, force_n: float, seed: int = 0) -> None:
        self.environment, self.actor, self.force_n = environment, actor, force_n
        self.config = config = attack_config(force_n, seed)
        seen = environment.privileged.shape[1]
        self.disturber = new_disturber(seen, config)
        self._generator = torch.Generator().manual_seed(seed)
        self._forces = Forces(config, environment.count)
        self._forces.assign(0)
        self._limit = torch.full((environment.count,), force_n)
        lost = environment.cost_bound / (1 - config.gamma)
        self._adversary = Adversary(config, self.disturber, lost, self._generator, Guard())
        self._rollout = Rollout(config.rollout_steps, environment.count, (0, seen, 0), torch.float32)

    @property
    def steps_per_iteration(self) -> int:
        """Control periods of all robots together."""
        return self.config.rollout_steps * self.environment.count

    def run(self, steps: int, on_steps: Callable[[int], object] = lambda steps: None) -> dict[str, float]:
        """Train for at least `steps` control periods of all robots together.

        Args:
            steps: the budget.
            on_steps: told how many more were made.

        Returns:
            Falls of a robot a minute in the first and the last tenth of the training, for people to see that it
            learned, and the number of steps.

        Raises:
            TrainingDiverged: nothing was finite for a while.
        """
        falls = []
        for _ in range(math.ceil(steps / self.steps_per_iteration)):
            falls.append(self._collect())
            autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
            self._adversary.learn(self._rollout, self._forces.who, self.environment.period_s, autocast)
            on_steps(self.steps_per_iteration)
        tenth = max(1, len(falls) // 10)
        return {
            "steps": len(falls) * self.steps_per_iteration,
            "falls_per_minute_first": float(np.mean(falls[:tenth])),
            "falls_per_minute_last": float(np.mean(falls[-tenth:])),
        }

    @torch.no_grad()
    def _collect(self) -> float:
        """Fill the rollout; falls of a robot a minute."""
        rollout, environment, forces = self._rollout, self.environment, self._forces
        rollout.begin()
        for step in range(rollout.steps):
            rollout.privileged[step] = torch.from_numpy(environment.privileged)
            rollout.decided[step] = forces.choose(
                rollout.privileged[step], self._limit, self.disturber, self._generator
            )
            rollout.force[step], rollout.raw_force[step] = forces.force, forces.raw
            action = self.actor(environment.observation)
            rollout.put(step, environment.step(action, forces.force.numpy().astype(np.float64)), slice(None))
            forces.end(rollout.done[step], self._generator)
        rollout.privileged[-1] = torch.from_numpy(environment.privileged)
        return float(rollout.fell.sum()) / (self.steps_per_iteration * environment.period_s / 60)


class Attacker:
    """A trained disturber at work on `count` robots: it draws its forces as it did in training."""

    def __init__(self, disturber: Disturber, force_n: float, count: int, seed: int = 0) -> None:
        self.disturber, self.force_n = disturber, force_n
        self._forces = Forces(attack_config(force_n, seed), count)
        self._forces.assign(0)
        self._limit = torch.full((count,), force_n)
        self._generator = torch.Generator().manual_seed(seed)

    def force(self, privileged: Float32) -> NDArray[np.float64]:
        """For the step that begins now, in the robots' heading frames, N, [N, 3].

        `privileged`: what the disturber sees, [N, P].
        """
        self._forces.choose(torch.from_numpy(privileged), self._limit, self.disturber, self._generator)
        return self._forces.force.numpy().astype(np.float64)
