"""What a mirror shows: left and right exchanged, by which elements of a vector change places and signs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Reflection = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Which element takes each place, and its sign there."""


def signed(signs: Sequence[float]) -> Reflection:
    """Every element stays where it is, with its sign."""
    return np.arange(len(signs)), np.array(signs, dtype=np.float32)


def unchanged(count: int) -> Reflection:
    """Of `count` elements that are the same on either side."""
    return signed([1.0] * count)


VECTOR = signed((1, -1, 1))  # a velocity or a force: x forward, y left, z up
AXIAL = signed((-1, 1, -1))  # turning about these axes


def joined(*parts: Reflection) -> Reflection:
    """Of vectors that stand one after another in one."""
    starts = np.cumsum([0] + [len(order) for order, _ in parts])
    order = np.concatenate([order + start for (order, _), start in zip(parts, starts[:-1], strict=True)])
    return order, np.concatenate([sign for _, sign in parts])
