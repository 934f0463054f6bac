"""Actor, critic with two heads, and disturber; and normal distributions as functions."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policies.hinfinity.config import STD, HInfinityConfig
from policies.hinfinity.mlp import MLP

VELOCITY = 3  # numbers that the estimator gives


class Gaussian(nn.Module):
    """A normal distribution whose mean is a function of what is seen; its deviations are parameters.

    Args:
        inputs: numbers seen.
        widths: of the hidden layers.
        outputs: dimensions.
        initial_std: of every dimension at first.
        stds: smallest and largest that every dimension keeps within.

    Attributes:
        log_std: logarithms of the deviations, fp32, [D].
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        outputs: int,
        initial_std: float,
        stds: tuple[float, float] = STD,
    ) -> None:
        super().__init__()
        self._bounds = math.log(stds[0]), math.log(stds[1])
        self.body = MLP((inputs, *widths, outputs), last_gain=0.1)  # the first actions are about 0
        self.log_std = nn.Parameter(torch.full((outputs,), math.log(initial_std)))

    @torch.no_grad()
    def keep_std(self) -> None:
        """Put deviations back within bounds, after a step of the optimiser: bounds in `forward` have no gradient."""
        self.log_std.clamp_(*self._bounds)

    def forward(self, seen: Tensor) -> Tensor:
        """The mean of what is seen [..., inputs], fp32, [..., D]."""
        return self.body(seen).float()


class Actor(Gaussian):
    """Acts by what it sees and by how fast it believes that the trunk moves.

    No sensor measures the latter, and who does not know it meets a steady push with a steady error; an estimator learns
    it from the history, beside the actor (arXiv 2202.05481; HIMLoco's, arXiv 2312.11460, gives a latent too).
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        outputs: int,
        initial_std: float,
        estimator_widths: tuple[int, ...],
    ) -> None:
        super().__init__(inputs + VELOCITY, widths, outputs, initial_std)
        self.estimator = MLP((inputs, *estimator_widths, VELOCITY), last_gain=0.1)

    def forward(self, seen: Tensor) -> Tensor:
        """The mean action of what is seen [..., inputs], fp32, [..., D]; the estimator learns nothing from it."""
        return self.body.of_split(self.split(seen, self.velocity(seen).detach())).float()

    def split(self, seen: Tensor, velocity: Tensor) -> Tensor:
        """What the body takes, split, of what is seen and a velocity to act by, [..., inputs + VELOCITY]."""
        return self.body.split(torch.cat((seen, velocity.to(seen.dtype)), dim=-1))

    def velocity(self, seen: Tensor, acting: Sequence[Tensor] | None = None) -> Tensor:
        """Of the trunk, as the critic sees it, fp32, [..., 3]; `acting` is the estimator's, where it is at hand."""
        return self.estimator(seen, acting).float()

    def seen(self, split: Tensor) -> Tensor:
        """What the estimator takes, split, of what `split` gave: that without the velocity, [..., inputs]."""
        if not self.body.symmetric:
            return split[..., :-VELOCITY]
        even, odd = split.tensor_split((self.body.evens,), dim=-1)
        evens = self.estimator.evens
        return torch.cat((even[..., :evens], odd[..., : self.estimator.inputs - evens]), dim=-1)


class Critic(nn.Module):
    """Two values from one trunk: of all rewards, and of the cost."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.body = MLP((inputs, *widths, 2), last_gain=1.0)

    def forward(self, seen: Tensor) -> Tensor:
        """Discounted sums of rewards and of costs from what is seen [..., inputs] on, fp32, [..., 2]."""
        return self.body(seen).float()


class Pushing(Gaussian):
    """A random force; `largest` is the norm of its mean, beyond which that has a direction only.

    Its deviations never exceed those of chance. Were they free, the reward for entropy would raise that of the vertical
    part, of which little acts, and leave hardly any force.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], least_std: float, largest: float) -> None:
        super().__init__(inputs, widths, 3, 1.0, (least_std, 1.0))
        self._largest = largest

    def forward(self, seen: Tensor) -> Tensor:
        mean = super().forward(seen)
        return mean * (self._largest / mean.norm(dim=-1, keepdim=True).clamp_min(1e-6)).clamp_max(1.0)


class Disturber(nn.Module):
    """Sees what the critic sees, gives a random force, and knows what forces are worth."""

    def __init__(self, inputs: int, config: HInfinityConfig) -> None:
        super().__init__()
        widths = config.disturber_widths
        self.policy = Pushing(inputs, widths, config.disturber_std, config.disturber_mean)
        self.value = MLP((inputs, *widths, 1), last_gain=1.0)

    def worth(self, seen: Tensor) -> Tensor:
        """What it will gain from what is seen [..., inputs] on, fp32, [..., 1]."""
        return self.value(seen).float()


class Networks(nn.Module):
    """All that is learned: `actor`, `critic`, and `disturber`, None where nobody learns to disturb."""

    def __init__(self, config: HInfinityConfig, observation: int, privileged: int, action: int) -> None:
        super().__init__()
        self.actor = Actor(observation, config.actor_widths, action, config.initial_std, config.estimator_widths)
        self.critic = Critic(privileged, config.critic_widths)
        learns = config.disturber == "hinfinity"
        self.disturber = Disturber(privileged, config) if learns else None


def twin(networks: Networks, device: torch.device) -> Networks:
    """The networks on a device: a copy with the same weights, or themselves where they are there already."""
    there = next(networks.parameters()).device.type == device.type
    return networks if there else copy.deepcopy(networks).to(device)


def squash(raw: Tensor, limit: Tensor | float) -> Tensor:
    """A force in the direction of `raw` [..., 3], shorter than `limit`, N: limit tanh(|raw|).

    All directions are alike, so it bounds the norm and not each axis; PPO's ratio is that of `raw`.
    """
    norm = raw.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return limit * torch.tanh(norm) * raw / norm


def log_probability(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Of `value` [..., D] under a normal distribution with independent dimensions, [...]."""
    scaled = (value - mean) * torch.exp(-log_std)
    return (-0.5 * scaled**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def entropy(log_std: Tensor) -> Tensor:
    """Of a normal distribution with independent dimensions [D], nats."""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)


def kl_divergence(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """From the old normal distribution to the new one, [...] of means [..., D] and deviations [D], nats."""
    variance_ratio = torch.exp(2 * (old_log_std - log_std))
    shift = ((old_mean - mean) * torch.exp(-log_std)) ** 2
    return (log_std - old_log_std + 0.5 * (variance_ratio + shift - 1)).sum(dim=-1)
