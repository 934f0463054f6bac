"""The walking task: what is seen and rewarded, number by number; when episodes end; the same again from a snapshot."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from sim.legged.batch import BatchedQuadruped
from sim.legged.commands import CommandRanges, Commands, TerrainLevels
from sim.legged.episode import TaskConfig
from sim.legged.figures import GO2, JOINTS
from sim.legged.privileged import PRIVILEGED_SIZE
from sim.legged.randomization import HIMLOCO, NOMINAL
from sim.legged.rewards import RewardWeights, reward_terms
from sim.legged.snapshot import generator_from_array, generator_to_array
from sim.legged.task import LocomotionTask, make_task, training_groups
from sim.legged.terrain import flat, terrain_grid

COUNT = 6
QUIET = TaskConfig(noise=0.0, random_ages=False)
STILL = replace(QUIET, start_speed=0.0, start_joints=0.0)


def make(config=QUIET, terrain=None, count=COUNT, randomization=HIMLOCO, threads=1, seed=0) -> LocomotionTask:
    robots = BatchedQuadruped(GO2, terrain or flat(), count, seed, randomization, pool=4, threads=threads)
    return LocomotionTask(robots, seed, config)


def drive(task: LocomotionTask, steps: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    trace = []
    for _ in range(steps):
        action = rng.normal(0, 1.0, (task.count, 12)).astype(np.float32)
        step = task.step(action, rng.normal(0, 40, (task.count, 3)))
        trace += [step.reward, step.cost, step.fell, step.timed_out, task.observation.copy(), task.privileged.copy()]
    return trace


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_mirror_shows_what_the_mirrored_robot_would_see_and_do():
    """Two robots, one with all of the other's left and right exchanged: they stay each other's mirror images."""
    symmetric = replace(GO2, trunk=replace(GO2.trunk, com=(0.02, 0.0, 0.0), inertia=(*GO2.trunk.inertia[:3], 0, 0, 0)))
    robots = BatchedQuadruped(symmetric, flat(), 2, 0, replace(NOMINAL, delay=(2, 2)), pool=1, threads=1)
    standing = replace(STILL, commands=CommandRanges(standing=1.0))  # until the test commands
    with LocomotionTask(robots, 0, standing) as task:
        order, sign = task.mirror["action"]
        rng = np.random.default_rng(3)
        task.robots.reset(np.arange(2))
        task.command[:] = (0.4, 0.3, -0.5), (0.4, -0.3, 0.5)
        seen: dict[str, set[int]] = {"observation": set(), "privileged": set()}
        for _ in range(8):
            action, force = rng.normal(0, 0.7, 12).astype(np.float32), rng.normal(0, 60, 3)
            task.step(np.stack((action, action[order] * sign)), np.stack((force, force * (1, -1, 1))))
            for name in seen:
                one, other = getattr(task, name)
                order_of_it, sign_of_it = task.mirror[name]
                np.testing.assert_allclose(one[order_of_it] * sign_of_it, other, atol=2e-3)
                seen[name] |= set(np.flatnonzero(np.abs(one - other) > 0.01))
        assert len(seen["observation"]) > 200  # of 270: it is not just that they look alike


def test_what_the_actor_sees():
    with make() as task:
        rng = np.random.default_rng(0)
        first = task.observation.reshape(COUNT, 6, 45)[:, 0].copy()
        assert (task.observation.reshape(COUNT, 6, 45) == first[:, None]).all()  # a new episode remembers its start
        action = rng.normal(0, 0.3, (COUNT, 12)).astype(np.float32)
        task.step(action)
        state, seen = task.robots.state, task.observation.reshape(COUNT, 6, 45)
        for i in range(COUNT):
            expected = np.concatenate(
                (
                    task.command[i] * (2, 2, 0.25),
                    0.25 * state.angular_velocity[i],
                    state.projected_gravity[i],
                    state.joint_position[i] - GO2.default_pose,
                    0.05 * state.joint_velocity[i],
                    action[i],
                )
            )
            np.testing.assert_allclose(seen[i, 0], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(seen[:, 1], first)
        assert task.contract.joint_names == JOINTS
        assert task.privileged.shape == (COUNT, PRIVILEGED_SIZE)


def test_noise_is_bounded_and_spares_command_and_action():
    with make(replace(STILL, noise=1.0)) as task:
        task.step(np.zeros((COUNT, 12), dtype=np.float32))
        error = task.observation[:, :45] - task.privileged[:, :45]
        assert not error[:, :3].any()
        assert not error[:, 33:].any()
        assert (np.abs(error[:, 9:21]) <= 0.01 + 1e-6).all()
        assert error[:, 3:33].all()


def test_penalties_grow_to_their_full_weight():
    with make(TaskConfig(shaping_start=0.2, shaping_half_life_s=0.02 / 3)) as task:  # eight times a period
        assert task.shaping == pytest.approx(0.2)
        task.step(np.zeros((COUNT, 12), dtype=np.float32))
        assert task.shaping == pytest.approx(0.2 ** (1 / 8))
        saved = task.snapshot()
        task.step(np.zeros((COUNT, 12), dtype=np.float32))
        assert task.shaping == pytest.approx(0.2 ** (1 / 64))
        task.restore(saved)
        assert task.shaping == pytest.approx(0.2 ** (1 / 8))


def test_rewards_are_what_slow_formulas_give():
    with make() as task:
        rng = np.random.default_rng(2)
        actions = [rng.normal(0, 0.5, (COUNT, 12)).astype(np.float32) for _ in range(4)]
        for action in actions[:3]:
            task.step(action)
        before, command = task.robots.state, task.command.copy()
        step = task.step(actions[3])
        state, weights = task.robots.state, RewardWeights()
        for i in range(COUNT):
            v, w, g = state.linear_velocity[i], state.angular_velocity[i], state.projected_gravity[i]
            a, b, c = actions[3][i], actions[2][i], actions[1][i]
            clearance = 0.0
            for leg in range(4):
                moved = state.foot_position[i, leg, :2] - before.foot_position[i, leg, :2]
                clearance += (state.foot_height[i, leg] - 0.08) ** 2 * math.hypot(*moved) / 0.02
            velocity = math.exp(-((v[0] - command[i, 0]) ** 2 + (v[1] - command[i, 1]) ** 2) / 0.25)
            yaw = math.exp(-((w[2] - command[i, 2]) ** 2) / 0.25)
            terms = {
                "velocity": velocity,
                "yaw_rate": yaw,
                "vertical_velocity": v[2] ** 2,
                "roll_pitch_rate": w[0] ** 2 + w[1] ** 2,
                "orientation": g[0] ** 2 + g[1] ** 2,
                "height": (state.height[i] - 0.3) ** 2,
                "joint_acceleration": sum(
                    ((x - y) / 0.02) ** 2
                    for x, y in zip(state.joint_velocity[i], before.joint_velocity[i], strict=True)
                ),
                "power": sum(abs(x * y) for x, y in zip(state.torque[i], state.joint_velocity[i], strict=True)),
                "foot_clearance": clearance,
                "action_rate": sum((x - y) ** 2 for x, y in zip(a, b, strict=True)),
                "smoothness": sum((x - 2 * y + z) ** 2 for x, y, z in zip(a, b, c, strict=True)),
            }
            shares = {
                name: 1.0 if name in ("velocity", "yaw_rate") else 0.2 ** (0.5 ** (4 * 0.02 / 120)) for name in terms
            }
            reward = sum(weight * shares[name] * terms[name] for name, weight in asdict(weights).items())
            assert step.reward[i] == pytest.approx(0.02 * reward, rel=1e-4)
            assert step.cost[i] == pytest.approx(0.02 * (1.5 - velocity - 0.5 * yaw), rel=1e-4)
            error = math.hypot(v[0] - command[i, 0], v[1] - command[i, 1])
            assert step.velocity_error[i] == pytest.approx(error, rel=1e-4)
        assert set(terms) == set(asdict(weights))
        assert (step.cost >= 0).all()
        assert (step.cost <= task.cost_bound).all()


def test_doing_as_told_is_rewarded_most():
    """Signs: no penalty is a reward, and the task's terms are largest where the command is met."""
    with make(STILL, randomization=NOMINAL) as task:
        step = task.step(np.zeros((COUNT, 12), dtype=np.float32))
        state = task.robots.state
        command = np.column_stack((state.linear_velocity[:, :2], state.angular_velocity[:, 2]))
        actions = np.zeros((COUNT, 3, 12))
        terms = reward_terms(state, command, actions, state.joint_velocity, state.foot_position, 0.3, 0.02)
        np.testing.assert_allclose(terms["velocity"], 1.0)
        np.testing.assert_allclose(terms["yaw_rate"], 1.0)
        weights = asdict(RewardWeights())
        assert all((weights[name] > 0) == (name in ("velocity", "yaw_rate")) for name in terms)
        assert all((term >= 0).all() for term in terms.values())
        assert step.figures["reward/velocity"] > 0 > step.figures["reward/height"]


