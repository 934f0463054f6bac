"""Normalisation as layers: the figures live in buffers, so they travel in the weights and in the exported graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

# Half a range below this (0.05 mm, 0.05 mrad, 0.005 %) is sensor noise about a constant: scaling it up to [-1, 1] would
# feed the network noise as if it were a signal, so such an element is always 0.
MIN_HALF_RANGE = 5e-5

# A quarter of the range on each side: unseen starting positions lie a little outside of the demonstrations' and still
# differ from each other, while a glitch or a far-away object cannot push the network where no loss ever shaped it.
OBSERVATION_LIMIT = 1.5


class MinMaxNormalizer(nn.Module):
    """Maps each element of a vector from its range in the data to [-1, 1]; an element that never varied becomes 0."""

    center: Tensor
    half_range: Tensor

    def __init__(self, size: int, limit: float | None = None) -> None:
        """`limit`: what `forward` clamps to; None does not clamp."""
        super().__init__()
        self.limit = limit
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("half_range", torch.ones(size))

    def fit(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Take `min` and `max` [size] of the data.

        Raises:
            ValueError: they have another size or are not finite.
        """
        low, high = (np.asarray(statistics[name], dtype=np.float64).reshape(-1) for name in ("min", "max"))
        if low.shape != tuple(self.center.shape) or high.shape != low.shape:
            raise ValueError(f"statistics of {low.size} elements for a vector of {self.center.numel()}")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise ValueError("statistics must be finite with min <= max: is there a NaN in the dataset?")
        self.center.copy_(torch.from_numpy((low + high) / 2))
        self.half_range.copy_(torch.from_numpy((high - low) / 2))

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] in the data's units to [..., size] without units."""
        varies = self.half_range > MIN_HALF_RANGE
        scale = torch.where(varies, 1 / self.half_range.clamp(min=MIN_HALF_RANGE), 0.0)
        normalized = (x - self.center) * scale
        return normalized if self.limit is None else normalized.clamp(-self.limit, self.limit)

    def inverse(self, x: Tensor) -> Tensor:
        """[..., size] without units to [..., size] in the data's units."""
        return x * self.half_range + self.center


class Decoder(nn.Module):
    """From a normalised chunk to actions in the data's units: the last graph of a diffusion policy."""

    def __init__(self, normalizer: MinMaxNormalizer) -> None:
        super().__init__()
        self.normalizer = normalizer

    def forward(self, sample: Tensor) -> Tensor:
        """[batch, horizon, action_dim], likewise."""
        return self.normalizer.inverse(sample)


def normalize_image(image: Tensor) -> Tensor:
    """uint8 [..., height, width, 3] to float [..., 3, height, width] within [-1, 1]."""
    return (image.float() / 127.5 - 1).movedim(-1, -3)
