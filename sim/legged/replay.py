"""A quadruped's recorded episode, simulated again from its seed, its commands and its pushes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt

from contracts import RobotContract
from episodes.data import EpisodeData
from sim.divergence import TOLERANCE, Comparison, Divergence
from sim.legged.body import Quadruped
from sim.legged.pictures import FollowingCamera

VIDEO_SIZE = (480, 640)  # height, width, pixels


def resimulate_walk(episode: EpisodeData, observation_set: str, robot: RobotContract) -> Divergence:
    """Simulate an episode again, and compare what is measured with what was recorded; requests are not compared.

    Args:
        episode: row 0 right after the episode's start; of its pushes nothing is known: there were none.
        observation_set: that its features belong to.
        robot: contract of the robot that was recorded.

    Raises:
        ValueError: a robot or a terrain that this simulator does not have, or nothing to compare.
    """
    requested = {name for sensor in robot.sensors if sensor.is_request for name in sensor.fields}
    compared = {
        feature.key: [(column, name) for column, name in enumerate(feature.names) if name not in requested]
        for feature in robot.observation_features(observation_set)
        if not feature.is_image and feature.key in episode.observations
    }
    if not any(compared.values()):
        raise ValueError(f"nothing to compare: the recording has {list(episode.observations)}")
    comparison = Comparison(TOLERANCE)
    with closing(Quadruped(robot, episode.task_name, episode.seed)) as quadruped:
        for step, (command, push) in enumerate(_applied(episode)):
            measured = quadruped.fields()
            for key, columns in compared.items():
                simulated = np.array([measured[name] for _, name in columns], dtype=np.float32)
                comparison.add(step, key, simulated, episode.observations[key][step, [column for column, _ in columns]])
            quadruped.step(command, push)
        return comparison.result(len(episode), not quadruped.fallen)


def walk_frames(episode: EpisodeData, robot: RobotContract, every: int = 1) -> Iterator[npt.NDArray[np.uint8]]:
    """Pictures of an episode, from a camera that follows the trunk: one before each `every`-th step.

    Args:
        episode: see `resimulate_walk`.
        robot: contract of the robot that was recorded.
        every: control steps from one picture to the next.

    Raises:
        ValueError: a robot or a terrain that this simulator does not have.
    """
    with (
        closing(Quadruped(robot, episode.task_name, episode.seed)) as quadruped,
        closing(FollowingCamera(quadruped.figures, quadruped.ground, VIDEO_SIZE)) as camera,
    ):
        for step, (command, push) in enumerate(_applied(episode)):
            if step % every == 0:
                yield camera.picture(quadruped.state, push)
            quadruped.step(command, push)


def _applied(episode: EpisodeData) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[np.float64]]]:
    """The command and the push of each step."""
    pushes = np.zeros((len(episode), 3)) if episode.pushes is None else episode.pushes
    return zip(episode.applied, pushes, strict=True)
