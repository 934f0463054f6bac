"""Time in a roll-out: what a policy is shown and when, and which of its actions is carried out, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from contracts import PolicyContract, PolicyObservation, load_robot
from execution.chunk import ActionChunk
from execution.observation import Observation
from sim.evaluate import evaluate_tasks
from sim.results import as_json
from sim.rollout import Rollout

PERIOD_NS = 12_500_000


@dataclass
class Telling:
    """Commands vx = 0.001 * (the step that an action is meant for), vy = 0.01 * (its index in the chunk)."""

    residual_noise = None

    execute: int
    observation_set: str = "state"
    history: int = 1
    horizon: int = 16
    seen: list[Observation] = field(default_factory=list)

    @property
    def contract(self) -> PolicyContract:
        robot = load_robot("metaworld_sawyer")
        features = robot.observation_features(self.observation_set)
        return PolicyContract(
            policy="telling",
            robot=robot.name,
            observation_set=self.observation_set,
            task="anything",
            observations=tuple(PolicyObservation(feature=f, history=self.history) for f in features),
            action=robot.action_feature,
            action_period_s=robot.control_period_s,
            horizon=self.horizon,
            execute=self.execute,
        )

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Telling:
        return self

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        indices = np.arange(self.horizon)
        actions = np.zeros((self.horizon, 4))
        actions[:, 0] = 0.001 * (observation.stamp_ns // PERIOD_NS + indices)
        actions[:, 1] = 0.01 * indices
        return ActionChunk(actions, observation.stamp_ns, PERIOD_NS, self.contract.action.names)


def _run(world, runtime: Telling, steps: int, **how) -> tuple[list[int | None], list[int | None], Counter[int]]:
    """Of each step: the step whose observation the policy was shown in it, and the index of the action carried out.

    None where there was no inference, and where the controller held. Then the ages of the commands.
    """
    rollout = Rollout(world("push", runtime.observation_set), runtime, seed=1, record=True, **how)
    shown: list[int | None] = []
    known = 0
    for step in rollout.run():
        if step:
            shown.append(runtime.seen[-1].stamp_ns // PERIOD_NS if len(runtime.seen) > known else None)
            known = len(runtime.seen)
        if step == steps:
            break
    actions = np.round(rollout.episode().actions[:, :2] / [0.001, 0.01]).astype(int)
    held = [step > 0 and vx == 0 for step, (vx, _) in enumerate(actions)]
    carried_out = [None if h else int(index) for h, (_, index) in zip(held, actions, strict=True)]
    for step, ((meant_for, _), h) in enumerate(zip(actions, held, strict=True)):
        assert h or meant_for == step, "an action was carried out at a time that it was not meant for"
    return shown, carried_out, rollout.action_ages


N = None


@pytest.mark.parametrize(
    ("how", "execute", "shown", "carried_out"),
    [
        ({}, 1, [0, 1, 2, 3, 4, 5, 6, 7], [0] * 8),
        ({}, 3, [0, N, N, 3, N, N, 6, N], [0, 1, 2, 0, 1, 2, 0, 1]),
        # The chunk of the step before is there when the next inference begins.
        ({"latency_steps": 1}, 1, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 1, 1, 1, 1, 1, 1]),
        # One inference at a time: a slower one than `execute` sets the pace.
        ({"latency_steps": 2}, 1, [0, N, 2, N, 4, N, 6, N], [0, N, 2, 3, 2, 3, 2, 3]),
        # A delay is a pipeline: nothing is shown less often for it.
        ({"delay_steps": 3}, 1, [N, N, N, 0, 1, 2, 3, 4], [0, N, N, 3, 3, 3, 3, 3]),
        ({"delay_steps": 3}, 4, [N, N, N, 0, N, N, N, 4, N, N, N, 8], [0, N, N, 3, 4, 5, 6, 3, 4, 5, 6, 3]),
        # They add up, and the inference takes as long as it did.
        ({"latency_steps": 2, "delay_steps": 3}, 1, [N, N, N, 0, N, 2, N, 4], [0, N, N, N, N, 5, 6, 5]),
        ({"latency_steps": 2, "delay_steps": 3}, 4, [N, N, N, 0, N, N, N, 4], [0, N, N, N, N, 5, 6, 7]),
    ],
)
def test_what_is_shown_when_and_which_action_is_carried_out(world, how, execute, shown, carried_out):
    """The first step's action is 0 whether it is carried out or the controller holds: it is told by no other number."""
    found_shown, found, ages = _run(world, Telling(execute), len(shown), **how)
    assert found_shown == shown
    assert found == carried_out
    begun = how.get("latency_steps", 0) + how.get("delay_steps", 0)
    assert ages == Counter(carried_out[begun:]), "a command's age is the index of its action"


def test_a_delay_shows_the_same_histories_with_their_own_stamps_later(world):
    at_once, late = Telling(3, history=2), Telling(3, history=2)
    env = world("push")
    for runtime, delay in ((at_once, 0), (late, 5)):
        for step in Rollout(env, runtime, seed=1, delay_steps=delay).run():
            if step == 5:
                break
    first, second = at_once.seen[:2], late.seen
    assert second == []
    assert [o.stamp_ns for o in first] == [0, 3 * PERIOD_NS]
    rollout = Rollout(env, late, seed=1, record=True, delay_steps=5)
    for step in rollout.run():
        if step == 12:
            break
    states = rollout.episode().observations["observation.state"]
    assert [o.stamp_ns // PERIOD_NS for o in late.seen] == [0, 3, 6]
    for observation, rows in zip(late.seen, ([0, 0], [2, 3], [5, 6]), strict=True):
        np.testing.assert_array_equal(observation.values["observation.state"], states[rows])


@pytest.mark.parametrize(("latency", "delay"), [(0, 3), (6, 0), (6, 3), (0, 7)])
def test_only_pictures_that_will_be_looked_at_are_rendered_however_late_they_come(world, monkeypatch, latency, delay):
    env = world("push", "image")
    rendered = []
    render = env.render_camera

    def noting(*arguments):
        rendered.append(step)
        return render(*arguments)

    monkeypatch.setattr(env, "render_camera", noting)
    seen, step = [], 0
    for record in (True, False):
        rendered.clear()
        runtime = Telling(4, "image", history=2)
        rollout = Rollout(env, runtime, seed=2, record=record, latency_steps=latency, delay_steps=delay)
        for step in rollout.run():
            if step == 20:
                break
        seen.append([o.values["observation.images.corner2"] for o in runtime.seen])
    every = max(4, latency)
    assert rendered == [s for s in range(20) if s % every in (0, every - 1)]
    assert len(seen[0]) == len(range(0, 20 - delay, every))
    np.testing.assert_array_equal(seen[0], seen[1])


def test_the_controllers_own_sensors_are_not_late(world):
    """20 periods are longer than the time-outs of its sensors; only the actions are later."""
    _, carried_out, ages = _run(world, Telling(1, horizon=24), 30, delay_steps=20)
    assert carried_out[20:] == [20] * 10
    assert ages == {20: 10}


def test_the_result_says_how_late_it_was_and_how_old_its_commands_were():
    found = as_json(evaluate_tasks(lambda: Telling(4), ["push"], 2, latency_steps=1, delay_steps=3))
    assert (found["latency_steps"], found["delay_steps"]) == (1, 3)
    assert list(found["action_age_steps"]) == ["4", "5", "6", "7"]
    assert sum(found["action_age_steps"].values()) == 2 * (500 - 4)
