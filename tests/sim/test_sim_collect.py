"""Collecting demonstrations: the same data however it was made, no episode lost, none twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from episodes.dataset import Dataset
from sim import MetaWorldEnv
from sim.collect import ExpertFailed, collect
from sim.demonstration import STEPS_AFTER_SUCCESS, demonstrate
from sim.experts import Expert
from sim.replay import resimulate_episode
from sim.seeds import episode_seed

COLLECT = """
from sim.collect import collect
if __name__ == "__main__":
    collect(["push", "reach"], 12, {path!r}, seed=3, workers=2)
"""


def _content(path):
    dataset = Dataset(path)
    return [
        (e.task_name, e.seed, e.success, e.task, dataset.episode(e.index).actions.tobytes())
        + tuple(value.tobytes() for value in dataset.episode(e.index).observations.values())
        for e in dataset.episodes
    ]


class HalfExpert(Expert):
    """Gives up on every episode whose goal is on the left."""

    def action(self, state):
        action = super().action(state)
        return action if state[36] > 0 else np.zeros_like(action)


def test_the_data_does_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 3):
        collect(["reach", "push"], 5, tmp_path / str(workers), seed=1, workers=workers, progress=False)
    assert _content(tmp_path / "1") == _content(tmp_path / "3")
    episodes = Dataset(tmp_path / "1").episodes
    assert [(e.task_name, e.seed) for e in episodes] == [
        (task, episode_seed("train", 1, i)) for task in ("reach", "push") for i in range(5)
    ]


def test_a_killed_run_continues_where_it_was(tmp_path):
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    command = [sys.executable, "-c", COLLECT.format(path=str(interrupted))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(interrupted.glob("data/*/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survived = len(Dataset(interrupted).episodes)
    assert 0 < survived < 24
    for path in (interrupted, whole):
        collect(["push", "reach"], 12, path, seed=3, workers=1, progress=False)
    assert _content(interrupted) == _content(whole)


def test_collecting_again_adds_nothing(tmp_path):
    collect(["reach"], 3, tmp_path / "data", progress=False)
    before = _content(tmp_path / "data")
    result = collect(["reach"], 3, tmp_path / "data", progress=False)
    assert (result[0].episodes, result[0].attempts) == (3, 0)
    assert _content(tmp_path / "data") == before


def test_only_successes_are_kept_and_failures_are_replaced_by_the_next_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr("sim.collect.Expert", HalfExpert)
    (result,) = collect(["reach"], 4, tmp_path / "data", progress=False)
    episodes = Dataset(tmp_path / "data").episodes
    assert result.failures > 0
    assert result.attempts == 4 + result.failures
    assert [e.success for e in episodes] == [True] * 4
    seeds = [e.seed for e in episodes]
    assert seeds == sorted(seeds)
    assert seeds[-1] == episode_seed("train", 0, result.attempts - 1)


def test_failures_are_kept_when_told_and_resuming_counts_successes(tmp_path, monkeypatch):
    monkeypatch.setattr("sim.collect.Expert", HalfExpert)
    (first,) = collect(["reach"], 2, tmp_path / "data", keep_failures=True, progress=False)
    (second,) = collect(["reach"], 4, tmp_path / "data", keep_failures=True, progress=False)
    episodes = Dataset(tmp_path / "data").episodes
    assert sum(e.success for e in episodes) == 4
    assert sum(not e.success for e in episodes) == first.failures + second.failures > 0
    assert [e.seed for e in episodes] == [episode_seed("train", 0, i) for i in range(len(episodes))]


def test_an_expert_that_cannot_do_it_ends_the_run_with_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sim.collect.MIN_ATTEMPTS", 3)
    monkeypatch.setattr("sim.collect.ATTEMPTS_PER_EPISODE", 1)
    monkeypatch.setattr(Expert, "action", lambda self, state: np.zeros(4, dtype=np.float32))
    with pytest.raises(ExpertFailed, match="reach: the expert solved 0 of 3 episodes, 2 were asked for"):
        collect(["reach"], 2, tmp_path / "data", progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["reach", "reach"]}, "none twice"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["raech"]}, "reach"),
        ({"episodes_per_task": 0}, "at least 1"),
        ({"noise": 1.5}, "noise 1.5"),
        ({"noise": float("nan")}, "noise nan"),
        ({"workers": 0}, "1 worker"),
    ],
)
def test_impossible_requests_are_refused(tmp_path, arguments, message):
    request = {"tasks": ["reach"], "episodes_per_task": 1, "path": tmp_path / "data", "progress": False} | arguments
    with pytest.raises(ValueError, match=message):
        collect(**request)


def test_noise_is_executed_but_the_label_is_what_the_expert_wanted(world):
    env: MetaWorldEnv = world("push")
    expert = Expert("push")
    episode = demonstrate(env, expert, 4, noise=0.2)
    assert episode.success
    assert episode.executed is not None
    np.testing.assert_array_equal(episode.executed[:, 3], episode.actions[:, 3], "the gripper is not disturbed")
    disturbance = (episode.executed - episode.actions)[:, :3]
    assert 0.05 < disturbance.std() < 0.16 + 0.02
    env.begin(4)
    for label, executed in zip(episode.actions, episode.executed, strict=True):
        np.testing.assert_array_equal(expert.act(env), label)
        env.advance(executed)


def test_noisy_episodes_replay_exactly_from_the_dataset(tmp_path):
    collect(["push"], 2, tmp_path / "data", noise=0.1, progress=False)
    dataset = Dataset(tmp_path / "data")
    for index in range(2):
        divergence = resimulate_episode(dataset.episode(index), "state", tolerance=0.0)
        assert not divergence.diverged
        assert divergence.success


def test_a_demonstration_goes_on_for_a_while_after_success(world):
    env, expert = world("reach"), Expert("reach")
    episode = demonstrate(env, expert, 6)
    assert episode.executed is None
    env.begin(6)
    solved = []
    for action in episode.actions:
        env.advance(action)
        solved.append(env.success)
    assert solved.index(True) == len(episode) - STEPS_AFTER_SUCCESS - 1


def test_pictures_are_collected_too(tmp_path):
    collect(["reach"], 1, tmp_path / "data", "image", image_size=(32, 32), progress=False)
    dataset = Dataset(tmp_path / "data")
    episode = dataset.episode(0)
    assert episode.observations["observation.images.corner2"].shape == (len(episode), 32, 32, 3)
    assert episode.observations["observation.state"].shape == (len(episode), 4)
    assert dataset.robot.camera("corner2").height == 32
