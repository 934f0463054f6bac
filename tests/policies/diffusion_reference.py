"""Diffusion Policy's sampling as diffusers does it, for what the runtime makes of the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.base import Batch
from policies.diffusion.policy import DiffusionPolicy
from policies.diffusion.schedule import inference_scheduler


@torch.no_grad()
def sampled(policy: DiffusionPolicy, observations: Batch, generator: torch.Generator) -> Tensor:
    """Actions [batch, horizon, action_dim] in the contract's units.

    Args:
        policy: any.
        observations: key -> [batch, history, ...].
        generator: of the noise: the chunk to start from, then for `ddpm` the noise of each step but the last.
    """
    scheduler = inference_scheduler(policy.config)
    condition = policy.encoder(*(observations[key] for key in policy.encoder.keys))
    shape = (len(condition), policy.contract.horizon, policy.contract.action.shape[0])
    sample = torch.randn(shape, generator=generator)
    for timestep in scheduler.timesteps:
        epsilon = policy.unet(sample, timestep.expand(len(sample)), condition)
        sample = scheduler.step(epsilon, timestep, sample, generator=generator, return_dict=False)[0]
    return policy.actions.inverse(sample)
