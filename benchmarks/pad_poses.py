"""How far from where the expert would have gone does a PAD policy want to go? On episodes that it has not learned from.

Success in simulation is one bit an episode; this is a distance a moment, the same moments for every policy, and tells
apart what 25 episodes a task cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from episodes.dataset import Dataset
from policies.checkpoint import load_checkpoint
from policies.pad.policy import PadPolicy
from policies.runtime.graphs import TASK
from policies.windows import FUTURE, Windows

EVERY = 4  # control periods between two moments of an episode
BATCH = 64  # moments
MILLIMETRES = 1e3


def pose_errors(checkpoint: Path, dataset: Path) -> dict[str, list[NDArray[np.float64]]]:
    """Distances between the positions that a policy predicts and those that the demonstration goes to, mm.

    Returns:
        Task -> of each of its episodes, in order, [moments, future]. Moments whose future is not whole are left out.

    Raises:
        CheckpointError, DatasetError: one of them cannot be used.
        ValueError: the checkpoint is not PAD's, or does not know an instruction of the dataset.
    """
    policy, config = load_checkpoint(checkpoint)
    if not isinstance(policy, PadPolicy):
        raise ValueError(f"{checkpoint} predicts no poses: it is a {config.contract.policy} policy")
    policy.eval().fit_robot(config.robot)
    source = Dataset(dataset)
    windows = Windows(source.arrays(), config.contract).with_future(policy.config.future)
    place = torch.tensor([config.contract.instructions.index(task) for task in windows.arrays.tasks])
    moving = [channel.element for channel in policy.channels if channel.kind == "velocity"]
    found: dict[str, list[NDArray[np.float64]]] = {}
    for episode, start, end in zip(source.episodes, windows.starts, windows.ends, strict=True):
        rows = np.arange(start, end - policy.config.future[-1], EVERY)
        if len(rows):
            errors = [
                _errors(policy, windows, part, place, moving) for part in np.split(rows, range(BATCH, len(rows), BATCH))
            ]
            found.setdefault(episode.task_name, []).append(np.concatenate(errors))
    return found


def _errors(
    policy: PadPolicy, windows: Windows, rows: NDArray[np.int64], place: torch.Tensor, moving: Sequence[int]
) -> NDArray[np.float64]:
    """Of the moments at some rows of the arrays, [rows, future]; every policy begins with the same noise."""
    batch = windows.batch(rows)
    batch[TASK] = place[batch[TASK]]
    observed = {key: value for key, value in batch.items() if not key.startswith(FUTURE) and key != "action"}
    predicted = policy.sample(observed, torch.Generator().manual_seed(int(rows[0])))["poses"]
    missed = (predicted - policy.future_poses(batch))[..., moving]
    return MILLIMETRES * missed.double().norm(dim=-1).numpy()


def episode_means(errors: dict[str, list[NDArray[np.float64]]]) -> dict[str, list[list[float]]]:
    """Task -> of each of its episodes the mean over its moments, mm, [future]."""
    return {task: [found.mean(axis=0).tolist() for found in episodes] for task, episodes in errors.items()}