def test_standing_robots_stand_until_the_time_is_out():
    config = replace(STILL, episode_s=1.0)
    with make(config) as task:
        for i in range(1, 101):
            step = task.step(np.zeros((COUNT, 12), dtype=np.float32))
            assert not step.fell.any()
            assert step.timed_out.all() == (i % 50 == 0)
        assert np.isfinite(task.observation).all()


def test_first_episodes_have_random_ages():
    with make(replace(QUIET, random_ages=True, episode_s=1.0), count=40) as task:
        ended = [task.step(np.zeros((40, 12), dtype=np.float32)).timed_out.sum() for _ in range(50)]
        assert max(ended) < 10
        assert sum(ended) == 40


def test_a_pushed_robot_falls_and_a_time_out_is_no_fall():
    """What the critic would have seen is kept for time-outs only; the next episode starts standing."""
    force = np.zeros((COUNT, 3))
    force[2] = (0.0, 400.0, 0.0)
    with make(STILL, randomization=NOMINAL) as task:
        fallen = np.zeros(COUNT, dtype=bool)
        for _ in range(40):
            step = task.step(np.zeros((COUNT, 12), dtype=np.float32), force)
            fallen |= step.fell
            assert not step.timed_out.any()
            if step.fell[2]:
                assert task.robots.state.projected_gravity[2, 2] == pytest.approx(-1.0)
                assert task.privileged[2, 48] == 0  # and the force on it is forgotten
        assert fallen.tolist() == [i == 2 for i in range(COUNT)]


