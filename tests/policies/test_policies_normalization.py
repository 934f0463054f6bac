"""Numbers into [-1, 1] and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.normalization import MinMaxNormalizer, normalize_image


def fitted(low: list[float], high: list[float], limit: float | None = None) -> MinMaxNormalizer:
    normalizer = MinMaxNormalizer(len(low), limit)
    normalizer.fit({"min": np.array(low), "max": np.array(high)})
    return normalizer


def test_range_becomes_minus_one_to_one_and_back():
    normalizer = fitted([-2.0, 10.0], [4.0, 20.0])
    x = torch.tensor([[-2.0, 10.0], [4.0, 20.0], [1.0, 17.5]])
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]])
    torch.testing.assert_close(normalizer(x), expected)
    torch.testing.assert_close(normalizer.inverse(expected), x)


def test_element_that_never_varied_becomes_zero_whatever_is_measured():
    normalizer = fitted([0.7, 0.3], [0.7, 0.3 + 2e-5])  # the second: 0.02 mm of sensor noise
    assert torch.equal(normalizer(torch.tensor([0.9, 0.5])), torch.zeros(2))
    torch.testing.assert_close(normalizer.inverse(torch.tensor([1.0, 0.0])), torch.tensor([0.7, 0.30001]))


def test_observation_far_outside_of_the_data_is_clamped():
    normalizer = fitted([0.0], [1.0], limit=1.5)
    torch.testing.assert_close(
        normalizer(torch.tensor([[-100.0], [1.1], [100.0]])), torch.tensor([[-1.5], [1.2], [1.5]])
    )


@pytest.mark.parametrize("statistics", [{"min": [0, 1], "max": [1, 0]}, {"min": [0, np.nan], "max": [1, 1]}])
def test_statistics_that_make_no_sense_are_refused(statistics):
    with pytest.raises(ValueError, match="finite with min <= max"):
        MinMaxNormalizer(2).fit(statistics)


def test_statistics_of_another_size_are_refused():
    with pytest.raises(ValueError, match="3 elements for a vector of 2"):
        MinMaxNormalizer(2).fit({"min": np.zeros(3), "max": np.ones(3)})


def test_image_black_is_minus_one_white_is_one_channels_first():
    image = torch.zeros((1, 4, 5, 3), dtype=torch.uint8)
    image[0, 1, 2] = torch.tensor([255, 0, 51])
    normalized = normalize_image(image)
    assert normalized.shape == (1, 3, 4, 5)
    torch.testing.assert_close(normalized[0, :, 1, 2], torch.tensor([1.0, -1.0, -0.6]))
    assert normalized[0, :, 0, 0].tolist() == [-1, -1, -1]
