"""Arrays for training: the same numbers as the episodes, cached, never stale."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contracts.robot import RobotContract
from episodes.dataset import Dataset, DatasetError, DatasetWriter


def _caches(path: Path) -> list[Path]:
    return [entry for entry in (path / ".cache").iterdir() if entry.is_dir()]


def test_arrays_hold_what_the_episodes_hold(tmp_path: Path, robot: RobotContract, make_episode: Callable) -> None:
    with DatasetWriter(tmp_path / "d", robot, "image") as writer:
        writer.add(make_episode("image", 0, 5))
        writer.add(make_episode("image", 1, 3, task="push it", task_name="push"))
        writer.add(make_episode("image", 2, 4))
    dataset = Dataset(tmp_path / "d")
    arrays = dataset.arrays()
    assert arrays.starts.tolist() == [0, 5, 8]
    assert arrays.ends.tolist() == [5, 8, 12]
    assert arrays.starts.dtype == arrays.ends.dtype == np.int64
    assert [arrays.tasks[i] for i in arrays.task_index[[0, 5, 8]]] == ["open the drawer", "push it", "open the drawer"]
    assert set(arrays.observations) == {"observation.state", "observation.images.corner2"}
    assert arrays.observations["observation.images.corner2"].dtype == np.uint8
    for index in range(3):
        rows = slice(arrays.starts[index], arrays.ends[index])
        episode = dataset.episode(index)
        np.testing.assert_array_equal(arrays.actions[rows], episode.actions)
        for key, values in episode.observations.items():
            np.testing.assert_array_equal(arrays.observations[key][rows], values)


def test_arrays_are_mapped_read_only_and_unpacked_once(make_dataset: Callable[..., Path]) -> None:
    path = make_dataset("image")
    arrays = Dataset(path).arrays()
    assert isinstance(arrays.actions, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        arrays.actions[0] = 0
    (cache,) = _caches(path)
    before = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    Dataset(path).arrays()
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == before


def test_a_stale_cache_is_replaced(
    make_dataset: Callable[..., Path], robot: RobotContract, make_episode: Callable
) -> None:
    path = make_dataset("state", (5, 7))
    old = Dataset(path).arrays()
    first = np.array(old.actions)
    with DatasetWriter(path, robot, "state") as writer:
        writer.add(make_episode("state", 9, 4))
    arrays = Dataset(path).arrays()
    assert len(arrays.actions) == 16
    np.testing.assert_array_equal(arrays.actions[12:], make_episode("state", 9, 4).actions)
    assert len(_caches(path)) == 1
    np.testing.assert_array_equal(old.actions, first)  # who still uses the old one is not disturbed


@pytest.mark.parametrize("damage", ["cut", "missing", "pickle"])
def test_a_damaged_cache_is_made_anew(damage: str, make_dataset: Callable[..., Path]) -> None:
    path = make_dataset("state")
    wanted = np.array(Dataset(path).arrays().actions)
    file = _caches(path)[0] / "action.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:150])
    elif damage == "missing":
        file.unlink()
    else:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(Dataset(path).arrays().actions, wanted)


def test_a_killed_builder_leaves_no_half_cache(make_dataset: Callable[..., Path]) -> None:
    path = make_dataset("state")
    wanted = np.array(Dataset(path).arrays().actions)
    (cache,) = _caches(path)
    cache.rename(cache.with_name(cache.name + ".tmp"))
    (path / ".cache" / (cache.name + ".tmp") / "action.npy").write_bytes(b"half")
    np.testing.assert_array_equal(Dataset(path).arrays().actions, wanted)
    assert [entry.name for entry in _caches(path)] == [cache.name]


def _sum(path: Path) -> float:
    return float(Dataset(path).arrays().actions.sum())


def test_two_trainings_may_start_at_once(make_dataset: Callable[..., Path]) -> None:
    path = make_dataset("state")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_sum, [path] * 4)
    assert len(set(sums)) == 1
    assert len(_caches(path)) == 1


def test_an_empty_dataset_has_nothing_to_train_from(tmp_path: Path, robot: RobotContract) -> None:
    with DatasetWriter(tmp_path / "d", robot, "state"):
        pass
    with pytest.raises(DatasetError, match="no episode"):
        Dataset(tmp_path / "d").arrays()
    with pytest.raises(DatasetError, match="no episode"):
        Dataset(tmp_path / "d").statistics()
