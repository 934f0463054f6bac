"""A robot, small datasets and networks that train within seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts import Feature, RobotContract, load_robot
from episodes.data import EpisodeData
from episodes.dataset import Dataset, DatasetWriter
from execution.observation import Observation
from policies.base import make_contract
from policies.checkpoint import CheckpointConfig, write_config, write_tensors
from policies.config import TrainingConfig
from policies.diffusion.config import DiffusionConfig
from policies.diffusion.policy import DiffusionPolicy

TINY = DiffusionConfig(widths=(16, 32), kernel_size=3, timestep_dim=16, image_width=8, keypoints=8, inference_steps=5)
QUICK = TrainingConfig(steps=20, batch_size=8, warmup_steps=5, learning_rate=1e-3, threads=1)


@pytest.fixture(scope="session")
def tiny() -> DiffusionConfig:
    return TINY


@pytest.fixture(scope="session")
def quick() -> TrainingConfig:
    return QUICK


@pytest.fixture(scope="session")
def robot() -> RobotContract:
    return load_robot("metaworld_sawyer")


def _values(feature: Feature, length: int, random: np.random.Generator) -> np.ndarray:
    if feature.is_image:
        return random.integers(0, 256, (length, *feature.shape), dtype=np.uint8)
    return random.uniform(-0.3, 0.3, (length, *feature.shape)).astype(np.float32)


def write_dataset(path: Path, robot: RobotContract, observation_set: str, episodes: int, length: int) -> Path:
    """Random observations; the actions are smooth in time, and the last element never varies."""
    random = np.random.default_rng(0)
    with DatasetWriter(path, robot, observation_set) as writer:
        for seed in range(episodes):
            time = np.linspace(0, 3, length + seed)[:, None] + np.arange(4)
            actions = (0.5 * np.sin(time + seed)).astype(np.float32)
            actions[:, 3] = -1
            observations = {
                f.key: _values(f, len(actions), random) for f in robot.observation_features(observation_set)
            }
            writer.add(EpisodeData(observations, actions, "open the drawer", "drawer-open", seed, True))
    return path


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory, robot: RobotContract) -> dict[str, Path]:
    """Observation set -> a dataset."""
    root = tmp_path_factory.mktemp("datasets")
    return {
        "state": write_dataset(root / "state", robot, "state", episodes=4, length=25),
        "image": write_dataset(root / "image", robot, "image", episodes=2, length=10),
    }


@pytest.fixture(scope="session")
def make_checkpoint(
    datasets: dict[str, Path], robot: RobotContract
) -> Callable[[Path, str, DiffusionConfig], DiffusionPolicy]:
    """Write an untrained checkpoint, normalisation included."""

    def make(path: Path, observation_set: str, config: DiffusionConfig) -> DiffusionPolicy:
        torch.manual_seed(3)
        contract = make_contract("diffusion", config, robot, observation_set, "open the drawer")
        policy = DiffusionPolicy(config, contract).eval()
        policy.fit_normalization(Dataset(datasets[observation_set]).statistics())
        path.mkdir(parents=True)
        write_config(path, CheckpointConfig(policy=config.to_dict(), contract=contract, robot=robot, training={}))
        write_tensors(path / "model.safetensors", policy.state_dict(), {})
        return policy

    return make


@pytest.fixture(scope="session")
def make_observation() -> Callable[..., Observation]:
    """A random observation that fits a policy's contract."""

    def make(contract, seed: int = 0, stamp_ns: int = 1_000) -> Observation:
        random = np.random.default_rng(seed)
        return Observation(
            stamp_ns=stamp_ns,
            values={o.feature.key: _values(o.feature, o.history, random) for o in contract.observations},
        )

    return make
