"""Pictures as latents: a variational autoencoder, trained here as PAD's first stage, or pretrained.

Axes: B batch, F pictures of a sample, H x W pixels, C latent channels, h x w latent positions.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from policies.normalization import normalize_image
from policies.pad.config import PadConfig

FOREGROUND = 20.0  # how much more a pixel weighs that is 1 (half the range) away from the background
FIRST_LOG_VARIANCE = -6.0
KL_WEIGHT = 1e-5  # of the mean KL divergence of a latent element: it only keeps latents together (arXiv 2112.10752)
MOMENTUM = 0.05  # of the running mean and variance of latents: over the last 20 batches, when weights hardly change
MIN_STD = 1e-3


class ImageLatents(nn.Module):
    """diffusers' AutoencoderKL, with latents of mean 0 and variance 1 in every channel.

    Trained here, it codes how pictures differ from a background, the median of the first batch: most of what a camera
    that stands still sees need not be learned. A pixel counts the more, the more it differs from it.

    Attributes:
        downsampling: pixels along each side of a latent position.
        mean, std: of the autoencoder's own latents [C], measured while it is trained.
        background: within [-1, 1], [3, H, W]; 0 for a pretrained one.
    """

    background: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: PadConfig, height: int, width: int) -> None:
        """`height`, `width`: of the pictures."""
        super().__init__()
        self.patch, self.downsampling = config.vae_patch, config.downsampling
        levels, pixels = len(config.vae_channels), 3 * config.vae_patch**2
        autoencoder: Any = AutoencoderKL(
            in_channels=pixels,
            out_channels=pixels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.vae_channels,
            layers_per_block=config.vae_layers,
            latent_channels=config.latent_channels,
            norm_num_groups=config.vae_groups,
        )
        with torch.no_grad():  # the logarithm of variance: noise as large as the latents would hold up the first steps
            autoencoder.quant_conv.bias[config.latent_channels :] = FIRST_LOG_VARIANCE
        self.autoencoder: Any = autoencoder
        self.register_buffer("background", torch.zeros(3, height, width))
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def encode(self, pictures: Tensor) -> Tensor:
        """The latents of pictures, uint8 [B, H, W, 3], at the mode of their distribution: [B, C, h, w]."""
        return (self._posterior(pictures)[0] - self._channels(self.mean)) / self._channels(self.std)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, F, C, h, w] to uint8 [B, F, H, W, 3]."""
        own = latents.flatten(0, 1) * self._channels(self.std) + self._channels(self.mean)
        pixels = (self._picture(own).float() + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).unflatten(0, latents.shape[:2])

    def loss(self, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of pictures, uint8 [B, F, H, W, 3], within [-1, 1], and the KL divergence of their latents.

        `generator`: of the latents' noise; on the CPU.
        """
        flat = pictures.flatten(0, 1)
        wanted = normalize_image(flat)
        if self.training and not self.background.any():
            self.background.copy_(wanted.median(0).values)
        mean, log_variance = (value.float() for value in self._posterior(flat))
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        if self.training:
            self._measure(mean.detach())
        error = (self._picture(mean + (0.5 * log_variance).exp() * noise).float() - wanted).square()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        psnr = 10 * torch.log10(4 / error.detach().mean())
        weighted = (error * foreground(wanted - self.background)).mean()
        return weighted + KL_WEIGHT * divergence, {"psnr": psnr, "kl": divergence.detach()}

    def difference(self, pictures: Tensor) -> Tensor:
        """What pictures, uint8 [B, H, W, 3], show beside the background: [B, 3, H, W] within [-2, 2]."""
        return normalize_image(pictures).contiguous() - self.background  # channels first: GroupNorm is faster so

    @torch.no_grad()
    def _measure(self, latents: Tensor) -> None:
        """Take the mean and variance of a batch into the running ones."""
        mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3), unbiased=False)
        running = self.std.square() + self.mean.square()  # of the squares: the spread of the means counts too
        running.lerp_(variance + mean.square(), MOMENTUM)
        self.mean.lerp_(mean, MOMENTUM)
        self.std.copy_((running - self.mean.square()).clamp(min=MIN_STD**2).sqrt())

    def _posterior(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents of uint8 [B, H, W, 3], each [B, C, h, w]."""
        pixels = functional.pixel_unshuffle(self.difference(flat), self.patch)
        distribution = self.autoencoder.encode(pixels).latent_dist
        return distribution.mean, distribution.logvar

    def _picture(self, latents: Tensor) -> Tensor:
        """The autoencoder's own latents [B, C, h, w] to pictures within [-1, 1], [B, 3, H, W]."""
        return functional.pixel_shuffle(self.autoencoder.decode(latents).sample, self.patch) + self.background

    @staticmethod
    def _channels(values: Tensor) -> Tensor:
        return values[:, None, None]


def foreground(difference: Tensor) -> Tensor:
    """How much each pixel counts [B, 1, H, W], 1 on average: more, the more it differs from the background.

    `difference`: [B, 3, H, W]. A goal of two pixels would hardly be worth learning otherwise.
    """
    weight = 1 + FOREGROUND * difference.abs().amax(1, keepdim=True)
    return weight / weight.mean()
