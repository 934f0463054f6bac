"""What is optimised: advantages, PPO's losses, the H-infinity constraint and its dual variable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def generalized_advantage(
    reward: Tensor, value: Tensor, next_value: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438), [T, N].

    Args:
        reward: [T, N].
        value: of the states before the steps, [T, N].
        next_value: of the states after them, [T, N]. Where an episode ended: of the state that it ended in, which is
            not the one that the next step begins with.
        done: an episode ended, bool, [T, N].
        gamma: discount.
        lam: decay of the sum over later errors.
    """
    error = reward + gamma * next_value - value
    decay = gamma * lam * (~done).to(error.dtype)
    advantage = torch.empty_like(error)
    later = torch.zeros_like(error[0])
    for step in range(len(error) - 1, -1, -1):
        later = error[step] + decay[step] * later
        advantage[step] = later
    return advantage


def normalized(advantage: Tensor, pusher: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages about their means and in their deviations, each over the robots with the same `pusher`.

    Over all together, falls of those that are pushed would leave hardly any weight to how the others track commands.

    Args:
        advantage: [T, N].
        pusher: who pushes a robot, a number, [N].

    Returns:
        The advantages, [T, N], and the deviations, [N].
    """
    mean, deviation = torch.empty_like(advantage[0]), torch.empty_like(advantage[0])
    for number in pusher.unique():
        alike = pusher == number
        mean[alike], deviation[alike] = advantage[:, alike].mean(), advantage[:, alike].std() + 1e-8
    return (advantage - mean) / deviation, deviation


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_ratio: float) -> Tensor:
    """PPO's objective of each sample, to be maximised (arXiv 1707.06347, equation 7)."""
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    return torch.minimum(ratio * advantage, clipped * advantage)


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float) -> Tensor:
    """Squared error of each value, or that of the value held within `clip` of the old one, if that is larger."""
    held = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum((value - target) ** 2, (held - target) ** 2)


def dissipation(
    intensity: Tensor, cost: Tensor, value: Tensor, next_value: Tensor, disturbed: Tensor, spared: Tensor, eta: float
) -> float:
    """The constraint L, a step: eta |d| - (C + V_cost(s') - V_cost(s)), in the mean; it must not be negative.

    What robots pay that nobody pushes is no gain from force to cost: it is taken off, where there are some.

    Args:
        intensity: |d|, in the units of cost / eta, [T, N].
        cost: C of the steps, [T, N].
        value, next_value: V_cost before and after them, [T, N].
        disturbed, spared: who is pushed, and who is not, bool, [N].
        eta: bound of cost / intensity.
    """
    supplied = (cost + next_value - value).mean(dim=0)
    floor = float(supplied[spared].mean()) if spared.any() else 0.0
    return eta * float(intensity[:, disturbed].mean()) - (float(supplied[disturbed].mean()) - floor)


@dataclass
class DualVariable:
    """lambda, the weight of the constraint in the actor's objective: gradient descent on lambda L, clamped.

    Attributes:
        value: lambda.
        rate: alpha: what it falls by, a unit of L.
        largest: it stays within [0, largest].
    """

    value: float
    rate: float
    largest: float

    def update(self, slack: float) -> None:
        """One step; `slack` is the mean of L. Where the constraint is violated, lambda grows."""
        self.value = min(self.largest, max(0.0, self.value - self.rate * slack))


def adapt_learning_rate(rate: float, kl: float, desired_kl: float, bounds: tuple[float, float]) -> float:
    """Slower by 1.5 where the policy changed more than twice as much as desired, faster where less than half."""
    if kl > 2 * desired_kl:
        return max(bounds[0], rate / 1.5)
    if 0 <= kl < desired_kl / 2:
        return min(bounds[1], rate * 1.5)
    return rate
