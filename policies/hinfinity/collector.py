"""A group of robots that act and are pushed, step by step: their rows of the rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.environment import Environment, Transition
from policies.hinfinity.figures import Tally
from policies.hinfinity.forces import NOBODY, Forces
from policies.hinfinity.learner import autocast
from policies.hinfinity.networks import Networks
from policies.hinfinity.rollout import Rollout
from policies.tensors import part

OF_FORCES = ("force", "raw", "remaining", "pause")  # what changes in `Forces`


@dataclass(frozen=True)
class Acting:
    """Who acts and who pushes in a rollout, for all groups.

    Attributes:
        networks: on the CPU.
        std: of the actions, [A].
        estimator, body: what the actor's two networks multiply by (`MLP.acting`), made once.
    """

    networks: Networks
    std: Tensor
    estimator: Sequence[Tensor]
    body: Sequence[Tensor]

    @classmethod
    def of(cls, networks: Networks) -> Acting:
        """As the networks are now."""
        actor = networks.actor
        return cls(networks, actor.log_std.exp(), actor.estimator.acting(), actor.body.acting())


class Collector:
    """Steps one environment with random numbers of its own, so that groups need not wait for each other.

    Args:
        config: of the training.
        environment: the group.
        rows: where its robots stand among all.
        number: of the group.

    Attributes:
        forces: on its robots.
    """

    def __init__(self, config: HInfinityConfig, environment: Environment, rows: slice, number: int) -> None:
        self.config, self.environment, self.rows = config, environment, rows
        self.forces = Forces(config, environment.count)
        seed = np.random.SeedSequence((config.seed, number)).generate_state(1)[0]
        self._generator = torch.Generator().manual_seed(int(seed))

    @torch.no_grad()
    def collect(self, rollout: Rollout, acting: Acting, limit: Tensor | None) -> dict[str, float]:
        """Fill its rows of the rollout; means of the environment's figures.

        `limit`: largest force on each of its robots now, N, [n]; None: nobody is pushed.
        """
        environment, forces, rows, tally = self.environment, self.forces, self.rows, Tally()
        for step in range(rollout.steps):
            seen = forces.seen(torch.from_numpy(environment.privileged), limit)
            rollout.privileged[step, rows] = seen
            force = None if limit is None else self._push(rollout, step, seen, limit, acting.networks)
            action = self._act(rollout, step, acting)
            transition = environment.step(action.numpy(), force)
            rollout.put(step, transition, rows)
            forces.end(rollout.fell[step, rows] | rollout.timed_out[step, rows], self._generator)
            tally.add(**transition.figures, **self._errors(transition))
        rollout.privileged[-1, rows] = forces.seen(torch.from_numpy(environment.privileged), limit)
        return tally.means()

    def snapshot(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on from here bit for bit."""
        tensors = {f"forces.{name}": getattr(self.forces, name) for name in OF_FORCES}
        tensors |= {f"environment.{name}": torch.from_numpy(v) for name, v in self.environment.snapshot().items()}
        return tensors | {"generator": self._generator.get_state()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Back to a snapshot. Raises KeyError, ValueError or RuntimeError if it does not fit."""
        for name in OF_FORCES:
            getattr(self.forces, name).copy_(tensors[f"forces.{name}"])
        self.environment.restore({name: value.numpy() for name, value in part(tensors, "environment.").items()})
        self._generator.set_state(tensors["generator"])

    def _push(self, rollout: Rollout, step: int, seen: Tensor, limit: Tensor, networks: Networks) -> np.ndarray:
        """The forces of a step, each within its `limit` [n], kept in the rollout; N, [n, 3]."""
        forces, rows = self.forces, self.rows
        rollout.decided[step, rows] = forces.choose(seen, limit, networks.disturber, self._generator)
        rollout.force[step, rows], rollout.raw_force[step, rows] = forces.force, forces.raw
        return forces.force.numpy().astype(np.float64)

    def _act(self, rollout: Rollout, step: int, acting: Acting) -> Tensor:
        """What the actor does, [n, A]; that, its mean, and what the actor saw are kept in the rollout."""
        actor, rows = acting.networks.actor, self.rows
        seen = torch.from_numpy(self.environment.observation).to(rollout.acted_on.dtype)
        with autocast(self.config, torch.device("cpu")):
            acted_on = actor.split(seen, actor.velocity(seen, acting.estimator))
            mean = actor.body.of_split(acted_on, acting.body).float()
        action = mean + acting.std * torch.randn(mean.shape, generator=self._generator)
        rollout.acted_on[step, rows], rollout.mean[step, rows], rollout.action[step, rows] = acted_on, mean, action
        return action

    def _errors(self, transition: Transition) -> dict[str, float]:
        """Of the velocity, of all robots and of those that nobody pushes."""
        error = torch.from_numpy(transition.velocity_error)
        figures = {"task/velocity_error": float(error.mean())}
        if self.config.disturber != "none":
            figures["task/velocity_error_undisturbed"] = float(error[self.forces.who == NOBODY].mean())
        return figures
