"""A recorded episode, simulated again from its seed and its actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contracts import RobotContract
from episodes.data import EpisodeData
from episodes.opening import RecordedEpisode
from episodes.video import write_video
from sim.divergence import TOLERANCE, Comparison, Divergence
from sim.environments import VIDEO_SIZE, MetaWorldEnv
from sim.world import choose_offscreen_gl


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
        tolerance: see `sim.divergence`.

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
        comparison, success = Comparison(tolerance), False
        env.begin(seed)
        for step, action in enumerate(actions):
            for key, value in env.observe(features).items():
                comparison.add(step, key, value, recorded[key][step])
            env.advance(action)
            success |= env.success
    return comparison.result(len(actions), success)


def resimulate_episode(
    episode: EpisodeData, observation_set: str, robot: RobotContract | None = None, tolerance: float = TOLERANCE
) -> Divergence:
    """`resimulate` for an episode of a dataset: under what was executed, where that differs from its actions."""
    seed, actions = episode.seed, episode.applied
    return resimulate(episode.task_name, seed, actions, episode.observations, observation_set, robot, tolerance)


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
        camera: any of the world's; None is the contract's first. A quadruped is followed by one of its own.
        every: control steps from one picture to the next.

    Raises:
        ValueError: the episode is not of a robot that this simulator has.
    """
    episode, robot = recorded.data, recorded.robot
    if robot.body == "quadruped":
        return _replay_walk(recorded, video, camera, every)
    divergence = resimulate_episode(episode, recorded.observation_set, robot)
    if video is not None:
        frames = replay_frames(episode.task_name, episode.seed, episode.applied, camera, every=every, robot=robot)
        write_video(video, frames, robot.control_rate_hz / every)
    return divergence


def _replay_walk(recorded: RecordedEpisode, video: Path | str | None, camera: str | None, every: int) -> Divergence:
    """`replay_recorded` of a quadruped."""
    from sim.legged.replay import resimulate_walk, walk_frames  # only who replays a quadruped needs its simulation

    choose_offscreen_gl()
    episode, robot = recorded.data, recorded.robot
    if camera is not None:
        raise ValueError(f"no camera {camera!r}: the one that follows {robot.name} is the only one")
    divergence = resimulate_walk(episode, recorded.observation_set, robot)
    if video is not None:
        write_video(video, walk_frames(episode, robot, every=every), robot.control_rate_hz / every)
    return divergence
