"""What a user of the environments sees: contract units, both observation sets, the right episode ends."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sim
from contracts import load_robot
from sim import EPISODE_STEPS, TASKS, MetaWorldEnv
from sim.experts import Expert

OPEN = -1.0


def test_there_are_fifty_tasks_each_with_an_instruction_of_its_own():
    assert len(TASKS) == 50
    assert len(set(TASKS.values())) == 50


@pytest.mark.parametrize("task", ["drawer-open", "push", "assembly"])
def test_registered_environments_pass_gymnasiums_checker(task):
    env = gymnasium.make(f"visuomotor/{task}-v3")
    assert env.get_wrapper_attr("instruction") == TASKS[task]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unbounded observations are what a state is
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_every_task_is_registered_and_registering_again_changes_nothing():
    before = dict(gymnasium.registry)
    sim.register()
    assert dict(gymnasium.registry) == before
    assert {f"visuomotor/{task}-v3" for task in TASKS} <= set(before)


def test_gymnasium_alone_finds_the_environments():
    script = "import gymnasium; print(gymnasium.make('sim:visuomotor/reach-v3').reset(seed=5)[1]['seed'])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "5", result.stderr


def test_gymnasium_make_with_pictures():
    env = gymnasium.make(
        "visuomotor/drawer-open-v3",
        observation_set="image",
        cameras=("corner",),
        image_size=(48, 64),
        render_mode="rgb_array",
    )
    observation, _ = env.reset(seed=1)
    assert observation["observation.images.corner"].shape == (48, 64, 3)
    assert env.observation_space.contains(observation)
    assert np.asarray(env.render()).shape == (480, 480, 3)
    env.close()


def test_an_unknown_task_is_refused_with_near_names():
    with pytest.raises(ValueError, match="drawer-open"):
        MetaWorldEnv("drawer-opne")
    with pytest.raises(ValueError, match="no task 'push-v3'; did you mean push"):
        MetaWorldEnv("push-v3")


def test_state_set_is_the_39_vector_with_the_goal_in_it(world):
    env = world("push")
    observation, _ = env.reset(seed=3)
    state = observation["observation.state"]
    assert state.shape == (39,)
    assert state.dtype == np.float32
    names = {f.key: f.names for f in env.features}["observation.state"]
    goal = state[[names.index(f"goal_{axis}") for axis in "xyz"]]
    np.testing.assert_allclose(goal, env.world.data.site("goal").xpos, atol=1e-6)
    puck = state[[names.index(f"object1_{axis}") for axis in "xyz"]]
    np.testing.assert_allclose(puck, env.world.data.body("obj").xpos, atol=1e-6)
    np.testing.assert_array_equal(state[:18], state[18:36], "the frame before the first is the first")


def test_goal_stays_in_the_state_while_the_episode_runs(world):
    env = world("push")
    first, _ = env.reset(seed=3)
    goal = first["observation.state"][36:]
    assert np.abs(goal).max() > 0.1
    later, *_ = env.step(np.zeros(4))
    np.testing.assert_array_equal(later["observation.state"][36:], goal)


def test_image_set_shows_pictures_and_the_end_effector_and_nothing_else(world):
    env = world("drawer-open", "image")
    observation, _ = env.reset(seed=3)
    assert set(observation) == {"observation.state", "observation.images.corner2"}
    np.testing.assert_array_equal(observation["observation.state"], env.state[:4].astype(np.float32))
    picture = observation["observation.images.corner2"]
    assert picture.shape == (96, 96, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


@pytest.mark.parametrize("task", ["push", "drawer-open", "pick-place"])
def test_image_sets_numbers_do_not_depend_on_the_object_or_the_goal(world, task):
    env = world(task, "image")
    states = []
    hidden = []
    for seed in range(4):
        env.begin(seed)
        states.append(env.observe(env.features[:1])["observation.state"])
        hidden.append(env.state[4:])
    assert env.features[0].names == ("ee_x", "ee_y", "ee_z", "gripper_opening")
    assert len({h.tobytes() for h in hidden}) == 4
    np.testing.assert_allclose(states, np.broadcast_to(states[0], (4, 4)), atol=2e-3)


def test_an_action_is_a_velocity_in_metres_a_second(world):
    env = world("drawer-open")
    env.begin(5)
    for axis, velocity in ((0, 0.3), (2, 0.2)):
        action = np.array([0.0, 0.0, 0.0, OPEN])
        action[axis] = velocity
        for _ in range(15):
            env.advance(action)  # the arm has to follow its target first
        before = env.state[axis]
        for _ in range(16):
            env.advance(action)
        assert (env.state[axis] - before) / (16 / 80) == pytest.approx(velocity, rel=0.1)


def test_actions_outside_the_limits_are_clipped_and_the_applied_one_is_told(world):
    env = world("drawer-open")
    env.begin(5)
    np.testing.assert_array_equal(env.applied_action, np.array([0, 0, 0, OPEN], dtype=np.float32))
    env.advance(np.array([5.0, -5.0, 0.1, 3.0]))
    np.testing.assert_array_equal(env.applied_action, np.array([0.8, -0.8, 0.1, 1.0], dtype=np.float32))
    np.testing.assert_array_equal(env.hold_action(), np.array([0, 0, 0, 1.0], dtype=np.float32))


@pytest.mark.parametrize("bad", [[0.0, np.nan, 0.0, 0.0], [np.inf, 0, 0, 0], [0.0, 0.0, 0.0], [[0.0] * 4], 1.0])
def test_a_bad_action_is_refused_and_moves_nothing(world, bad):
    env = world("drawer-open")
    env.begin(5)
    before = env.qpos
    with pytest.raises(ValueError, match="4 finite numbers"):
        env.advance(np.array(bad))
    np.testing.assert_array_equal(env.qpos, before)


def _run_expert(env, seed: int, at: int, offset) -> int:
    """Steps until the expert has solved the episode in which the object is moved before step `at`; 500: it has not."""
    expert = Expert(env.task)
    env.begin(seed)
    for step in range(EPISODE_STEPS):
        if step == at:
            env.move_object(offset)
        env.advance(expert.act(env))
        if env.success:
            return step + 1
    return EPISODE_STEPS


def _inwards(env) -> np.ndarray:
    """5 cm along x, towards the middle of the task's initial places."""
    return np.array([-0.05 if env.world.object_place[0] > 0 else 0.05, 0.0])


