"""Does a policy act by what it imagines? Worked out by hand for networks of which it is known."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from benchmarks.pad_use import ASKED, TOWARD, Asked, measure, show
from contracts import PolicyContract, PolicyObservation, load_robot
from episodes.dataset import Dataset, DatasetWriter, EpisodeData
from policies.runtime.pad import PadSession
from policies.runtime.sampler import PadChannel, PadSample, PadSampler, PadStep
from policies.runtime.sessions import EpisodeStart

STATE, CAMERA = "observation.state", "observation.images.corner2"
SIZE = 8  # pixels
SPEEDS = (1, 3)  # of the two demonstrations: grey levels a period, and decimetres a second
STEP: dict[str, Any] = {
    "clean_sample": 0.0, "clean_output": 1.0, "next_sample": 0.0, "next_clean": 1.0, "next_previous": 0.0,
}  # fmt: skip
SAMPLER = PadSampler(
    solver="of this test",
    steps=(PadStep(timestep=999, **STEP), PadStep(timestep=0, **STEP)),
    samples=(
        PadSample(name="pictures", shape=(1, 3, 1, 1, 1), clip=1e3), PadSample(name="poses", shape=(1, 3, 4), clip=9),
    ),
    conditions=("now_pictures",),
    future=(4, 8, 12),
    pose_key=STATE,
    channels=(
        *(PadChannel(element=axis, kind="velocity", min=-1, max=1) for axis in range(3)),
        PadChannel(element=3, kind="gripper", min=-1, max=1),
    ),
    gripper_threshold=0.5,
)  # fmt: skip
AHEAD = np.array(SAMPLER.future, np.float32)


def network(look: bool) -> Callable[[dict[str, Any]], list[np.ndarray]]:
    """It guesses the slower one; with `look`, its poses go with the pictures that it is told in the last step."""

    def denoise(inputs: dict[str, Any]) -> list[np.ndarray]:
        now = inputs["now_pictures"][:, -1]
        levels = AHEAD * SPEEDS[0]
        if look and inputs["timestep"][0] == 0:
            levels = inputs["pictures"][0, :, 0, 0, 0] - now.ravel()
        poses = np.zeros((1, 3, 4), np.float32)
        poses[0, :, 0] = 0.1 * 0.0125 * levels
        return [(now[:, None] + (AHEAD * SPEEDS[0])[None, :, None, None, None]).astype(np.float32), poses]

    return denoise


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[PolicyContract, Path]:
    """Two demonstrations of a task: pictures grow lighter as fast as the arm moves along x."""
    robot = load_robot("metaworld_sawyer")
    camera = msgspec.structs.replace(robot.cameras[0], height=SIZE, width=SIZE)
    robot = msgspec.structs.replace(robot, cameras=(camera,))
    contract = PolicyContract(
        policy="pad",
        robot=robot.name,
        observation_set="image",
        task="push it",
        observations=tuple(PolicyObservation(feature=f) for f in robot.observation_features("image")),
        action=robot.action_feature,
        action_period_s=robot.control_period_s,
        horizon=12,
        execute=4,
    )
    path = tmp_path_factory.mktemp("use") / "heldout"
    with DatasetWriter(path, robot, "image") as writer:
        for seed, speed in enumerate(SPEEDS):
            grey = (20 + speed * np.arange(30)).astype(np.uint8)[:, None, None, None]
            actions = np.zeros((30, 4), np.float32)
            actions[:, 0] = 0.1 * speed
            pictures = np.broadcast_to(grey, (30, SIZE, SIZE, 3))
            observations: dict[str, np.ndarray] = {CAMERA: pictures, STATE: np.full((30, 4), 0.3, np.float32)}
            writer.add(EpisodeData(observations, actions, "push it", "push", seed, True))
    return contract, path


def asked(setting: tuple[PolicyContract, Path], look: bool) -> Asked:
    contract, path = setting
    runners: dict[str, Any] = {
        "encoder": lambda inputs: [inputs[CAMERA][:, :, :1, :1, :1].astype(np.float32)],
        "denoiser": network(look),
        "decoder": lambda inputs: [inputs["poses"] + inputs["now"][:, None]],
    }
    session = PadSession(contract, SAMPLER, runners, EpisodeStart(0))
    runtime: Any = SimpleNamespace(contract=contract, sampler=SAMPLER, start=lambda seed, instruction: session)
    return Asked(runtime, Dataset(path))


def test_of_a_policy_that_looks_at_pictures_each_future_tells(setting) -> None:
    """In 4 periods the arm goes 5 mm and 15 mm; the policy guesses 5.

    The other's pictures are lighter or darker already, by what is 2.5 mm for each period so far: 0, 6 and 12.
    """
    result = measure(asked(setting, look=True), progress=False)
    task, mean = result["rows"]
    assert (task["task"], task["episodes"], mean["task"]) == ("push", 2, "mean")
    expected = {"sampled": 5, "one call": 5, "own": 5, "happened": 0, "present": 10, "another": 25, TOWARD: 2}
    for name, value in expected.items():
        assert mean[name]["mean"] == pytest.approx(value, abs=0.15), name
    assert mean["happened - own"]["mean"] == pytest.approx(-5, abs=0.15)
    said = io.StringIO()
    show(result, Console(file=said, width=160))
    assert "another - own" in said.getvalue()


def test_of_a_policy_that_does_not_no_future_changes_anything(setting) -> None:
    _, mean = measure(asked(setting, look=False), progress=False)["rows"]
    assert {round(mean[name]["mean"], 3) for name in ASKED} == {5.0}
    assert mean["happened - own"]["mean"] == mean["another - own"]["mean"] == mean[TOWARD]["mean"] == 0


def test_a_policy_without_pictures_is_refused(setting) -> None:
    contract, path = setting
    session = SimpleNamespace(imagines=())
    runtime: Any = SimpleNamespace(contract=contract, sampler=SAMPLER, start=lambda seed, instruction: session)
    with pytest.raises(ValueError, match="imagines no pictures; name one of PAD that does"):
        Asked(runtime, Dataset(path))
