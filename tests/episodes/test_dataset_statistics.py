"""Statistics against numbers worked out by hand or by numpy in another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from episodes.dataset import Dataset
from episodes.statistics import image_statistics, pooled_statistics, vector_statistics


def test_vectors_by_hand() -> None:
    found = vector_statistics(np.array([[0.0, 10], [1, 10], [2, 10], [3, 10], [4, 10]]))
    assert found["min"].tolist() == [0, 10]
    assert found["max"].tolist() == [4, 10]
    assert found["mean"].tolist() == [2, 10]
    np.testing.assert_allclose(found["std"], [2**0.5, 0])
    assert found["count"].tolist() == [5]
    assert found["q50"].tolist() == [2, 10]
    np.testing.assert_allclose(found["q10"], [0.4, 10])
    np.testing.assert_allclose(found["q99"], [3.96, 10])


def test_images_by_hand() -> None:
    images = np.zeros((2, 1, 2, 3), dtype=np.uint8)
    images[..., 0] = [[[0, 255]], [[255, 255]]]
    images[..., 1] = 51
    found = image_statistics(images)
    assert found["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(found["mean"].ravel(), [0.75, 0.2, 0])
    np.testing.assert_allclose(found["std"].ravel(), [(0.75 * 0.25) ** 0.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found["min"].ravel(), [0, 0.2, 0])
    np.testing.assert_allclose(found["max"].ravel(), [1, 0.2, 0])
    np.testing.assert_allclose(found["q50"].ravel(), [1, 0.2, 0])
    assert found["count"].tolist() == [2]


def test_images_agree_with_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 10, 3), dtype=np.uint8)
    found = image_statistics(images)
    flat = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(found["mean"].ravel(), flat.mean(axis=0))
    np.testing.assert_allclose(found["std"].ravel(), flat.std(axis=0))
    for name, share in {"q01": 0.01, "q50": 0.5, "q99": 0.99}.items():
        expected = np.quantile(flat, share, axis=0, method="lower")
        np.testing.assert_allclose(found[name].ravel(), expected, atol=1e-12)


def test_pooling_equals_the_whole() -> None:
    values = np.random.default_rng(1).normal(size=(90, 3))
    parts = [vector_statistics(values[:10]), vector_statistics(values[10:40]), vector_statistics(values[40:])]
    pooled, whole = pooled_statistics(parts), vector_statistics(values)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(pooled[name], whole[name], rtol=1e-12)
    np.testing.assert_allclose(pooled["q50"], (10 * parts[0]["q50"] + 30 * parts[1]["q50"] + 50 * parts[2]["q50"]) / 90)


@pytest.mark.parametrize("observation_set", ["state", "image"])
def test_dataset_statistics_are_over_all_frames(observation_set: str, make_dataset: Callable[..., Path]) -> None:
    dataset = Dataset(make_dataset(observation_set, (5, 50, 3)))
    arrays, statistics = dataset.arrays(), dataset.statistics()
    wide = arrays.actions.astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], wide.mean(axis=0))
    np.testing.assert_allclose(statistics["action"]["std"], wide.std(axis=0))
    np.testing.assert_allclose(statistics["action"]["q99"], np.quantile(wide, 0.99, axis=0))
    if observation_set == "image":
        pictures = arrays.observations["observation.images.corner2"].reshape(-1, 3) / 255
        found = statistics["observation.images.corner2"]
        np.testing.assert_allclose(found["mean"].ravel(), pictures.mean(axis=0))
        np.testing.assert_allclose(found["std"].ravel(), pictures.std(axis=0))
    assert "index" not in statistics
