"""Evaluation: the same episodes every time, the robot's own controller, honest figures."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from functools import partial

import av
import msgspec
import numpy as np
import pytest
from rich.console import Console

from contracts import ContractMismatch, PolicyContract, PolicyObservation, load_robot
from episodes.dataset import Dataset, DatasetError
from episodes.files import write_json
from episodes.report import noise_carried_out, wilson_interval
from execution.chunk import ActionChunk
from execution.observation import Observation
from sim import MetaWorldEnv
from sim.cameras import fitting_robot
from sim.evaluate import evaluate_tasks
from sim.replay import resimulate_episode
from sim.results import as_json, show
from sim.rollout import Rollout
from sim.seeds import episode_seed, is_evaluation_seed
from tests.sim.expert_runtime import ExpertRuntime

OPEN = -1.0


def _contract(observation_set="state", horizon=8, execute=4, history=1, **changes) -> PolicyContract:
    robot = load_robot("metaworld_sawyer")
    features = robot.observation_features(observation_set)
    fields = {
        "policy": "scripted",
        "robot": robot.name,
        "observation_set": observation_set,
        "task": "anything",
        "observations": tuple(PolicyObservation(feature=f, history=history) for f in features),
        "action": robot.action_feature,
        "action_period_s": robot.control_period_s,
        "horizon": horizon,
        "execute": execute,
    }
    return PolicyContract(**(fields | changes))


@dataclass
class Counting:
    """Commands vx = 0.001 * the step that an action is meant for, so that what arrives shows which one it was."""

    residual_noise = None

    contract: PolicyContract
    seen: list[Observation] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    instructions: list[str | None] = field(default_factory=list)

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Counting:
        self.seeds.append(seed)
        self.instructions.append(instruction)
        return self

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        period_ns = round(self.contract.action_period_s * 1e9)
        first = round(observation.stamp_ns / period_ns)
        actions = np.zeros((self.contract.horizon, 4))
        actions[:, 0] = 0.001 * (first + np.arange(self.contract.horizon))
        return ActionChunk(actions, observation.stamp_ns, period_ns, self.contract.action.names)


class Numbering(Counting):
    """Commands vx = 0.001 * the number of its chunk; with a prefix, its first actions are those of the one before."""

    residual_noise = None

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Numbering:
        self.prefix = prefix
        self.last: ActionChunk | None = None
        return self

    def act(self, observation: Observation) -> ActionChunk:
        chunk = super().act(observation)
        actions = np.zeros((chunk.horizon, 4))
        actions[:, 0] = 0.001 * (len(self.seen) - 1)
        if self.last is not None and self.prefix:
            begin = self.last.index(observation.stamp_ns)
            actions[: self.prefix] = self.last.actions[begin : begin + self.prefix]
        self.last = ActionChunk(actions, chunk.start_ns, chunk.period_ns, chunk.names)
        return self.last


def _applied(env: MetaWorldEnv, runtime: Counting, steps: int, **how) -> np.ndarray:
    """vx of the applied actions, in units of 0.001 m/s."""
    rollout = Rollout(env, runtime, seed=1, record=True, **how)
    for step in rollout.run():
        if step == steps:
            break
    return np.round(rollout.episode().actions[:steps, 0] * 1e3, 3)


def test_each_action_is_applied_in_the_period_it_is_meant_for(world):
    runtime = Counting(_contract(horizon=8, execute=4))
    np.testing.assert_array_equal(_applied(world("push"), runtime, 40), np.arange(40))


def test_the_policy_is_asked_again_when_execute_actions_are_over(world):
    runtime = Counting(_contract(horizon=8, execute=5))
    _applied(world("push"), runtime, 40)
    assert [round(o.stamp_ns / 12_500_000) for o in runtime.seen] == list(range(0, 41, 5))[: len(runtime.seen)]
    assert len(runtime.seen) in (8, 9)


def test_with_latency_the_first_actions_of_a_chunk_are_lost_and_nothing_is_late(world):
    runtime = Counting(_contract(horizon=8, execute=4))
    applied = _applied(world("push"), runtime, 40, latency_steps=3)
    np.testing.assert_array_equal(applied[:3], 0)
    np.testing.assert_array_equal(applied[3:], np.arange(3, 40))


def test_a_chunk_that_runs_out_makes_the_robot_hold(world):
    runtime = Counting(_contract(horizon=4, execute=4))
    applied = _applied(world("push"), runtime, 20, latency_steps=2)
    expected = [step if step % 4 >= 2 else 0 for step in range(20)]
    np.testing.assert_array_equal(applied, expected)


MEAN_OF_0_AND_1 = math.exp(-0.01) / (1 + math.exp(-0.01))  # ACT's weights: the older one has 1


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        ({"stitching": "latest", "prefix": 2}, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        ({"stitching": "ensemble"}, [0] * 4 + [MEAN_OF_0_AND_1] * 4 + [1 + MEAN_OF_0_AND_1] * 4),
        ({"stitching": "prefix", "prefix": 2}, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]),
    ],
)
def test_the_stitching_decides_which_chunks_are_carried_out(world, how, expected):
    runtime = Numbering(_contract(horizon=8, execute=4))
    np.testing.assert_allclose(_applied(world("push"), runtime, 12, **how), expected, atol=1e-3)


def test_histories_are_a_period_apart_and_begin_with_the_first_observation(world):
    env = world("push")
    runtime = Counting(_contract(horizon=8, execute=3, history=3))
    rollout = Rollout(env, runtime, seed=1, record=True)
    for step in rollout.run():
        if step == 12:
            break
    states = rollout.episode().observations["observation.state"]
    for index, observation in enumerate(runtime.seen[:4]):
        rows = [max(0, 3 * index - back) for back in (2, 1, 0)]
        np.testing.assert_array_equal(observation.values["observation.state"], states[rows])


@pytest.mark.parametrize("history", [1, 2])
def test_pictures_are_rendered_only_for_inference_and_are_the_same_ones(world, monkeypatch, history):
    env = world("drawer-open", "image")
    rendered = []
    render = env.render_camera

    def counting(*arguments):
        rendered.append(arguments)
        return render(*arguments)

    monkeypatch.setattr(env, "render_camera", counting)
    seen = []
    for record in (True, False):
        rendered.clear()
        runtime = Counting(_contract("image", horizon=8, execute=5, history=history))
        rollout = Rollout(env, runtime, seed=2, record=record)
        for step in rollout.run():
            if step == 14:
                break
        seen.append([o.values["observation.images.corner2"] for o in runtime.seen])
    assert len(rendered) == 3 * history - (history - 1)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_the_expert_solves_what_it_can_through_the_controller():
    (result,) = evaluate_tasks(partial(ExpertRuntime, "drawer-open"), ["drawer-open"], 5)
    assert (result.successes, result.episodes, result.success_rate) == (5, 5, 1.0)
    assert result.failed_seeds == []
    assert all(is_evaluation_seed(seed) for seed in result.seeds)
    assert 50 < result.steps_mean < 150
    assert 0 < result.inference_ms["p50"] <= result.inference_ms["p99"]
    assert result.stopped == {}


def test_a_policy_that_does_nothing_fails_every_episode():
    class Idle(Counting):
        residual_noise = None

        def act(self, observation):
            chunk = super().act(observation)
            return ActionChunk(np.zeros((8, 4)), chunk.start_ns, chunk.period_ns, chunk.names)

    (result,) = evaluate_tasks(lambda: Idle(_contract()), ["push"], 2)
    assert (result.successes, result.steps_mean) == (0, 500)
    assert result.failed_seeds == result.seeds
    assert result.ci95[0] == 0.0
    assert result.ci95[1] > 0.5


def test_a_controller_that_gives_up_ends_the_episode_and_is_reported():
    class Mute(Counting):
        residual_noise = None

        def act(self, observation):
            chunk = super().act(observation)
            return ActionChunk(chunk.actions, chunk.start_ns, chunk.period_ns * 2, chunk.names)

    class MuteAfterAWhile(Mute):
        residual_noise = None

        def act(self, observation):
            return Counting.act(self, observation) if len(self.seen) < 3 else Mute.act(self, observation)

    (result,) = evaluate_tasks(lambda: MuteAfterAWhile(_contract()), ["push"], 1)
    assert result.successes == 0
    assert result.steps_mean < 100
    assert sum(result.stopped.values()) == 1


def test_episodes_do_not_depend_on_the_number_of_workers(tmp_path):
    results = []
    for workers in (1, 2):
        record = tmp_path / str(workers)
        results += evaluate_tasks(partial(ExpertRuntime, "push"), ["push"], 5, 7, workers, record=record)
    one, two = results
    assert one.seeds == two.seeds == [episode_seed("eval", 7, i) for i in range(5)]
    assert (one.successes, one.steps_mean) == (two.successes, two.steps_mean)
    first, second = Dataset(tmp_path / "1"), Dataset(tmp_path / "2")
    for index in range(5):
        np.testing.assert_array_equal(first.episode(index).actions, second.episode(index).actions)
        np.testing.assert_array_equal(
            first.episode(index).observations["observation.state"],
            second.episode(index).observations["observation.state"],
        )
    assert not resimulate_episode(first.episode(0), "state", tolerance=0.0).diverged


def test_a_recording_that_was_stopped_is_completed_but_not_mixed_with_anothers(tmp_path):
    record = tmp_path / "d"
    for episodes in (1, 2):
        (result,) = evaluate_tasks(partial(ExpertRuntime, "reach"), ["reach"], episodes, record=record)
        assert result.episodes == episodes
    assert [episode.seed for episode in Dataset(record).episodes] == [episode_seed("eval", 0, i) for i in range(2)]
    with pytest.raises(DatasetError, match="already has an episode of 'reach' with seed 1; one of another seed"):
        evaluate_tasks(lambda: Counting(_contract()), ["reach"], 1, record=record)


@pytest.mark.parametrize(("delay_steps", "held"), [(2, False), (21, True)])
def test_a_robot_that_mostly_holds_is_told(delay_steps, held):
    """Of a success rate of 0 it must be known whether the policy failed, or was never obeyed."""
    (result,) = evaluate_tasks(lambda: Counting(_contract(horizon=40)), ["reach"], 2, delay_steps=delay_steps)
    said = io.StringIO()
    show([result], Console(file=said, width=200))
    assert (sum(result.held.values()) > 2 * 400) == held
    assert ("control periods the robot was held" in said.getvalue()) == held


def test_every_session_starts_from_the_seed_of_its_episode():
    runtime = Counting(_contract())
    (result,) = evaluate_tasks(lambda: runtime, ["reach"], 3)
    assert runtime.seeds[-3:] == result.seeds


def test_a_policy_is_told_the_instruction_of_each_task():
    runtime = Counting(_contract())
    results = evaluate_tasks(lambda: runtime, ["reach", "push"], 2)
    assert runtime.seeds[-4:] == [*results[0].seeds, *results[1].seeds]
    assert runtime.instructions[-4:] == ["move the gripper to the goal"] * 2 + ["push the puck to the goal"] * 2


def test_a_task_that_the_policy_does_not_know_is_refused_before_the_first_episode(two_task_runtime, tmp_path):
    results = evaluate_tasks(lambda: two_task_runtime, ["push", "reach"], 1)
    assert [r.task for r in results] == ["push", "reach"]
    with pytest.raises(ValueError, match=r"open the drawer(?s:.*)- push the puck to the goal\n  - move the gripper"):
        evaluate_tasks(lambda: two_task_runtime, ["push", "drawer-open"], 1, record=tmp_path / "recorded")
    assert not (tmp_path / "recorded").exists()


def test_the_result_says_how_chunks_were_joined():
    for stitching, prefix in (("latest", 0), ("ensemble", 0), ("prefix", 3)):
        (result,) = evaluate_tasks(lambda: Numbering(_contract()), ["reach"], 1, stitching=stitching, prefix=3)
        found = as_json([result])
        assert (found["stitching"], found["prefix"]) == (stitching, prefix)
    assert as_json(evaluate_tasks(partial(ExpertRuntime, "reach"), ["reach"], 1))["stitching"] == "latest"


def test_videos_are_written(tmp_path):
    (result,) = evaluate_tasks(partial(ExpertRuntime, "reach"), ["reach"], 4, video=tmp_path / "videos")
    videos = sorted((tmp_path / "videos").iterdir())
    assert [v.name for v in videos] == sorted(f"reach-{seed}.mp4" for seed in result.seeds[:3])
    assert all(v.stat().st_size > 1000 for v in videos)
    with av.open(videos[0]) as video:
        assert video.streams.video[0].average_rate == 40, "as fast as it happened, every second step of 80 Hz"


def test_a_policy_for_another_robot_is_refused_with_every_difference():
    contract = _contract(robot="somebody_else", action_period_s=0.02)
    with pytest.raises(ContractMismatch, match="(?s)somebody_else.*20.000 ms"):
        evaluate_tasks(lambda: Counting(contract), ["push"], 1)


def test_a_policy_that_sees_what_the_arm_does_not_have_is_refused_as_one_for_another_robot():
    contract = msgspec.structs.replace(_contract(robot="go2"), observation_set="proprioception")
    with pytest.raises(ContractMismatch, match="(?s)trained for 'go2'.*'proprioception'"):
        evaluate_tasks(lambda: Counting(contract), ["push"], 1)


def test_the_simulated_arm_gets_the_cameras_that_the_policy_looks_at():
    feature = _contract("image").observations[1].feature
    other = type(feature)(
        key="observation.images.corner", shape=(64, 48, 3), dtype="uint8", names=("height", "width", "channel")
    )
    contract = _contract("image")
    contract = _contract("image", observations=(contract.observations[0], PolicyObservation(feature=other)))
    robot = fitting_robot(contract)
    assert (robot.camera("corner").height, robot.camera("corner").width) == (64, 48)
    (result,) = evaluate_tasks(lambda: Counting(contract), ["reach"], 1)
    assert result.episodes == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "1 episode"),
        ({"latency_steps": -1}, "latency_steps -1"),
        ({"delay_steps": -1}, "delay_steps -1"),
        ({"delay_steps": 101}, "delay_steps 101 is not within"),
        ({"tasks": ["raech"]}, "reach"),
        ({"tasks": []}, "at least one task"),
        ({"stitching": "glue"}, "latest, ensemble and prefix, not 'glue'"),
        ({"stitching": "prefix", "prefix": 0}, "at least 1 action"),
        ({"stitching": "prefix"}, "cannot continue the chunk before"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    request = {"make_runtime": partial(ExpertRuntime, "reach"), "tasks": ["reach"], "episodes": 1} | arguments
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(**request)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [  # by hand from Wilson's formula, z = 1.959964
        (8, 10, 0.490162, 0.943318),
        (45, 50, 0.786398, 0.956524),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_wilson_interval(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-5)


def test_json_of_one_task_is_flat_and_of_several_has_rows(tmp_path):
    runtime = partial(ExpertRuntime, "reach")
    results = evaluate_tasks(runtime, ["reach", "push"], 2)
    write_json(tmp_path / "deep" / "one.json", as_json(results[:1]))
    write_json(tmp_path / "several.json", as_json(results))
    one = json.loads((tmp_path / "deep" / "one.json").read_text())
    assert one["task"] == "reach"
    assert {"task", "episodes", "successes", "success_rate", "ci95", "seconds_per_episode", "inference_ms"} <= set(one)
    several = json.loads((tmp_path / "several.json").read_text())
    assert [row["task"] for row in several["rows"]] == ["reach", "push"]
    assert several["mean_success_rate"] == np.mean([row["success_rate"] for row in several["rows"]])
    with pytest.raises(ValueError, match="no result"):
        as_json([])


def test_noise_that_was_carried_out_is_that_of_the_places_in_the_chunk_that_were():
    assert noise_carried_out({"0": 3, "2": 1}, (0.0, 0.1, 0.4)) == {"mean": 0.1, "max": 0.4}
    assert noise_carried_out({"0": 3, "2": 1}, None) is None
    assert noise_carried_out({}, (0.0, 0.1)) is None


def test_what_the_safety_filter_changed_is_counted_over_all_episodes():
    class Fast(Counting):
        residual_noise = None

        def act(self, observation):
            chunk = super().act(observation)
            return ActionChunk(np.tile([0.0, 0, 3.0, 0], (8, 1)), chunk.start_ns, chunk.period_ns, chunk.names)

    (result,) = evaluate_tasks(lambda: Fast(_contract()), ["push"], 2)
    assert result.limited["range:ee_velocity_z"] + result.limited["position:ee_velocity_z"] >= 2 * 500
