"""Many robots at once: the same bits on any number of threads, really different, and none disturbs another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.legged.batch import BatchedQuadruped
from sim.legged.figures import GO2, JOINTS
from sim.legged.randomization import HIMLOCO, NOMINAL, sample_models
from sim.legged.state import SENSORS
from sim.legged.terrain import Terrain, flat, terrain_grid

COUNT = 12
POSE = np.tile(np.array(GO2.default_pose), (COUNT, 1))


def make(seed: int = 0, threads: int = 1, terrain=None, randomization=HIMLOCO, count: int = COUNT):
    return BatchedQuadruped(GO2, terrain or flat(), count, seed, randomization, pool=5, threads=threads)


def same(a, b, rows=slice(None)) -> bool:
    return all(np.array_equal(value[rows], vars(b)[name][rows]) for name, value in vars(a).items())


def drive(robots: BatchedQuadruped, steps: int, resets: bool = True):
    """Random commands and pushes, and some robots put down again on the way."""
    rng, places = np.random.default_rng(9), np.random.default_rng(8)
    states = []
    for i in range(steps):
        state = robots.step(POSE + rng.normal(0, 0.2, POSE.shape), rng.normal(0, 40, (COUNT, 3)))
        states.append(state)
        if resets and i % 10 == 5:
            robots.reset(np.array([1, 7]), places.uniform(-2, 2, (2, 2)), places.uniform(-3, 3, 2))
    return states


@pytest.mark.parametrize("terrain", [flat(), terrain_grid(("rough", "stairs_up"), 2)], ids=["flat", "rough"])
def test_the_number_of_threads_changes_no_bit(terrain):
    runs = []
    for threads in (1, 2, 3):
        with make(threads=threads, terrain=terrain) as robots:
            runs.append(drive(robots, 40))
    for other in runs[1:]:
        assert all(same(a, b) for a, b in zip(runs[0], other, strict=True))


def test_a_seed_is_a_run():
    last = []
    for seed in (3, 3, 4):
        with make(seed) as robots:
            last.append(drive(robots, 10)[-1])
    assert same(last[0], last[1])
    assert not same(last[0], last[2])


def test_a_reset_disturbs_no_other_environment():
    with make() as undisturbed, make() as robots:
        expected = drive(undisturbed, 20, resets=False)
        others = np.array([i for i in range(COUNT) if i not in (1, 7)])
        for a, b in zip(expected, drive(robots, 20), strict=True):
            assert same(a, b, others)
        robots.reset(np.array([1]), np.array([[3.0, -2.0]]), np.array([1.5]))
        state = robots.state
        np.testing.assert_allclose(state.position[1, :2], (3, -2))
        np.testing.assert_allclose(state.joint_position[1], GO2.default_pose)
        assert not state.joint_velocity[1].any()
        assert state.height[1] == pytest.approx(GO2.unloaded_height, abs=0.01)
        np.testing.assert_allclose(state.projected_gravity[1], (0, 0, -1), atol=1e-9)
        assert (state.foot_height[1] >= 0).all()
        assert same(expected[-1], state, others)


def test_a_robot_starts_above_the_highest_ground_it_stands_on():
    terrain = terrain_grid(("stairs_up", "obstacles"), 2)
    with make(terrain=terrain, count=200, randomization=NOMINAL) as robots:
        rng = np.random.default_rng(0)
        robots.reset(np.arange(200), rng.uniform(-6, 6, (200, 2)), rng.uniform(-3, 3, 200))
        assert (robots.state.foot_height >= 0).all()


def test_what_was_drawn_is_in_the_models():
    pool = sample_models(GO2, flat(), HIMLOCO, 20, seed=1)
    masses = np.array([model.body_mass.sum() for model in pool.models])
    np.testing.assert_allclose(masses, GO2.total_mass + pool.payload)
    assert np.ptp(masses) > 1.0
    for i, model in enumerate(pool.models):
        np.testing.assert_allclose(model.body("trunk").ipos, GO2.trunk.com + pool.com_shift[i])
        assert model.body("trunk").subtreemass[0] == pytest.approx(masses[i])  # derived figures follow
        assert model.geom("FL_foot").friction[0] == pytest.approx(pool.friction[i])
        assert model.actuator("FL_hip_joint").gainprm[0] == pytest.approx(GO2.stiffness * pool.stiffness[i])
        assert model.actuator("FL_hip_joint").biasprm[2] == pytest.approx(-GO2.damping * pool.damping[i])
    assert pool.parameters.shape == (20, 7)
    assert 0.2 <= pool.friction.min() < 0.5 < 1.0 < pool.friction.max() <= 1.25


def test_each_environment_feels_its_own_model():
    with make(randomization=replace(NOMINAL, payload=(0.0, 5.0))) as robots:
        for _ in range(100):
            robots.step(POSE)
        weight = (GO2.total_mass + robots.pool.payload[robots.model_index]) * 9.81
        forces = robots._sensors[:, -1, SENSORS["foot_force"]]
        np.testing.assert_allclose(forces.sum(axis=1), weight, rtol=0.02)
        assert len(set(robots.model_index.tolist())) > 1


def test_a_delayed_command_is_obeyed_later():
    """Torques are of the last physics step, which a delay of the whole command leaves untouched."""
    moved = POSE + 0.2
    for delay, obeyed in ((0, True), (3, True), (4, False)):
        with make(randomization=replace(NOMINAL, delay=(delay, delay))) as robots:
            before = robots.step(POSE).torque
            during = robots.step(moved).torque
            assert (np.abs(during - before).max() > 3.0) == obeyed
            after = robots.step(moved).torque
            assert np.abs(after - before).max() > 3.0


def test_a_target_beyond_a_joints_limit_is_the_limit():
    """As a robot's safety filter has it: the springs must not pull harder in training than they ever will there."""
    calf = JOINTS.index("FL_calf_joint")
    torques = []
    for target in (GO2.limits("FL_calf_joint")[0], -5.0):
        with make(randomization=NOMINAL) as robots:
            targets = POSE.copy()
            targets[:, calf] = target
            torques.append([robots.step(targets).torque for _ in range(5)])
    np.testing.assert_array_equal(torques[0], torques[1])
    assert np.abs(np.array(torques)[..., calf]).max() > 10