MOVABLE = ["push", "pick-place", "drawer-open"]


@pytest.mark.parametrize("task", MOVABLE)
def test_a_moved_object_is_seen_at_its_new_place_and_stands_still(world, task):
    env = world(task)
    env.begin(5)
    for _ in range(15):
        env.advance(np.array([0.1, 0.0, -0.1, OPEN]))
    before, place, arm = env.state, env.world.object_place, env.qpos[:9]
    env.move_object((0.02, -0.03))
    moved = env.state
    goal = [0.02, -0.03, 0.0] if task == "drawer-open" else [0.0] * 3
    np.testing.assert_allclose(env.world.object_place - place, [0.02, -0.03], atol=1e-12)
    np.testing.assert_allclose(moved[4:7] - before[4:7], [0.02, -0.03, 0.0], atol=1e-9)
    np.testing.assert_allclose(moved[36:] - before[36:], goal, atol=1e-9)
    np.testing.assert_allclose(env.world.data.site("goal").xpos, moved[36:], atol=1e-6)
    np.testing.assert_array_equal(np.delete(moved, [4, 5, 36, 37]), np.delete(before, [4, 5, 36, 37]))
    np.testing.assert_array_equal(env.qpos[:9], arm)
    np.testing.assert_array_equal(env.qvel[9:], 0)
    env.advance(env.hold_action())
    np.testing.assert_allclose(env.state[4:7], moved[4:7], atol=1e-3)
    np.testing.assert_array_equal(env.state[18:36], moved[:18], "the frame before is the one that was seen")
    np.testing.assert_array_equal(env.state[36:], moved[36:])


@pytest.mark.parametrize("task", MOVABLE)
def test_the_expert_solves_an_episode_in_which_the_object_was_moved(world, task):
    env = world(task)
    for seed in (5, 7, 9):
        env.begin(seed)
        assert _run_expert(env, seed, 15, _inwards(env)) < 150


@pytest.mark.parametrize("task", MOVABLE)
def test_success_is_judged_by_where_the_object_is_now(world, task):
    """After a solved episode: a puck that is moved away from its goal, and a drawer that takes its goal along."""
    env = world(task)
    _run_expert(env, 5, EPISODE_STEPS, (0, 0))
    assert env.success
    env.move_object((0.2, 0.0))
    env.advance(env.hold_action())
    assert env.success is (task == "drawer-open")


@pytest.mark.parametrize("task", MOVABLE)
def test_a_move_leaves_no_trace_in_the_next_episode(world, fingerprint, task):
    env = world(task)
    expected = fingerprint(env, 11, 60)
    for at in (0, 15):
        env.begin(7)
        assert _run_expert(env, 7, at, _inwards(env)) < EPISODE_STEPS
        assert fingerprint(env, 11, 60) == expected


