"""Diffusers' noise schedules, and the table of numbers that each comes down to at inference."""

from __future__ import annotations

import math

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from policies.diffusion.config import DiffusionConfig
from policies.runtime.sampler import DenoisingStep, DiffusionSampler

CLIP = 1.0  # normalised actions lie within [-1, 1]: no sample leaves the range of the demonstrations


def training_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """DDPM with the squared-cosine schedule; the network predicts the noise (Diffusion Policy, appendix A.4)."""
    return DDPMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        prediction_type="epsilon",
        clip_sample=True,
        clip_sample_range=CLIP,
    )


def inference_scheduler(config: DiffusionConfig) -> DDPMScheduler | DDIMScheduler:
    """The scheduler that samples actions, with its timesteps set.

    DDIM (eta 0) is spaced `leading`: 10 steps go from timestep 90 of 100 down to 0. Of diffusers' spacings it gave the
    most precise chunks at 5 to 16 steps: `trailing` and `linspace` spend their first step on timestep 99, where there
    is no signal to estimate from, and `trailing` stops at timestep 9, which still has noise.
    """
    if config.scheduler == "ddpm":
        ddpm = training_scheduler(config)
        ddpm.set_timesteps(config.train_timesteps)
        return ddpm
    scheduler = DDIMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon",
        clip_sample=True,
        clip_sample_range=CLIP,
        set_alpha_to_one=True,
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(config.inference_steps)
    return scheduler


def diffusion_sampler(config: DiffusionConfig) -> DiffusionSampler:
    """The inference scheduler as numbers, for a runtime that has no diffusers."""
    scheduler = inference_scheduler(config)
    alphas = [1.0, *(float(a) for a in scheduler.alphas_cumprod)]  # alphas[t + 1] belongs to timestep t
    timesteps = [int(t) for t in scheduler.timesteps]
    stride = config.train_timesteps // len(timesteps)  # as DDIMScheduler steps back
    make = _ddpm_step if config.scheduler == "ddpm" else _ddim_step
    steps = tuple(make(t, alphas[t + 1], alphas[max(t - stride, -1) + 1]) for t in timesteps)
    return DiffusionSampler(scheduler=config.scheduler, clip=CLIP, steps=steps)


def _ddim_step(timestep: int, alpha: float, alpha_next: float) -> DenoisingStep:
    """arXiv 2010.02502, equation 12 with sigma 0; alpha is the cumulative product there."""
    return DenoisingStep(
        timestep=timestep,
        x0_sample=1 / math.sqrt(alpha),
        x0_epsilon=-math.sqrt(1 - alpha) / math.sqrt(alpha),
        next_x0=math.sqrt(alpha_next),
        next_sample=0.0,
        next_epsilon=math.sqrt(1 - alpha_next),
        next_noise=0.0,
    )


def _ddpm_step(timestep: int, alpha: float, alpha_next: float) -> DenoisingStep:
    """arXiv 2006.11239, equation 7: the posterior mean of the clipped x0, and beta-tilde; no noise at last."""
    alpha_step = alpha / alpha_next
    beta_step = 1 - alpha_step
    variance = max((1 - alpha_next) / (1 - alpha) * beta_step, 1e-20)  # the floor is diffusers'
    return DenoisingStep(
        timestep=timestep,
        x0_sample=1 / math.sqrt(alpha),
        x0_epsilon=-math.sqrt(1 - alpha) / math.sqrt(alpha),
        next_x0=math.sqrt(alpha_next) * beta_step / (1 - alpha),
        next_sample=math.sqrt(alpha_step) * (1 - alpha_next) / (1 - alpha),
        next_epsilon=0.0,
        next_noise=math.sqrt(variance) if timestep > 0 else 0.0,
    )