def test_a_push_accelerates_the_robots_it_is_given_to():
    """On ice, the legs follow the trunk sooner or later: between F/m of the trunk alone and of all."""
    force = np.zeros((COUNT, 3))
    force[3] = (150.0, 0.0, 0.0)
    with make(terrain=Terrain(friction=0.001), randomization=NOMINAL) as robots:
        state = robots.step(POSE, force)
        pushed, left = state.linear_velocity[3, 0], np.delete(state.linear_velocity[:, 0], 3)
        assert 150 / GO2.total_mass < pushed / robots.period_s < 150 / GO2.trunk.mass
        np.testing.assert_allclose(left, left[0])
        again = robots.step(POSE)  # no force: nothing of the last one is left
        drift = again.linear_velocity[3, 0] - pushed
        assert drift < 0.2 * pushed


def test_no_force_is_a_force_of_zero():
    with make() as without, make() as zero:
        for _ in range(5):
            a, b = without.step(POSE), zero.step(POSE, np.zeros((COUNT, 3)))
        assert same(a, b)


def test_velocities_are_in_the_trunks_frame():
    yaw = np.full(COUNT, np.pi / 2)
    velocity = np.tile((0.0, 0.7, 0.0, 0.1, 0.2, 0.3), (COUNT, 1))
    with make(randomization=NOMINAL) as robots:
        robots.reset(np.arange(COUNT), yaw=yaw, velocity=velocity)
        np.testing.assert_allclose(robots.state.linear_velocity[0], (0.7, 0, 0), atol=1e-9)
        np.testing.assert_allclose(robots.state.angular_velocity[0], (0.2, -0.1, 0.3), atol=1e-9)


def test_a_robot_that_diverged_is_told_and_can_be_reset(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log where it runs
    with make() as robots:
        robots._states[2, -1, 5] = np.nan
        state = robots.step(POSE)
        assert state.diverged.tolist() == [i == 2 for i in range(COUNT)]
        robots.reset(np.array([2]))
        for _ in range(5):
            state = robots.step(POSE)
        assert not state.diverged.any()
        assert state.height[2] > 0.25


def test_everything_comes_contiguous_and_in_the_documented_shape():
    with make() as robots:
        state = robots.step(POSE)
        shapes = {"position": (3,), "orientation": (4,), "torque": (12,), "foot_position": (4, 3), "height": ()}
        for name, value in vars(state).items():
            assert value.flags.c_contiguous, name
            assert value.shape[0] == COUNT
            assert value.shape[1:] == shapes.get(name, value.shape[1:])
        before = state.joint_position.copy()
        robots.step(POSE + 0.3)
        np.testing.assert_array_equal(state.joint_position, before)  # a state is kept, not overwritten


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda robots: robots.step(POSE[:, :11]), "target"),
        (lambda robots: robots.step(np.full_like(POSE, np.nan)), "finite"),
        (lambda robots: robots.step(POSE, np.zeros(3)), "force"),
        (lambda robots: make(count=0), "at least 1 of each"),
        (lambda robots: make(threads=0), "at least 1 of each"),
        (lambda robots: make(randomization=replace(NOMINAL, delay=(0, 9))), "delay"),
        (lambda robots: make(randomization=replace(NOMINAL, payload=(-20, 0))), "leaves no trunk"),
        (lambda robots: sample_models(GO2, flat(), NOMINAL, 0, 0), "at least 1 model"),
    ],
)
def test_nonsense_is_refused(call, expected):
    assert len(JOINTS) == 12
    with make() as robots, pytest.raises(ValueError, match=expected):
        call(robots)
