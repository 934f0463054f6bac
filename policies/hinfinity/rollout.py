"""What was seen, done and paid for in the steps between two updates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.hinfinity.environment import Transition
from policies.hinfinity.networks import VELOCITY


class Rollout:
    """Steps of all environments, [T, N, ...]. Made once, overwritten in every iteration.

    Attributes:
        acted_on: what the actor saw and the trunk's velocity as it estimated it, as its network splits them, in the
            precision it is learned in, [T, N, O + 3].
        privileged: of critic and disturber, with that after the last step, [T + 1, N, P]; the environment's first.
        action, mean: drawn, and the mean it was drawn about, [T, N, A].
        reward, cost: [T, N].
        fell, timed_out: [T, N].
        force: N, [T, N, 3].
        raw_force: as drawn by the disturber, [T, N, 3].
        decided: the disturber chose a new force, [T, N].
    """

    def __init__(self, steps: int, count: int, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
        observation, privileged, action = sizes
        self.steps, self.count = steps, count
        self.acted_on = torch.zeros(steps, count, observation + VELOCITY, dtype=dtype)
        self.privileged = torch.zeros(steps + 1, count, privileged)
        self.action = torch.zeros(steps, count, action)
        self.mean = torch.zeros(steps, count, action)
        self.reward, self.cost = torch.zeros(steps, count), torch.zeros(steps, count)
        self.fell = torch.zeros(steps, count, dtype=torch.bool)
        self.timed_out = torch.zeros(steps, count, dtype=torch.bool)
        self.force, self.raw_force = torch.zeros(steps, count, 3), torch.zeros(steps, count, 3)
        self.decided = torch.zeros(steps, count, dtype=torch.bool)
        self._final: list[tuple[int, Tensor, Tensor]] = []

    @property
    def done(self) -> Tensor:
        """Episodes ended, [T, N]."""
        return self.fell | self.timed_out

    def begin(self) -> None:
        """Forget what episodes ended with."""
        self._final = []

    def put(self, step: int, transition: Transition, rows: slice) -> None:
        """What step number `step` brought the robots of `rows`. Different rows may be put by threads of their own."""
        self.reward[step, rows] = torch.from_numpy(transition.reward)
        self.cost[step, rows] = torch.from_numpy(transition.cost)
        self.fell[step, rows] = torch.from_numpy(transition.fell)
        self.timed_out[step, rows] = torch.from_numpy(transition.timed_out)
        ended = self.timed_out[step, rows].nonzero().squeeze(1)
        if len(ended):
            final = self.privileged[step, rows][ended]  # what the environment does not know stays as it was
            final[:, : transition.final_privileged.shape[1]] = torch.from_numpy(transition.final_privileged)[ended]
            self._final.append((step, ended + (rows.start or 0), final))

    def to(self, device: torch.device) -> Rollout:
        """A copy on a device, or itself where it is there already."""
        if self.action.device.type == device.type:
            return self
        there = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(there, name, value.to(device))
        there._final = [(step, rows.to(device), seen.to(device)) for step, rows, seen in self._final]
        return there

    def finite(self) -> bool:
        """All that is learned from is."""
        tensors = (self.acted_on, self.privileged, self.action, self.mean, self.reward, self.cost)
        return bool(torch.isfinite(torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors])).all())

    def values(
        self, of_privileged: Tensor, critic: Callable[[Tensor], Tensor], fallen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the states before and after every step are worth, [T, N, heads] each.

        An episode that timed out goes on in the critic's mind; one that ended in a fall is worth `fallen` [N, heads].

        Args:
            of_privileged: what `critic` says of `privileged`, [T + 1, N, heads].
            critic: what [K, P] are worth, [K, heads].
            fallen: see above.
        """
        value, after = of_privileged[:-1], of_privileged[1:].clone()
        for step, rows, privileged in self._final:
            after[step, rows] = critic(privileged)
        after = torch.where(self.fell[..., None], fallen, after)
        return value, after


def shuffled(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Numbers from 0 to `count` - 1 in random order, [count]; the same on every device."""
    return torch.randperm(count, generator=generator).to(device)


@dataclass(frozen=True)
class Samples:
    """A rollout as its learner takes it, one row a sample.

    Attributes:
        acted_on, action, mean: as in `Rollout`, [S, ...].
        velocity: of the trunk, as the critic sees it: what the estimator should say of an observation, [S, 3].
        privileged: what the critic sees, as its network splits it, [S, P].
        log_std: of the actions, [A].
        log_probability: of the actions when they were drawn, [S].
        value: of rewards and of cost, as they were when drawn, [S, 2].
        target: what the values should be, [S, 2].
        advantage: of the rewards, about its mean, in its standard deviations, over those alike in who pushes them, [S].
        cost_advantage: of the cost, about its mean over who is `disturbed`, in the same deviations, [S].
        disturbed: of a robot that somebody pushes, while the constraint counts, bool, [S].
    """

    acted_on: Tensor
    velocity: Tensor
    privileged: Tensor
    action: Tensor
    mean: Tensor
    log_std: Tensor
    log_probability: Tensor
    value: Tensor
    target: Tensor
    advantage: Tensor
    cost_advantage: Tensor
    disturbed: Tensor

    def __len__(self) -> int:
        return len(self.action)

    def take(self, rows: Tensor) -> Samples:
        """Some of them, [K]."""
        return Samples(**{n: v if n == "log_std" else v.index_select(0, rows) for n, v in vars(self).items()})
