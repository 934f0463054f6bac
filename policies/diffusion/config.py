"""Diffusion Policy's choices."""

from __future__ import annotations

from typing import Literal

from contracts.serialization import require
from policies.config import PolicyConfig

GROUPS = 8  # of every GroupNorm (appendix A); widths are multiples of it


class DiffusionConfig(PolicyConfig, frozen=True, kw_only=True):
    """The network, its noise, and how it is sampled. Defaults are small enough to train on a CPU within minutes.

    Attributes:
        widths: channels of the UNet's levels, each but the last halving the time axis. (256, 512, 1024) in the paper.
        kernel_size: of the convolutions over time.
        timestep_dim: width of the embedding of the diffusion step.
        train_timesteps: diffusion steps in training.
        scheduler: how actions are sampled; `ddpm` always takes all `train_timesteps`.
        inference_steps: denoising steps of `ddim`.
        image_width: channels of the image ResNet's first stage. 64 in the paper.
        keypoints: image positions that the spatial softmax gives, a camera.
        shift_pixels: largest random shift of the pictures in training. 0 for a camera that does not move: there, the
            place of a thing in the picture is what the policy must learn.
    """

    widths: tuple[int, ...] = (48, 96, 192)
    kernel_size: int = 5
    timestep_dim: int = 64
    train_timesteps: int = 100
    scheduler: Literal["ddim", "ddpm"] = "ddim"
    inference_steps: int = 10
    image_width: int = 16
    keypoints: int = 32
    shift_pixels: int = 0

    def __post_init__(self) -> None:
        require(bool(self.widths), "widths needs at least one level")
        for width in (*self.widths, self.image_width):
            require(width > 0 and width % GROUPS == 0, f"a width must be a positive multiple of {GROUPS}, not {width}")
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
        require(self.keypoints > 0, "keypoints must be positive")
        require(self.shift_pixels >= 0, "shift_pixels cannot be negative")
