"""The video of an evaluated episode: what was imagined stands beside what then happened, and is not mixed up."""

from __future__ import annotations

from itertools import islice

import av
import numpy as np
import pytest

from contracts import PolicyContract, PolicyObservation
from episodes.tiles import CAPTION, EMPTY, GAP
from execution.chunk import ActionChunk
from execution.observation import Observation
from sim import MetaWorldEnv
from sim.environments import VIDEO_SIZE
from sim.episode_video import TILE, episode_frames
from sim.evaluate import evaluate_tasks
from sim.rollout import Rollout

AHEAD = (4, 8, 12)
LEFT = 2 * TILE + CAPTION + 2 * GAP  # where the tiles begin: after the scene, which is as wide as two tiles are high
SEED = 3


class Dreamer:
    """Waves its arm; imagines in grey: the step that it was asked at, plus how many periods ahead."""

    residual_noise = None

    def __init__(self, env: MetaWorldEnv, imagines: tuple[int, ...] = AHEAD) -> None:
        robot = env.robot
        self.imagines = imagines
        self.contract = PolicyContract(
            policy="dreamer",
            robot=robot.name,
            observation_set="image",
            task="anything",
            observations=tuple(PolicyObservation(feature=f) for f in robot.observation_features("image")),
            action=robot.action_feature,
            action_period_s=robot.control_period_s,
            horizon=12,
            execute=4,
        )
        self.asked_at = 0

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Dreamer:
        return self

    def act(self, observation: Observation) -> ActionChunk:
        period_ns = 12_500_000
        self.asked_at = observation.stamp_ns // period_ns
        actions = np.tile([0.5, 0.3, -0.3, 0.0], (12, 1))
        return ActionChunk(actions, observation.stamp_ns, period_ns, self.contract.action.names)

    @property
    def imagined(self) -> np.ndarray:
        grey = np.array(self.imagines, dtype=np.uint8) + self.asked_at
        return np.broadcast_to(grey[:, None, None, None], (len(grey), 96, 96, 3)).astype(np.uint8)


def tiles(frame: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The pictures of a frame, imagined and happened, 96 pixels high again."""
    rows = []
    for top in (CAPTION, 2 * CAPTION + TILE + GAP):
        columns = [LEFT + number * (TILE + GAP) for number in range(len(AHEAD))]
        rows.append([frame[top : top + TILE : 2, left : left + TILE : 2] for left in columns])
    return rows[0], rows[1]


@pytest.fixture(scope="module")
def env(world) -> MetaWorldEnv:
    return world("push", "image")


@pytest.fixture(scope="module")
def seen(env) -> list[np.ndarray]:
    """What the camera sees before each of the first 20 steps."""
    steps = Rollout(env, Dreamer(env), SEED).run()
    return [env.render_camera("corner2") for _ in islice(steps, 20)]


@pytest.mark.parametrize("late", [{}, {"delay_steps": 3}])
def test_every_picture_stands_where_its_time_says(env, seen, late) -> None:
    if late:  # another course of the episode
        steps = Rollout(env, Dreamer(env), SEED, **late).run()
        seen = [env.render_camera("corner2") for _ in islice(steps, 20)]
    assert not np.array_equal(seen[4], seen[16]), "the arm must move for this test to say anything"
    frames = list(islice(episode_frames(Rollout(env, Dreamer(env), SEED, **late), every=2), 4))
    for number, frame in enumerate(frames):
        step = 2 * number
        asked_at = step - step % 4
        imagined, happened = tiles(frame)
        for periods, dream, truth in zip(AHEAD, imagined, happened, strict=True):
            assert np.all(dream == asked_at + periods)
            np.testing.assert_array_equal(truth, seen[asked_at + periods])


def test_what_never_happened_is_grey(env, seen, monkeypatch) -> None:
    monkeypatch.setattr("sim.rollout.EPISODE_STEPS", 18)
    frames = list(episode_frames(Rollout(env, Dreamer(env), SEED), every=2))
    assert len(frames) == 9
    assert len({frame.shape for frame in frames}) == 1
    imagined, happened = tiles(frames[5])  # step 10: asked at 8
    np.testing.assert_array_equal(happened[0], seen[12])
    np.testing.assert_array_equal(happened[1], seen[16])
    assert np.all(happened[2] == EMPTY), "the episode was over at step 20"
    assert np.all(imagined[2] == 20)


def test_a_policy_that_imagines_nothing_has_the_plain_video(env, monkeypatch) -> None:
    monkeypatch.setattr("sim.rollout.EPISODE_STEPS", 2)
    (frame,) = episode_frames(Rollout(env, Dreamer(env, imagines=()), SEED), every=2)
    env.begin(SEED)
    np.testing.assert_array_equal(frame, env.render_camera("corner2", *VIDEO_SIZE))


def test_evaluation_writes_it(env, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sim.rollout.EPISODE_STEPS", 4)
    evaluate_tasks(lambda: Dreamer(env), ["push"], 1, video=tmp_path)
    (path,) = tmp_path.glob("push-*.mp4")
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 2
    imagined, happened = tiles(frames[1])
    assert abs(float(imagined[1].mean()) - 8) < 3, "H.264 changes it a little"
    assert abs(float(happened[1].mean()) - EMPTY) < 3
