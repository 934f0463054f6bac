"""A recorded episode, simulated again from its seed and its actions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contracts import RobotContract
from episodes.data import EpisodeData
from episodes.opening import RecordedEpisode
from episodes.video import write_video
from sim.environments import VIDEO_SIZE, MetaWorldEnv

TOLERANCE = 1e-6
"""Largest difference of a recorded float32 number, in its own unit, that counts as the same."""


@dataclass(frozen=True)
class Divergence:
    """How a re-simulation compares with the recording.

    Attributes:
        steps: control steps compared.
        first_step: the first one whose observation differs by more than the tolerance; None: none does.
        feature: the feature that differs there.
        max_abs_difference: largest difference of any number in the whole episode, in its own unit.
        success: whether the re-simulated episode solved the task.
    """

    steps: int
    first_step: int | None
    feature: str | None
    max_abs_difference: float
    success: bool

    @property
    def diverged(self) -> bool:
        """True if the episode did not happen again."""
        return self.first_step is not None

    def write(self, path: Path | str) -> None:
        """Write the comparison as JSON, with `verdict`: the sentence that `str` gives."""
        text = json.dumps({**asdict(self), "diverged": self.diverged, "verdict": str(self)}, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def __str__(self) -> str:
        if self.first_step is None:
            return f"all {self.steps} steps are the same (largest difference {self.max_abs_difference:.1e})"
        return (
            f"diverges at step {self.first_step} of {self.steps} in {self.feature} "
            f"(largest difference {self.max_abs_difference:.1e})"
        )


def resimulate(
    task: str,
    seed: int,
    actions: npt.NDArray[np.floating],
    recorded: Mapping[str, npt.NDArray[np.generic]],
    observation_set: str,
    robot: RobotContract | None = None,
    tolerance: float = TOLERANCE,
) -> Divergence:
    """Simulate the episode of `seed` under `actions`, and compare what is observed with what was recorded.

    Args:
        task: name without `-v3`.
        seed: of the episode.
        actions: [T, 4], what was executed, in contract units; row 0 right after the reset.
        recorded: feature key -> [T, elements], row t observed before action t; pictures are not compared.
        observation_set: that the features belong to.
        robot: contract; None is the project's.
        tolerance: see `TOLERANCE`.

    Raises:
        ValueError: an unknown task, no vector feature to compare, or arrays of different lengths.
    """
    with closing(MetaWorldEnv(task, observation_set, robot)) as env:
        features = [f for f in env.features if not f.is_image and f.key in recorded]
        if not features:
            raise ValueError(f"nothing to compare: the recording has {list(recorded)}")
        for feature in features:
            expected = (len(actions), *feature.shape)
            if recorded[feature.key].shape != expected:
                raise ValueError(f"{feature.key}: recorded as {recorded[feature.key].shape}, but {expected} is needed")
        first_step, first_feature, largest, success = None, None, 0.0, False
        env.begin(seed)
        for step, action in enumerate(actions):
            for key, value in env.observe(features).items():
                difference = float(np.max(np.abs(value.astype(np.float64) - recorded[key][step].astype(np.float64))))
                largest = max(largest, difference)
                if first_step is None and not difference <= tolerance:  # a NaN differs
                    first_step, first_feature = step, key
            env.advance(action)
            success |= env.success
    return Divergence(len(actions), first_step, first_feature, largest, success)


def resimulate_episode(
    episode: EpisodeData, observation_set: str, robot: RobotContract | None = None, tolerance: float = TOLERANCE
) -> Divergence:
    """`resimulate` for an episode of a dataset: under what was executed, where that differs from its actions."""
    actions = executed_actions(episode)
    return resimulate(episode.task_name, episode.seed, actions, episode.observations, observation_set, robot, tolerance)


def executed_actions(episode: EpisodeData) -> npt.NDArray[np.float32]:
    """What the robot did, float32 [T, dim]."""
    return episode.actions if episode.executed is None else episode.executed


def replay_frames(
    task: str,
    seed: int,
    actions: npt.NDArray[np.floating],
    camera: str | None = None,
    size: tuple[int, int] = VIDEO_SIZE,
    every: int = 1,
    robot: RobotContract | None = None,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Pictures of the episode of `seed` under `actions`: one before each `every`-th action, and the last state.

    Args:
        task: name without `-v3`.
        seed: of the episode.
        actions: [T, 4], what was executed, in contract units.
        camera: any of the world's; None is the contract's first.
        size: (height, width), pixels.
        every: control steps from one picture to the next.
        robot: contract; None is the project's.

    Raises:
        ValueError: an unknown task or camera, or an impossible size.
    """
    with closing(MetaWorldEnv(task, robot=robot)) as env:
        name = env.robot.cameras[0].name if camera is None else camera
        env.begin(seed)
        for step, action in enumerate(actions):
            if step % every == 0:
                yield env.render_camera(name, *size)
            env.advance(action)
        yield env.render_camera(name, *size)


def replay_recorded(
    recorded: RecordedEpisode, video: Path | str | None = None, camera: str | None = None, every: int = 2
) -> Divergence:
    """Simulate a recorded episode again, and render it if `video` names an MP4.

    Args:
        recorded: of a dataset or a bag.
        video: file to write.
        camera: any of the world's; None is the contract's first.
        every: control steps from one picture to the next.

    Raises:
        ValueError: the episode is not of a robot that this simulator has.
    """
    episode, robot = recorded.data, recorded.robot
    divergence = resimulate_episode(episode, recorded.observation_set, robot)
    if video is not None:
        frames = replay_frames(
            episode.task_name, episode.seed, executed_actions(episode), camera, every=every, robot=robot
        )
        write_video(video, frames, robot.control_rate_hz / every)
    return divergence
