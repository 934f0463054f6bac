"""What a user chooses for every policy and its training. Free of torch, so that the command line starts at once."""

from __future__ import annotations

import math
from typing import Literal

from contracts.serialization import Contract, require, require_finite

NOISE = 0.8  # of the timesteps, from which on a sample is nearly all noise
GROUPS = 8  # of every GroupNorm (arXiv 2303.04137, appendix A); widths are multiples of it


class ChunkConfig(Contract, frozen=True, kw_only=True):
    """What a policy's contract is made of, whatever the policy.

    Attributes:
        horizon: actions in a chunk.
        execute: actions carried out before the policy looks again.
        state_history: how many of the latest values of each state the policy sees.
        image_history: how many of the latest pictures of each camera the policy sees.
    """

    horizon: int = 16
    execute: int = 8
    state_history: int = 2
    image_history: int = 1


class PolicyConfig(ChunkConfig, frozen=True, kw_only=True):
    """What the configurations of all policies that look through a ResNet have in common.

    Attributes:
        image_width: channels of the image ResNet's first stage. 64 in ResNet18.
        keypoints: image positions that the spatial softmax gives for each camera.
        shift_pixels: largest random shift of the pictures in training. Keep it 0 for a camera that does not move:
            there, the place of a thing in the picture is what the policy must learn.
    """

    image_width: int = 16
    keypoints: int = 32
    shift_pixels: int = 0

    def __post_init__(self) -> None:
        require_width("image_width", self.image_width)
        require(self.keypoints > 0, "keypoints must be positive")
        require(self.shift_pixels >= 0, "shift_pixels cannot be negative")


class TrainingConfig(Contract, frozen=True, kw_only=True):
    """How a policy is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: samples per step, in each process.
        learning_rate: at the end of the warm-up; then it falls along a cosine to final_learning_rate.
        final_learning_rate: at the last step. It need not be 0, since the weights are averaged.
        warmup_steps: steps over which the learning rate rises from 0.
        weight_decay: of AdamW.
        adam_betas: of AdamW.
        gradient_clip: largest norm of the gradient.
        ema_power: in each step, the averaged weights keep the share 1 - (1 + step)^-ema_power of themselves.
        ema_max_decay: the largest such share.
        precision: of the arithmetic in training: `auto` is bf16 where the hardware multiplies in it, else fp32. Weights
            and optimiser are always fp32.
        seed: of the first weights, of the batches and of the noise.
        checkpoint_every_s: seconds between two checkpoints.
        threads: of PyTorch on the CPU; None: as PyTorch chooses (or OMP_NUM_THREADS says).
    """

    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 1e-6
    adam_betas: tuple[float, float] = (0.95, 0.999)
    gradient_clip: float = 1.0
    ema_power: float = 0.75
    ema_max_decay: float = 0.9999
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    checkpoint_every_s: float = 60.0
    threads: int | None = None

    def __post_init__(self) -> None:
        require(self.steps > 0 and self.batch_size > 0, "steps and batch_size must be positive")
        require_finite("a training figure", self.learning_rate, self.weight_decay, self.gradient_clip)
        require(self.learning_rate > 0 and self.gradient_clip > 0, "learning_rate and gradient_clip must be positive")
        require(0 <= self.final_learning_rate <= self.learning_rate, "final_learning_rate must be within learning_rate")
        require(self.warmup_steps >= 0 and self.weight_decay >= 0, "warmup_steps and weight_decay cannot be negative")
        require(all(0 <= beta < 1 for beta in self.adam_betas), f"adam_betas {self.adam_betas} must lie within [0, 1)")
        require(self.ema_power > 0, "ema_power must be positive")
        require(0 <= self.ema_max_decay < 1, "ema_max_decay must be within [0, 1)")
        require(self.seed >= 0, "seed cannot be negative")
        require(self.checkpoint_every_s > 0, "checkpoint_every_s must be positive")
        require(self.threads is None or self.threads > 0, "threads must be positive")

    def learning_rate_at(self, step: int) -> float:
        """Warm-up, then a cosine down to `final_learning_rate`; `step` counts from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine


def require_noise_at_first(steps: int, train_timesteps: int) -> None:
    """Raises ValueError: DDIM, spaced `leading` as diffusers does it, would begin where there should be much signal.

    It begins with pure noise at timestep (steps - 1) * floor(train_timesteps / steps), which is 0 of one step and half
    of the way of just more than half of the steps: what is there in place of the signal is then taken for it.
    """

    def begins(count: int) -> int:
        return (count - 1) * (train_timesteps // count)

    def noisy(count: int) -> bool:
        return begins(count) >= NOISE * train_timesteps

    right = [count for count in (5, 8, 10, 16, 25, 50, 75, 100, train_timesteps) if count <= train_timesteps]
    would_do = ", ".join(str(count) for count in dict.fromkeys(right) if noisy(count))
    require(
        noisy(steps),
        f"inference_steps {steps}: ddim would take pure noise for what it is at timestep {begins(steps)} of "
        f"{train_timesteps}, where signal is left; {would_do} would be right",
    )


def require_width(name: str, width: int) -> None:
    """Refuse a number of channels that GroupNorm cannot split. Raises ContractError."""
    require(width > 0 and width % GROUPS == 0, f"{name} must be a positive multiple of {GROUPS}, not {width}")