def test_forces_are_in_the_frame_of_the_heading():
    force = np.tile((60.0, 0.0, 0.0), (COUNT, 1))
    with make(STILL, randomization=NOMINAL) as task:
        task.step(np.zeros((COUNT, 12), dtype=np.float32), force)
        velocity = task.robots.state.linear_velocity
        assert (velocity[:, 0] > 0.05).all()
        assert (np.abs(velocity[:, 1]) < 0.01).all()
        np.testing.assert_allclose(task.privileged[:, 48:51], [(0.6, 0, 0)] * COUNT)


def test_a_robot_whose_physics_went_astray_teaches_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log where it runs
    with make(STILL) as task:
        seen = task.privileged.copy()
        task.robots._states[1, -1, 5] = np.nan
        task.robots._state = None
        step = task.step(np.zeros((COUNT, 12), dtype=np.float32))
        assert step.timed_out.tolist() == [i == 1 for i in range(COUNT)]
        assert step.reward[1] == step.cost[1] == 0
        np.testing.assert_array_equal(step.final_privileged[1], seen[1])
        for array in (step.reward, step.cost, step.velocity_error, task.observation, task.privileged):
            assert np.isfinite(array).all()
        assert all(math.isfinite(value) for value in step.figures.values())


@pytest.mark.parametrize("terrain", [flat(), terrain_grid(("rough", "stairs_up"), 2)], ids=["flat", "rough"])
def test_a_snapshot_goes_on_bit_for_bit(terrain):
    config = TaskConfig(episode_s=0.4, command_s=0.2)
    with make(config, terrain) as task, make(config, terrain, seed=0) as other:
        drive(task, 15)
        drive(other, 3, seed=5)
        other.restore({name: value.copy() for name, value in task.snapshot().items()})
        assert same(drive(task, 30), drive(other, 30))


