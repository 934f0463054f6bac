"""What the transformer sees of the clean picture besides its latents: what acting needs, however few pixels it has.

Axes: B batch, H x W pixels, h x w latent positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.encoders import SpatialSoftmax

FINE, COARSE = 32, 64  # channels, for keypoints and for details
FINE_PATCH = 2  # pixels along each side of what the first convolution sees as one place
SHARPNESS = 10.0  # of the first keypoints: each begins at something that is not background, not in the middle of all


class PictureEye(nn.Module):
    """A few convolutions, trained with the transformer."""

    def __init__(self, details: int, keypoints: int, downsampling: int) -> None:
        """`details`: channels; `downsampling`: pixels along each side of a latent position, even."""
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(3 * FINE_PATCH**2, FINE, 3, padding=1), nn.SiLU(), nn.Conv2d(FINE, FINE, 3, padding=1), nn.SiLU()
        )
        self.keypoints = SpatialSoftmax(FINE, keypoints)
        with torch.no_grad():
            self.keypoints.maps.weight.mul_(SHARPNESS)
        stride = downsampling // FINE_PATCH
        self.details = nn.Sequential(
            nn.Conv2d(FINE, COARSE, stride, stride), nn.SiLU(), nn.Conv2d(COARSE, details, 3, padding=1)
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W], the background at 0, to details [B, details, h, w] and keypoints [B, 2 * keypoints]."""
        fine = self.inside(functional.pixel_unshuffle(pictures, FINE_PATCH))
        return self.details(fine), self.keypoints(fine)
