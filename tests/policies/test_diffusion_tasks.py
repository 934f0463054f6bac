"""Diffusion Policy of several tasks: what it is told decides what it does, also when it sees the same."""

from __future__ import annotations

import msgspec
import numpy as np

from episodes.data import EpisodeData
from episodes.dataset import DatasetWriter
from execution.observation import Observation
from policies.config import TrainingConfig
from policies.loading import load_runtime
from policies.train import train_policy


def test_overfits_two_tasks_and_gives_the_actions_of_the_one_it_is_told(robot, tmp_path, tiny, carp_demonstrations):
    with DatasetWriter(tmp_path / "data", robot, "state") as writer:
        for name, (states, actions) in carp_demonstrations.items():
            writer.add(EpisodeData({"observation.state": states}, actions, name, name, 0, True))
    config = msgspec.structs.replace(tiny, widths=(64,), kernel_size=5, state_history=1, inference_steps=10)
    training = TrainingConfig(steps=500, batch_size=32, learning_rate=1e-2, threads=1, precision="fp32")
    train_policy("diffusion", tmp_path / "data", tmp_path / "run", config, training, progress_bar=False)
    runtime = load_runtime(tmp_path / "run")
    rows = np.arange(25)[:, None] + np.arange(16)
    chunks = {name: actions[rows] for name, (_, actions) in carp_demonstrations.items()}
    ranges = np.ptp(np.concatenate(list(chunks.values())), axis=(0, 1))[:3]
    for name, (states, _) in carp_demonstrations.items():
        session = runtime.start(0, name)
        seen = [Observation(0, {"observation.state": states[row : row + 1]}) for row in range(25)]
        found = np.stack([session.act(observation).actions for observation in seen])
        errors = {other: (np.abs(found - chunk)[..., :3] / ranges).mean() for other, chunk in chunks.items()}
        assert errors.pop(name) < 0.12
        assert min(errors.values()) > 0.2