def test_a_seed_is_a_run_on_any_number_of_threads():
    config = TaskConfig(episode_s=0.4)
    traces = []
    for seed, threads in ((0, 1), (0, 2), (1, 1)):
        with make(config, seed=seed, threads=threads) as task:
            traces.append(drive(task, 25))
    assert same(traces[0], traces[1])
    assert not same(traces[0], traces[2])


def test_a_snapshot_of_another_run_is_refused():
    with make() as task, make(count=2) as other, pytest.raises(ValueError, match="saved _history"):
        other.restore(task.snapshot())


def test_a_generator_goes_on_from_its_array():
    rng, other = np.random.default_rng(3), np.random.default_rng(4)
    rng.integers(5, size=3)  # leaves half a word
    generator_from_array(other, generator_to_array(rng))
    assert rng.integers(1000, size=20).tolist() == other.integers(1000, size=20).tolist()


def test_commands_widen_when_they_are_met():
    commands = Commands(1000, CommandRanges(start=0.5))
    rng = np.random.default_rng(0)
    commands.draw(rng, np.arange(1000))
    assert np.abs(commands.velocity).max() <= 0.5
    assert (commands.velocity == 0).all(axis=1).mean() == pytest.approx(0.1, abs=0.03)
    commands.finished(np.full(1000, 0.5))
    assert commands.share == 0.5
    for _ in range(100):
        commands.finished(np.full(100, 0.95))
    assert commands.share == 1.0
    commands.draw(rng, np.arange(1000))
    assert 0.95 < np.abs(commands.velocity).max() <= 1.0


def test_levels_rise_and_fall():
    terrain = terrain_grid(("flat", "rough"), 4)
    rng = np.random.default_rng(0)
    levels = TerrainLevels(6, terrain, rng)
    assert levels.kind.tolist() == [0, 1, 0, 1, 0, 1]
    levels.level[:] = (1, 1, 1, 0, 3, 1)
    distance, walked = np.array([5.0, 1, 3, 0, 5, 5]), np.array([9.0, 2, 7, 0, 9, 6])
    levels.finished(rng, np.arange(6), distance, walked, np.full(6, 10.0))
    assert levels.level[[0, 1, 2, 3, 5]].tolist() == [2, 0, 1, 0, 1]  # the last was pushed out of its tile
    assert 0 <= levels.level[4] <= 3  # mastered: drawn anew
    np.testing.assert_allclose(levels.centres(np.array([0])), terrain.centre(0, 2)[None])
    corners = np.array([[15.5, 0.0], [14.5, 6.5], [0.0, -7.5]])
    assert levels.outside(corners, 1.0).tolist() == [True, False, True]


def test_no_such_terrain():
    with pytest.raises(ValueError, match="flat, rough, all"):
        make_task("go2", "moon", 2)


def test_robots_that_learn_together_are_groups_on_one_ground():
    """Each with random numbers of its own, and the same ones whatever the number of threads."""
    seen = []
    for threads in (1, 3):
        with training_groups("go2", "rough", 5, seed=3, threads=threads) as groups:
            assert [group.count for group in groups] == [2, 3]
            one, other = (group.robots.terrain.heights for group in groups)
            np.testing.assert_array_equal(one, other)
            assert not np.array_equal(groups[0].observation, groups[1].observation[:2])
            seen.append([group.observation.copy() for group in groups])
    for alone, together in zip(*seen, strict=True):
        np.testing.assert_array_equal(alone, together)
    with training_groups("go2", "flat", 1) as groups:
        assert [group.count for group in groups] == [1]
    with pytest.raises(ValueError, match="0 environments"), training_groups("go2", "flat", 0):
        pass
