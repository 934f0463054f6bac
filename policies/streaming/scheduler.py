"""A noise schedule in which every action of a chunk has a level of its own (arXiv 2406.04806, section IV).

Level 0 is a clean action, level `num_train_timesteps` nothing but noise; level l is diffusers' timestep l - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

CLIP = 1.0  # normalised actions lie within [-1, 1]: no sample leaves the range of the demonstrations


@dataclass
class StreamingSchedulerOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: the buffer at the new levels [batch, horizon, action_dim].
        pred_original_sample: the estimate of the clean actions that it comes from, likewise.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class StreamingScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' own bases disagree
    """The staircase of noise levels, and denoising from any levels to any lower ones.

    The buffer is cut into steps of `execute` actions. Before an observation, step i of them has level N (i + 1) / h,
    with N levels and h = horizon // execute steps; after it N i / h: the first step is clean, is carried out and
    dropped, and pure noise is appended. What is left over of the horizon waits at level N.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 100,
        horizon: int = 20,
        execute: int = 1,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        clip_sample_range: float = CLIP,
    ) -> None:
        self.levels, self.horizon, self.execute = num_train_timesteps, horizon, execute
        self.prediction_type, self.clip = prediction_type, clip_sample_range
        betas = betas_for_alpha_bar(num_train_timesteps)  # squared cosine
        self.alphas_cumprod = torch.cat((torch.ones(1), torch.cumprod(1.0 - betas, dim=0)))  # by level, 0 to N

    def staircase(self, progress: float | Tensor = 0.0) -> Tensor:
        """Levels int64 [..., horizon] on the way from one observation (0) to the next (1); progress: [...]."""
        steps = self.horizon // self.execute
        above = torch.arange(self.horizon) // self.execute + 1 - torch.as_tensor(progress).unsqueeze(-1)
        part = (above / steps).clamp(max=1.0)
        return torch.floor(self.levels * part + 1e-4).long()  # 1e-4: what rounding took away

    def training_levels(self, count: int, weights: tuple[float, float, float], generator: torch.Generator) -> Tensor:
        """Levels int64 [count, horizon], none of them 0, drawn for each sample from one of three kinds.

        Args:
            count: samples.
            weights: of staircases with the progress that a buffer has when it is rolled; of one level for the whole
                chunk; of a level for each action.
            generator: on the CPU.
        """
        highest, horizon = self.levels, self.horizon
        steps = horizon // self.execute
        tread = highest / steps  # levels between two steps
        progress = torch.randint(0, -(-highest // steps), (count,), generator=generator) / tread
        one = torch.randint(1, highest + 1, (count, 1), generator=generator).expand(count, horizon)
        each = torch.randint(1, highest + 1, (count, horizon), generator=generator)
        stairs = self.staircase(progress)
        kind = torch.multinomial(
            torch.tensor(weights, dtype=torch.float64), count, replacement=True, generator=generator
        )
        return torch.stack((stairs, one, each))[kind, torch.arange(count)].clamp(min=1)

    def add_noise(self, original_samples: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Clean actions [batch, horizon, action_dim] at levels [batch, horizon] or [horizon]."""
        alpha = self._alpha(levels, original_samples)
        return alpha.sqrt() * original_samples + (1 - alpha).sqrt() * noise

    def target(self, original_samples: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What the network is to predict, by `prediction_type`; arguments as of `add_noise`."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return original_samples
        alpha = self._alpha(levels, original_samples)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * original_samples

    def step(
        self, model_output: Tensor, levels: Tensor, next_levels: Tensor, sample: Tensor, noise: Tensor | None = None
    ) -> StreamingSchedulerOutput:
        """Lead every action from its level to the next one; where that is not lower, it stays as it is.

        Args:
            model_output: of the network [batch, horizon, action_dim].
            levels, next_levels: [horizon] or [batch, horizon]; any distance apart.
            sample: the buffer at `levels`.
            noise: standard normal, like the sample, for a random step (DDPM, arXiv 2006.11239, equations 6 and 7,
                between any two levels); None for a deterministic one (DDIM, arXiv 2010.02502, equation 12, sigma 0).
        """
        alpha, next_alpha = self._alpha(levels, sample), self._alpha(next_levels, sample)
        clean, epsilon = self._split(model_output, sample, alpha)
        clean = clean.clamp(-self.clip, self.clip)
        if noise is None:
            moved = next_alpha.sqrt() * clean + (1 - next_alpha).sqrt() * epsilon
        else:
            ratio = alpha / next_alpha
            left = (1 - next_alpha) / (1 - alpha)
            moved = next_alpha.sqrt() * (1 - ratio) / (1 - alpha) * clean + ratio.sqrt() * left * sample
            moved = moved + (left * (1 - ratio)).clamp(min=0).sqrt() * noise
        stays = next_alpha <= alpha
        return StreamingSchedulerOutput(
            prev_sample=torch.where(stays, sample, moved),
            pred_original_sample=torch.where(alpha == 1, sample, clean),
        )

    def _split(self, output: Tensor, sample: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """The clean actions and the noise that the network sees in the sample."""
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        if self.prediction_type == "epsilon":
            return (sample - spread * output) / signal, output
        if self.prediction_type == "sample":
            return output, (sample - signal * output) / spread.clamp(min=1e-6)
        return signal * sample - spread * output, signal * output + spread * sample

    def _alpha(self, levels: Tensor, like: Tensor) -> Tensor:
        """The signal's share of the variance at each level, [..., horizon, 1]."""
        return self.alphas_cumprod.to(like.device)[levels.to(like.device)].unsqueeze(-1)
