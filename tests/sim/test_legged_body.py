"""The simulated quadruped of a contract, and its episodes simulated again."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from contracts import RobotContract, load_robot
from episodes.data import EpisodeData
from episodes.opening import RecordedEpisode
from sim.legged.body import Quadruped
from sim.legged.terrain import flat, terrain_grid
from sim.replay import replay_recorded

GO2 = load_robot("go2")
SET = "proprioception"


def stand_up(quadruped: Quadruped, ticks: int = 100, more: int = 25) -> None:
    """Lead the joints home from where they are, by name, as the controller does."""
    robot = quadruped.robot
    measured = quadruped.fields()
    start = np.array([measured[channel.name] for channel in robot.command.channels])
    for tick in range(ticks + more):
        quadruped.step(start + min(1.0, tick / ticks) * (np.array(robot.home_command) - start))


def damp(quadruped: Quadruped, ticks: int) -> None:
    """What the body does when commands stop: go to where you are."""
    for _ in range(ticks):
        measured = quadruped.fields()
        quadruped.step([measured[channel.name] for channel in quadruped.robot.command.channels])


@pytest.mark.parametrize(("name", "terrain"), [("go2", "flat"), ("go2", "all"), ("aliengo", "flat"), ("a1", "rough")])
def test_it_lies_stands_up_and_sinks_when_it_is_left_alone(name, terrain):
    with closing(Quadruped(load_robot(name), terrain, seed=4)) as quadruped:
        standing = quadruped.figures.standing_height
        assert quadruped.state.height[0] < 0.3 * standing
        assert np.abs(quadruped.state.joint_velocity).max() < 0.05
        damp(quadruped, 20)
        assert not quadruped.fallen  # it has not stood yet
        stand_up(quadruped)
        assert quadruped.stood
        assert not quadruped.fallen
        assert quadruped.state.height[0] == pytest.approx(standing, rel=0.1)
        assert quadruped.fields()["imu_linear_acceleration_z"] == pytest.approx(9.81, abs=0.5)
        damp(quadruped, 100)
        assert quadruped.fallen
        assert quadruped.state.height[0] < 0.4 * standing
        quadruped.reset(seed=4)
        assert not quadruped.fallen


def test_a_seed_is_a_start_and_every_push_counts():
    found = []
    for seed, newtons in ((4, 50.0), (4, 50.0), (4, 51.0), (5, 50.0)):
        with closing(Quadruped(GO2, "rough", seed)) as quadruped:
            for _ in range(20):
                quadruped.step(GO2.home_command, (newtons, 0.0, 0.0))
            found.append(np.concatenate(list(quadruped.measurements().values())))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert np.abs(found[0] - found[3]).max() > 0.1


def test_joints_and_fields_are_found_by_name():
    data = GO2.to_dict()
    shuffled = np.random.default_rng(0).permutation(12)
    data["command"]["channels"] = [data["command"]["channels"][i] for i in shuffled]
    fields = data["sensors"][0]["fields"]
    data["sensors"][0]["fields"] = fields[12:] + fields[:12]
    data["sensors"][0]["units"] = ["rad/s"] * 12 + ["rad"] * 12
    other = RobotContract.from_dict(data)
    with closing(Quadruped(GO2, "flat", 1)) as one, closing(Quadruped(other, "flat", 1)) as mixed:
        stand_up(one, 30, 0)
        stand_up(mixed, 30, 0)
        assert one.fields() == mixed.fields()
        values = dict(zip(other.sensors[0].fields, mixed.measurements()["joint_states"], strict=True))
        assert values["FL_hip_joint.velocity"] == one.state.joint_velocity[0, 0]


def test_who_leaves_the_world_has_fallen_and_lies_at_the_start_again():
    with closing(Quadruped(GO2, "flat", 1)) as quadruped:
        start = quadruped.state.position.copy()
        quadruped.step(GO2.home_command, (0.0, 0.0, 1e9))
        assert quadruped.fallen
        assert np.isfinite(np.concatenate(list(quadruped.measurements().values()))).all()
        np.testing.assert_allclose(quadruped.state.position, start, atol=0.01)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_number_that_is_not_finite_moves_nothing(wrong):
    with closing(Quadruped(GO2, "flat", 1)) as quadruped:
        before = quadruped.fields()
        with pytest.raises(ValueError, match="target"):
            quadruped.step([wrong, *GO2.home_command[1:]])
        with pytest.raises(ValueError, match="force"):
            quadruped.step(GO2.home_command, (wrong, 0.0, 0.0))
        assert quadruped.fields() == before


def without_imu(data):
    data["task"].update(max_tilt_rad=None)
    data["sensors"][1].update(type="sensor_msgs/msg/JointState")


def with_velocities(data):
    data["command"].update(kind="joint_velocity", fallback="hold")
    for channel in data["command"]["channels"]:
        channel.update(hold="zero", min=-1, max=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(name="rover"), "no figures of a quadruped 'rover'"),
        (lambda data: data.update(control_rate_hz=40), "this simulation takes 50 Hz"),
        (lambda data: data["command"].update(position_control={"kp": 20, "kd": 1}), "kp 40.0, kd 1.0 would be right"),
        (without_imu, "not measure imu_orientation_x"),
        (with_velocities, "not joint_velocity of FL_hip"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused(change, message):
    data = GO2.to_dict()
    data["task"]["stand_up_s"] = 0
    change(data)
    with pytest.raises(ValueError, match=message):
        Quadruped(RobotContract.from_dict(data), "flat", 1)


def test_a_terrain_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no terrain 'moon'; there are flat, rough, all"):
        Quadruped(GO2, "moon", 1)


# -- its episodes again ------------------------------------------------------------------------------------------------


def walk(pushed_at: int, steps: int = 90) -> EpisodeData:
    """What a recording would hold of a robot that stands up, fidgets and is pushed; commands fill the requests."""
    (feature,) = GO2.observation_features(SET)
    rng = np.random.default_rng(0)
    seen, commands, pushes = [], [], np.zeros((steps, 3))
    pushes[pushed_at : pushed_at + 10] = (30.0, -40.0, 0.0)
    with closing(Quadruped(GO2, "flat", 7)) as quadruped:
        for push in pushes:
            measured = quadruped.fields() | {"command_x": 0.5, "command_y": 0.0, "command_yaw": 0.0}
            seen.append([measured[name] for name in feature.names])
            commands.append(np.array(GO2.home_command) + rng.normal(0, 0.1, 12))
            quadruped.step(commands[-1], push)
        success = not quadruped.fallen
    observed = {feature.key: np.array(seen, dtype=np.float32)}
    return EpisodeData(observed, np.array(commands, np.float32), "flat", "flat", 7, success, pushes=pushes)


def test_an_episode_happens_again_to_the_bit_only_with_its_pushes():
    episode = walk(pushed_at=60)
    again = replay_recorded(RecordedEpisode(GO2, SET, episode))
    assert (again.steps, again.diverged, again.max_abs_difference) == (90, False, 0.0)
    assert again.success == episode.success
    episode.pushes = None
    without = replay_recorded(RecordedEpisode(GO2, SET, episode))
    assert without.first_step == 61  # the observation after the first period with the push
    with pytest.raises(ValueError, match="no camera 'corner'"):
        replay_recorded(RecordedEpisode(GO2, SET, episode), camera="corner")


def test_the_ground_is_drawn_where_the_robot_is():
    from sim.legged.pictures import cut_out

    ground = terrain_grid(("rough", "stairs_up"), 3)
    rng = np.random.default_rng(1)
    for place in (np.array([0.0, 0.0]), np.array([11.9, -7.9]), np.array([-12.0, 8.0]), np.array([50.0, 0.0])):
        part = cut_out(ground, place, 5.0)
        assert part.heights is not None
        assert part.heights.shape <= (202, 202)
        near = np.clip(place + rng.uniform(-4.9, 4.9, (50, 2)), (-12, -8), (12, 8))
        if abs(place[0]) <= 12:
            np.testing.assert_allclose(part.height(near), ground.height(near), atol=1e-9)
    assert cut_out(flat(), np.zeros(2), 5.0).heights is None
