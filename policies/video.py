"""Action-free video beside demonstrations: its pictures are learned from, its poses and actions are not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contracts import PolicyContract
from episodes.dataset import Dataset
from policies.base import Batch
from policies.windows import Windows

HAS_ACTION = "has_action"  # bool [batch] in a batch: False of a sample whose poses and actions are not known
SAME_PERIOD = 1e-3  # relative
VIDEO_SEED = 2**32  # added to the seed of what is drawn, so that the two draws have nothing in common


def video_windows(path: Path | str, contract: PolicyContract) -> Windows:
    """The samples of a dataset of which pictures and instruction alone are used: states and actions are zeros.

    Raises:
        DatasetError: the dataset cannot be used.
        ValueError: its pictures are not those of the contract, or come at another rate, or no episode succeeded.
    """
    source = Dataset(path)
    if not math.isclose(source.robot.control_period_s, contract.action_period_s, rel_tol=SAME_PERIOD):
        rates = f"{source.robot.control_rate_hz:g} Hz, the demonstrations at {1 / contract.action_period_s:g} Hz"
        raise ValueError(f"{path}: the video is at {rates}: what is so many periods ahead would mean two things")
    arrays = source.arrays()
    rows = len(arrays.actions)
    observations = {}
    for feature in (o.feature for o in contract.observations):
        if not feature.is_image:
            observations[feature.key] = np.broadcast_to(np.zeros(feature.shape, np.float32), (rows, *feature.shape))
            continue
        found = source.features.get(feature.key)
        if found is None or found.shape != feature.shape:
            has = "has none" if found is None else f"has {found.shape}"
            raise ValueError(f"{path}: video must show {feature.key} of shape {feature.shape}; it {has}")
        observations[feature.key] = arrays.observations[feature.key]
    place = np.array([contract.instructions.index(task) for task in arrays.tasks])
    arrays = replace(
        arrays,
        observations=observations,
        actions=np.broadcast_to(np.zeros(contract.action.shape, np.float32), (rows, *contract.action.shape)),
        task_index=place[arrays.task_index],
        tasks=list(contract.instructions),
    )
    return Windows(arrays, contract, use=[episode.success for episode in source.episodes])


class VideoMixture:
    """Batches of demonstrations and video; made of `Windows`, and used like them."""

    def __init__(self, demonstrations: Windows, video: Windows, fraction: float) -> None:
        """`fraction`: of a batch that is video. Raises ValueError if it is not within (0, 1)."""
        if not 0 < fraction < 1:
            raise ValueError(f"the fraction of video must lie within (0, 1), not {fraction}")
        self.demonstrations, self.video, self.fraction = demonstrations, video, fraction

    def draw(self, batch_size: int, seed: int, step: int, rank: int) -> Batch:
        """As `Windows.draw`, demonstrations first, with `has_action`. Raises ValueError if a batch lacks either."""
        count = round(batch_size * self.fraction)
        if not 0 < count < batch_size:
            raise ValueError(f"{self.fraction:g} of a batch of {batch_size} is {count} videos: take a larger batch")
        told = self.demonstrations.draw(batch_size - count, seed, step, rank)
        shown = self.video.draw(count, seed + VIDEO_SEED, step, rank)
        batch = {key: torch.cat((value, shown[key])) for key, value in told.items()}
        return batch | {HAS_ACTION: torch.arange(batch_size) < batch_size - count}

    def without_observations(self) -> VideoMixture:
        """As `Windows.without_observations`."""
        return self._each(Windows.without_observations)

    def with_future(self, periods: tuple[int, ...]) -> VideoMixture:
        """As `Windows.with_future`."""
        return self._each(lambda windows: windows.with_future(periods))

    def encoded(self, encode: Callable[[str, Tensor], Tensor]) -> VideoMixture:
        """As `Windows.encoded`."""
        return self._each(lambda windows: windows.encoded(encode))

    def _each(self, change: Callable[[Windows], Windows]) -> VideoMixture:
        changed = copy.copy(self)
        changed.demonstrations, changed.video = change(self.demonstrations), change(self.video)
        return changed
