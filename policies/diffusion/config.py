"""Diffusion Policy's choices."""

from __future__ import annotations

from typing import Literal

from contracts.serialization import require
from policies.config import PolicyConfig, require_noise_at_first, require_width


class DiffusionConfig(PolicyConfig, frozen=True, kw_only=True):
    """The network, its noise, and how it is sampled. Defaults are small enough to train on a CPU within minutes.

    Attributes:
        widths: channels of the UNet's levels, each but the last halving the time axis. (256, 512, 1024) in the paper.
        kernel_size: of the convolutions over time.
        timestep_dim: width of the embedding of the diffusion step.
        train_timesteps: diffusion steps in training.
        scheduler: how actions are sampled; `ddpm` always takes all `train_timesteps`.
        inference_steps: denoising steps of `ddim`.
    """

    widths: tuple[int, ...] = (48, 96, 192)
    kernel_size: int = 5
    timestep_dim: int = 64
    train_timesteps: int = 100
    scheduler: Literal["ddim", "ddpm"] = "ddim"
    inference_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.widths), "widths needs at least one level")
        for width in self.widths:
            require_width("a width", width)
        levels = 2 ** (len(self.widths) - 1)
        require(
            self.horizon % levels == 0,
            f"horizon {self.horizon} must be a multiple of {levels}: {len(self.widths)} levels",
        )
        require(self.kernel_size > 0 and self.kernel_size % 2 == 1, f"kernel_size must be odd, not {self.kernel_size}")
        require(self.timestep_dim >= 4 and self.timestep_dim % 2 == 0, "timestep_dim must be even and at least 4")
        require(
            1 <= self.inference_steps <= self.train_timesteps <= 10_000,
            f"need 1 <= inference_steps ({self.inference_steps}) <= train_timesteps ({self.train_timesteps}) <= 10000",
        )
        if self.scheduler == "ddim":
            require_noise_at_first(self.inference_steps, self.train_timesteps)