def test_what_cannot_be_moved_is_refused_and_stays(world):
    with pytest.raises(ValueError, match="'assembly' cannot be moved; that of push, pick-place, drawer-open can"):
        world("assembly").move_object((0.05, 0.0))
    env = world("push")
    env.begin(5)
    before = env.qpos
    for bad in ((0.05,), (0.05, 0.0, 0.01), (np.nan, 0.0), 0.05, (0.0, 0.0, np.nan)):
        with pytest.raises(ValueError, match="an offset is"):
            env.move_object(bad)
    np.testing.assert_array_equal(env.qpos, before)


def test_an_episode_ends_at_success(world):
    env, expert = world("drawer-open"), Expert("drawer-open")
    env.reset(seed=7)
    steps, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        _, _, terminated, truncated, info = env.step(expert.act(env))
        assert info["success"] is terminated
        steps += 1
    assert terminated
    assert 20 < steps < 200


def test_an_episode_without_success_is_truncated_after_500_steps_and_the_body_runs_on(world):
    env = world("drawer-open")
    env.reset(seed=7)
    ends = [env.step(np.array([0.0, 0.0, 0.0, OPEN]))[2:4] for _ in range(EPISODE_STEPS + 5)]
    assert not any(terminated for terminated, _ in ends)
    assert [truncated for _, truncated in ends].index(True) == EPISODE_STEPS - 1


def test_measurements_come_in_the_order_of_the_contract(world):
    env = world("drawer-open")
    env.begin(5)
    env.advance(np.array([0.5, 0.2, -0.3, 1.0]))
    measured = env.measurements()
    assert list(measured) == [sensor.name for sensor in env.robot.sensors]
    data = env.world.data
    for joint, position in zip(env.robot.joint_names, measured["joint_states"], strict=True):
        assert position == data.joint(joint).qpos[0]
    np.testing.assert_array_equal(measured["end_effector"], data.body("hand").xpos)
    np.testing.assert_array_equal(measured["environment"], env.state)
    assert 0 < measured["gripper"][0] < 1


def test_fixed_cameras_give_upright_pictures(world):
    env = world("drawer-open", "image")
    env.begin(1)
    for name in ("corner", "corner2", "corner3", "corner4"):
        up_in_picture = env.world.data.camera(name).xmat.reshape(3, 3)[:, 1]
        assert up_in_picture[2] > 0, f"{name} hangs upside down"


def test_any_camera_at_any_size(world):
    env = world("drawer-open", "image")
    env.begin(1)
    assert env.render_camera("gripperPOV", 33, 57).shape == (33, 57, 3)
    assert env.render_camera("corner2").shape == (96, 96, 3)
    with pytest.raises(ValueError, match="topview"):
        env.render_camera("nose", 10, 10)
    with pytest.raises(ValueError, match="4096"):
        env.render_camera("topview", 10, 5000)


def test_an_environment_that_nobody_closed_ends_silently():
    script = "from sim import MetaWorldEnv\nenv = MetaWorldEnv('reach', 'image')\nenv.reset(seed=1)\nprint('done')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "done", "")


def test_chosen_cameras_replace_those_of_the_contract_everywhere():
    env = MetaWorldEnv("reach", "image", cameras=("topview", "corner2"), image_size=(32, 40))
    observation, _ = env.reset(seed=1)
    assert [key for key in observation if "images" in key] == [
        "observation.images.topview",
        "observation.images.corner2",
    ]
    assert observation["observation.images.topview"].shape == (32, 40, 3)
    assert env.robot.camera("topview").width == 40
    env.close()


def test_a_contract_that_this_world_does_not_simulate_is_refused():
    good = load_robot("metaworld_sawyer").to_dict()
    slow = type(load_robot("metaworld_sawyer")).from_dict(good | {"control_rate_hz": 50})
    with pytest.raises(ValueError, match="80 Hz, the contract says 50 Hz"):
        MetaWorldEnv("reach", robot=slow)


def test_an_expert_reads_the_full_state_whatever_the_policy_is_shown(world):
    state_env, image_env, expert = world("push"), world("push", "image"), Expert("push")
    state_env.begin(11)
    image_env.begin(11)
    np.testing.assert_array_equal(expert.act(state_env), expert.act(image_env))
    action = expert.act(state_env)
    assert action.dtype == np.float32
    assert np.all(np.abs(action[:3]) <= np.float32(0.8))
