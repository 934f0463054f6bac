"""Which rows a training sample is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from episodes.data import TrainingArrays
from policies.base import make_contract
from policies.windows import Windows, sample_indices, step_generator

KEY = "observation.state"


def windows(robot, config, use=None) -> Windows:
    """Two episodes, of 5 and 20 rows; the first element of every row is its number."""
    rows = np.arange(25, dtype=np.float32)
    arrays = TrainingArrays(
        observations={KEY: np.repeat(rows[:, None], 39, axis=1)},
        actions=np.repeat(rows[:, None], 4, axis=1),
        starts=np.array([0, 5]),
        ends=np.array([5, 25]),
        task_index=np.zeros(25, np.int64),
        tasks=["t"],
    )
    return Windows(arrays, make_contract("diffusion", config, robot, "state", "t"), use)


def test_history_repeats_the_first_observation_and_actions_the_last(robot, tiny):
    batch = windows(robot, tiny).batch(np.array([0, 3, 5, 6]))
    assert batch[KEY][..., 0].tolist() == [[0, 0], [2, 3], [5, 5], [5, 6]]
    assert batch["action"].shape == (4, 16, 4)
    assert batch["action"][0, :, 0].tolist() == [0, 1, 2, 3] + [4] * 12  # never into the next episode
    assert batch["action"][1, :, 0].tolist() == [3] + [4] * 15
    assert batch["action"][3, :, 0].tolist() == list(range(6, 22))


def test_first_action_of_a_chunk_belongs_to_the_newest_observation(robot, tiny):
    batch = windows(robot, tiny).batch(np.arange(25))
    assert torch.equal(batch[KEY][:, -1, 0], batch["action"][:, 0, 0])


def test_failed_episodes_are_not_learned_from(robot, tiny):
    good = windows(robot, tiny, use=[False, True])
    assert len(good) == 20
    assert good.batch(np.array([0, 19]))[KEY][..., 0].tolist() == [[5, 5], [23, 24]]
    statistics = good.statistics()
    assert statistics[KEY]["min"].tolist() == [5] * 39
    assert statistics["action"]["max"].tolist() == [24] * 4
    with pytest.raises(ValueError, match="none of the 2 episodes"):
        windows(robot, tiny, use=[False, False])


def test_batches_depend_on_seed_step_and_process_alone():
    first = sample_indices(1000, 64, seed=1, step=5, rank=0)
    assert np.array_equal(first, sample_indices(1000, 64, seed=1, step=5, rank=0))
    for other in ((2, 5, 0), (1, 6, 0), (1, 5, 1)):
        assert not np.array_equal(first, sample_indices(1000, 64, *other))
    assert first.min() >= 0
    assert first.max() < 1000


def test_noise_depends_on_seed_step_and_process_alone():
    def draw(*arguments: int) -> torch.Tensor:
        return torch.randn(8, generator=step_generator(*arguments))

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    assert len({tuple(draw(*a).tolist()) for a in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}) == 4
