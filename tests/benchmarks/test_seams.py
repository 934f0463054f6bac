"""The benchmark of seams: it measures the jumps that there are, whatever cameras the policy looks through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import seams
from contracts import PolicyContract, PolicyObservation, load_robot
from execution.chunk import ActionChunk
from execution.observation import Observation
from sim.cameras import with_cameras

STEP = 0.04  # of the first channel, from one chunk to the next


class Stepping:
    """Looks through a camera that the robot's file does not name; each chunk commands a little more than the last."""

    residual_noise = None

    def __init__(self) -> None:
        robot = with_cameras(load_robot("metaworld_sawyer"), ("corner",), (24, 32))
        self.contract = PolicyContract(
            policy="stepping",
            robot=robot.name,
            observation_set="image",
            task="anything",
            observations=tuple(PolicyObservation(feature=f) for f in robot.observation_features("image")),
            action=robot.action_feature,
            action_period_s=robot.control_period_s,
            horizon=8,
            execute=4,
        )

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Stepping:
        self.chunks = 0
        return self

    def act(self, observation: Observation) -> ActionChunk:
        assert observation.values["observation.images.corner"].shape == (1, 24, 32, 3)
        actions = np.zeros((self.contract.horizon, 4))
        actions[:, 0] = self.chunks * STEP
        self.chunks += 1
        period_ns = round(self.contract.action_period_s * 1e9)
        return ActionChunk(actions, observation.stamp_ns, period_ns, self.contract.action.names)


def test_seams_are_measured_of_a_policy_with_a_camera_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["seams", "bundle", "--task", "reach", "--episodes", "1", "--latency-steps", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--json", str(tmp_path / "seams.json")])
    monkeypatch.setattr(seams, "load_runtime", lambda path: Stepping())
    monkeypatch.setattr("sim.rollout.EPISODE_STEPS", 12)
    seams.main()
    channel = load_robot("metaworld_sawyer").command.channels[0]
    for row, stitching in zip(json.loads((tmp_path / "seams.json").read_text())["rows"], seams.STITCHINGS, strict=True):
        assert (row["stitching"], row["latency_steps"], row["seams"]) == (stitching, 1, 2)
        assert row["jump_mean"] == pytest.approx(STEP / (channel.max - channel.min))
