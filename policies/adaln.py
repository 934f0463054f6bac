"""Adaptive layer norm: what a transformer is told scales and shifts what its layers see (arXiv 2212.09748)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def modulated(x: Tensor, *, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    """x [..., W], normalised over the last axis, then scaled by 1 + `scale` and shifted.

    `epsilon`: added to the variance; what a network was trained with belongs to it.
    """
    return functional.layer_norm(x, x.shape[-1:], eps=epsilon) * (1 + scale) + shift
