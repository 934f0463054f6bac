"""Statistics of a feature, as LeRobot v3 keeps them: per element of a vector, per colour of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Statistics = dict[str, np.ndarray]

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
MAX_SAMPLED_IMAGES = 100  # of one episode; more change the third digit at best


def vector_statistics(values: np.ndarray) -> Statistics:
    """Exact statistics of [T, D]: every entry is float64 [D], except `count`, int64 [1]. std is the population's."""
    wide = values.astype(np.float64)
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return {
        "min": wide.min(axis=0),
        "max": wide.max(axis=0),
        "mean": wide.mean(axis=0),
        "std": wide.std(axis=0),
        "count": np.array([len(wide)], dtype=np.int64),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def image_statistics(images: np.ndarray) -> Statistics:
    """Statistics of uint8 [T, H, W, 3], scaled to [0, 1]: float64 (3, 1, 1); `count` is the number of images looked at.

    At most MAX_SAMPLED_IMAGES images, evenly spaced, are looked at; of these the figures are exact (from histograms).
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_SAMPLED_IMAGES)).round().astype(int))
    sampled = images[rows]
    colours = [_histogram_statistics(np.bincount(sampled[..., c].ravel(), minlength=256)) for c in range(3)]
    result = {name: np.array([colour[name] for colour in colours]).reshape(3, 1, 1) for name in colours[0]}
    return {**result, "count": np.array([len(rows)], dtype=np.int64)}


def _histogram_statistics(counts: np.ndarray) -> dict[str, float]:
    """Statistics of the 8-bit values whose histogram is `counts` [256], divided by 255."""
    levels = np.arange(256) / 255.0
    total = counts.sum()
    present = np.flatnonzero(counts)
    mean = float((counts * levels).sum() / total)
    variance = float((counts * (levels - mean) ** 2).sum() / total)
    ranks = np.searchsorted(np.cumsum(counts), [q * (total - 1) for q in QUANTILES.values()], side="right")
    return {
        "min": float(levels[present[0]]),
        "max": float(levels[present[-1]]),
        "mean": mean,
        "std": variance**0.5,
        **{name: float(levels[rank]) for name, rank in zip(QUANTILES, ranks, strict=True)},
    }


def pooled_statistics(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of several episodes together, from each episode's own.

    min, max, mean, std and count are exact; a quantile is the mean of the episodes' quantiles, weighted by their counts
    (LeRobot's own approximation).
    """
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    weights = counts / counts.sum()

    def average(values: list[np.ndarray]) -> np.ndarray:
        return np.tensordot(weights, np.stack(values), axes=1)

    mean = average([part["mean"] for part in parts])
    variance = average([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([int(counts.sum())], dtype=np.int64),
        **{name: average([part[name] for part in parts]) for name in QUANTILES},
    }
