"""A robot, small datasets and networks that train within seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from contracts import Feature, RobotContract, load_robot
from episodes.data import EpisodeData
from episodes.dataset import Dataset, DatasetWriter
from execution.observation import Observation
from policies.base import make_contract
from policies.carp.config import CarpConfig
from policies.carp.policy import CarpPolicy
from policies.carp.tokenizer import Quantizer
from policies.config import TrainingConfig
from policies.diffusion.config import DiffusionConfig
from policies.diffusion.policy import DiffusionPolicy
from policies.train import train_policy
from tests.checkpoints import write_checkpoint

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
        write_checkpoint(policy, robot, path)
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


TINY_CARP = CarpConfig(
    depth=2,
    width=16,
    heads=2,
    codes=32,
    code_dim=4,
    tokenizer_channels=(4, 8),
    tokenizer_steps=300,
    tokenizer_batch_size=64,
    tokenizer_learning_rate=4e-3,
    image_width=8,
    keypoints=8,
)


@pytest.fixture(scope="session")
def tiny_carp() -> CarpConfig:
    return TINY_CARP


def randomise(policy: CarpPolicy, seed: int) -> None:
    """Far from the first weights, under which blocks do next to nothing, so that every token depends on all it sees."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.transformer.named_parameters():
            if parameter.ndim > 1 and parameter.shape[-1] > 1:
                size = {"condition.weight": 1.0, "position": 6, "level": 1, "embed.weight": 6}.get(name, 2)
                if name.startswith(("modulation", "final_modulation")):
                    size = 0.5  # what is seen must not drown the place
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
            else:  # what begins as a constant: no two alike
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for parameter in policy.tokenizer.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def make_carp(datasets: dict[str, Path], robot: RobotContract) -> Callable[..., CarpPolicy]:
    """A CARP policy whose weights are random, normalisation included; keywords change its configuration."""

    def make(observation_set: str = "state", seed: int = 3, **changes: Any) -> CarpPolicy:
        torch.manual_seed(seed)
        config = msgspec.structs.replace(TINY_CARP, **changes)
        policy = CarpPolicy(config, make_contract("carp", config, robot, observation_set, "open the drawer")).eval()
        policy.fit_normalization(Dataset(datasets[observation_set]).statistics())
        randomise(policy, seed)
        return policy

    return make


@pytest.fixture(scope="session")
def carp_demonstrations() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Instruction -> states [40, 39] and actions [40, 4]: the state is the moment, and says nothing of the task."""
    moment = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    still = np.ones_like(moment)
    opening = np.hstack((0.4 * np.sin(6 * moment), 0.2 * moment, -moment, still))
    closing = np.hstack((0.4 * np.cos(6 * moment), -0.2 * moment, -(moment**2), still))
    states = np.repeat(moment, 39, axis=1)
    return {"open the drawer": (states, opening), "close the drawer": (states, closing)}


@pytest.fixture(scope="session")
def carp_trained(
    carp_demonstrations: dict[str, tuple[np.ndarray, np.ndarray]],
    robot: RobotContract,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint that has learned both demonstrations by heart."""
    root = tmp_path_factory.mktemp("carp")
    with DatasetWriter(root / "data", robot, "state") as writer:
        for name, (states, actions) in carp_demonstrations.items():
            writer.add(EpisodeData({"observation.state": states}, actions, name, name, 0, True))
    config = msgspec.structs.replace(TINY_CARP, state_history=1)
    training = TrainingConfig(
        steps=600, batch_size=32, learning_rate=1e-2, warmup_steps=20, precision="fp32", threads=1
    )
    train_policy("carp", root / "data", root / "run", config, training, progress_bar=False)
    return root / "run"


class SlowQuantizer:
    """CARP's residual quantisation in plain loops of float64, of a quantiser's weights alone (one batch element)."""

    def __init__(self, quantizer: Quantizer, lookup: str) -> None:
        self.scales = quantizer.scales
        self.lookup = lookup
        self.codebook = quantizer.codebook.detach().double().numpy()  # [D, codes, C]
        self.dims, _, self.channels = self.codebook.shape
        weights = dict(quantizer.phi.named_parameters())
        arrays = {name: weight.detach().double().numpy() for name, weight in weights.items()}
        self.phi = [(arrays[f"{index}.weight"], arrays[f"{index}.bias"]) for index in range(len(self.scales))]

    def area(self, latent: np.ndarray, scale: int) -> np.ndarray:
        """[T, C] to [scale, C]: position i is the mean of the positions that its part of the time touches."""
        length = len(latent)
        ends = [(math.floor(i * length / scale), math.ceil((i + 1) * length / scale)) for i in range(scale)]
        return np.stack([latent[first:end].mean(axis=0) for first, end in ends])

    def bicubic(self, codes: np.ndarray) -> np.ndarray:
        """[k, C] to [T, C]: Keys' kernel with a = -0.75, pixel centres at halves, edges repeated."""
        out = []
        for position in range(self.scales[-1]):
            source = (position + 0.5) * len(codes) / self.scales[-1] - 0.5
            total = np.zeros(self.channels)
            for near in range(math.floor(source) - 1, math.floor(source) + 3):
                total += self.kernel(abs(source - near)) * codes[min(max(near, 0), len(codes) - 1)]
            out.append(total)
        return np.stack(out)

    @staticmethod
    def kernel(x: float, a: float = -0.75) -> float:
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def nearest(self, dim: int, vector: np.ndarray) -> int:
        if self.lookup == "euclidean":
            distances = [np.linalg.norm(vector - code) for code in self.codebook[dim]]
            return int(np.argmin(distances))
        cosines = [vector @ code / np.linalg.norm(vector) / np.linalg.norm(code) for code in self.codebook[dim]]
        return int(np.argmax(cosines))

    def contribution(self, dim: int, index: int, tokens: np.ndarray) -> np.ndarray:
        """What tokens [k] of a scale add to f_hat [T, C]."""
        x = self.bicubic(self.codebook[dim][tokens])
        weight, bias = self.phi[index]
        own = slice(dim * self.channels, (dim + 1) * self.channels)
        padded = np.vstack((np.zeros(self.channels), x, np.zeros(self.channels)))
        mixed = [bias[own] + sum(weight[own, :, j] @ padded[t + j] for j in range(3)) for t in range(len(x))]
        return 0.5 * x + 0.5 * np.stack(mixed)

    def encode(self, latent: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Latent [D, T, C] to tokens [D, k] of each scale and f_hat [D, T, C] after each."""
        f_hat = np.zeros_like(latent)
        tokens, sums = [], []
        for index, scale in enumerate(self.scales):
            chosen = np.zeros((self.dims, scale), np.int64)
            for dim in range(self.dims):
                left = self.area(latent[dim] - f_hat[dim], scale)
                chosen[dim] = [self.nearest(dim, vector) for vector in left]
            f_hat = self.add(f_hat, index, chosen)
            tokens.append(chosen)
            sums.append(f_hat)
        return tokens, sums

    def add(self, f_hat: np.ndarray, index: int, tokens: np.ndarray) -> np.ndarray:
        """f_hat [D, T, C] with what tokens [D, k] of a scale add to it."""
        return f_hat + np.stack([self.contribution(dim, index, tokens[dim]) for dim in range(self.dims)])


@pytest.fixture(scope="session")
def slow_quantizer() -> type[SlowQuantizer]:
    return SlowQuantizer
