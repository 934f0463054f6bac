"""How far a PAD policy's poses miss a demonstration's: worked out by hand for one that misses by what it is told to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.pad_poses import EVERY, episode_means, pose_errors
from contracts import RobotContract, load_robot
from episodes.dataset import DatasetWriter, EpisodeData
from policies.base import make_contract
from policies.pad.config import PadConfig
from policies.pad.policy import PadPolicy
from tests.checkpoints import write_checkpoint

STATE, CAMERA = "observation.state", "observation.images.corner2"
SPEED = np.array([0.4, -0.2, 0.1, 1.0], np.float32)  # m/s, and the gripper
LENGTHS = {"push": (33, 12), "reach": (20,)}  # of its episodes; 12 periods are too short for a whole future


@pytest.fixture(scope="module")
def robot() -> RobotContract:
    robot = load_robot("metaworld_sawyer")
    return msgspec.structs.replace(robot, cameras=(msgspec.structs.replace(robot.cameras[0], height=32, width=32),))


@pytest.fixture(scope="module")
def dataset(robot: RobotContract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arm is told to move at SPEED and stands still: a `commanded` policy is to predict where it was told to go."""
    path = tmp_path_factory.mktemp("data") / "heldout"
    with DatasetWriter(path, robot, "image") as writer:
        for task, lengths in LENGTHS.items():
            for seed, length in enumerate(lengths):
                writer.add(
                    EpisodeData(
                        observations={
                            STATE: np.full((length, 4), 0.3, np.float32),
                            CAMERA: np.zeros((length, 32, 32, 3), np.uint8),
                        },
                        actions=np.tile(SPEED, (length, 1)),
                        task=f"{task} it",
                        task_name=task,
                        seed=seed,
                        success=True,
                    )
                )
    return path


def checkpoint(robot: RobotContract, path: Path, tasks: str) -> Path:
    config = PadConfig(size="2x32x2", vae_channels=(8, 8), text_dim=8, inference_steps=2)
    policy = PadPolicy(config, make_contract("pad", config, robot, "image", tasks))
    return write_checkpoint(policy, robot, path)


def test_the_error_is_the_distance_to_where_the_demonstration_goes(robot, dataset, tmp_path, monkeypatch) -> None:
    """It sees the present and no more, and the gripper's opening is no distance."""
    told: list[int] = []

    def sample(self: PadPolicy, observations, generator):
        assert set(observations) == {STATE, CAMERA, "task"}
        told.extend(observations["task"].tolist())
        ahead = torch.tensor([4, 8, 12])[None, :, None] * robot.control_period_s * torch.from_numpy(SPEED)
        ahead = observations[STATE][:, -1:] + ahead
        ahead[..., 1] += 0.003
        ahead[..., 2] += torch.tensor([0.004, 0.0, -0.004])
        ahead[..., 3] = 77
        return {"poses": ahead}

    monkeypatch.setattr(PadPolicy, "sample", sample)
    found = pose_errors(checkpoint(robot, tmp_path / "pad", "reach it\npush it"), dataset)
    moments = {task: [len(range(0, length - 12, EVERY)) for length in lengths] for task, lengths in LENGTHS.items()}
    assert {task: [len(e) for e in episodes] for task, episodes in found.items()} == {
        "push": moments["push"][:1], "reach": moments["reach"]
    }  # fmt: skip
    for errors in (found["push"][0], found["reach"][0]):
        assert errors == pytest.approx(np.tile([5.0, 3.0, 5.0], (len(errors), 1)), abs=1e-3)
    assert told == [1] * moments["push"][0] + [0] * moments["reach"][0], "instructions by their text, not their number"
    assert episode_means(found)["reach"] == [pytest.approx([5.0, 3.0, 5.0], abs=1e-3)]


def test_an_untrained_policy_is_far_off(robot, dataset, tmp_path) -> None:
    errors = pose_errors(checkpoint(robot, tmp_path / "pad", "reach it\npush it"), dataset)
    assert all(np.isfinite(e).all() and e.mean() > 5 for episodes in errors.values() for e in episodes)
