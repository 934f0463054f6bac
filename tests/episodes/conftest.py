"""A robot with a small camera, episodes of random numbers, and child processes to kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from contracts.robot import RobotContract, load_robot
from episodes.convert import dataset_to_bag
from episodes.data import EpisodeData
from episodes.dataset import Dataset, DatasetWriter

ROOT = Path(__file__).resolve().parents[2]

MakeEpisode = Callable[..., EpisodeData]


@pytest.fixture(scope="session")
def robot() -> RobotContract:
    """Meta-World's Sawyer with a camera of 10 x 12 pixels (width x height)."""
    plain = load_robot("metaworld_sawyer").to_dict()
    plain["cameras"][0].update(height=12, width=10)
    return RobotContract.from_dict(plain)


@pytest.fixture(scope="session")
def make_episode(robot: RobotContract) -> MakeEpisode:
    """make_episode(observation_set, seed, length=..., **replaced) -> EpisodeData of random content."""

    def make(observation_set: str, seed: int, length: int = 7, **replaced: object) -> EpisodeData:
        random = np.random.default_rng(seed)
        observations = {
            f.key: random.integers(0, 256, (length, *f.shape), dtype=np.uint8)
            if f.is_image
            else random.normal(size=(length, *f.shape)).astype(np.float32)
            for f in robot.observation_features(observation_set)
        }
        actions = random.uniform(-1, 1, (length, 4)).astype(np.float32)
        content = {"task": "open the drawer", "task_name": "drawer-open", "seed": seed, "success": seed % 2 == 0}
        return EpisodeData(observations=observations, actions=actions, **{**content, **replaced})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_dataset(robot: RobotContract, make_episode: MakeEpisode, tmp_path: Path) -> Callable[..., Path]:
    """make_dataset(observation_set, lengths) -> path of a dataset with an episode of each length."""

    def make(observation_set: str = "image", lengths: tuple[int, ...] = (5, 7, 3)) -> Path:
        path = tmp_path / f"dataset-{observation_set}"
        with DatasetWriter(path, robot, observation_set) as writer:
            for seed, length in enumerate(lengths):
                writer.add(make_episode(observation_set, seed, length))
        return path

    return make


@pytest.fixture
def make_bag(make_dataset: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """make_bag(observation_set, lengths) -> path of a recording of such a dataset."""

    def make(observation_set: str = "image", lengths: tuple[int, ...] = (5, 7, 3)) -> Path:
        return dataset_to_bag(Dataset(make_dataset(observation_set, lengths)), tmp_path / f"bag-{observation_set}")

    return make


@pytest.fixture
def same_episode() -> Callable[[EpisodeData, EpisodeData], bool]:
    """True if two episodes hold exactly the same."""

    def same(one: EpisodeData, other: EpisodeData) -> bool:
        keys = one.observations.keys() == other.observations.keys()
        return (
            keys
            and all(np.array_equal(one.observations[key], other.observations[key]) for key in one.observations)
            and np.array_equal(one.actions, other.actions)
            and (one.task, one.task_name, one.seed, one.success)
            == (other.task, other.task_name, other.seed, other.success)
        )

    return same


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """child(script, *arguments) -> a Python process with its output as text; ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
