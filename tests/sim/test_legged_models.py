"""Models of quadrupeds: what was published is what MuJoCo simulates, and it stands, falls and is pushed accordingly."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from contracts import load_robot
from sim.legged.figures import JOINTS, LEGS, ROBOTS, SEGMENTS, Link, QuadrupedFigures, load_figures
from sim.legged.mjcf import TIMESTEP, build_model
from sim.legged.terrain import flat

every_robot = pytest.mark.parametrize("figures", ROBOTS.values(), ids=lambda f: f.name)


def standing(figures: QuadrupedFigures, seconds: float) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Put down at the default pose, after some time of holding it."""
    model = build_model(figures, flat())
    data = mujoco.MjData(model)
    data.qpos[2] = figures.unloaded_height
    data.qpos[7:] = data.ctrl[:] = figures.default_pose
    mujoco.mj_step(model, data, round(seconds / TIMESTEP))
    return model, data


@every_robot
def test_masses_and_centres_are_the_published_ones(figures):
    model = build_model(figures, flat())
    assert model.body_mass.sum() == pytest.approx(figures.total_mass, rel=1e-9)
    assert model.body("trunk").mass == pytest.approx(figures.trunk.mass)
    np.testing.assert_allclose(model.body("trunk").ipos, figures.trunk.com, atol=1e-9)
    for leg in LEGS:
        assert model.body(f"{leg}_hip").mass == pytest.approx(figures.hip.mass)
        assert model.body(f"{leg}_thigh").mass == pytest.approx(figures.thigh.mass)
        assert model.body(f"{leg}_calf").mass == pytest.approx(figures.calf.mass + figures.foot_mass)
    published = {"go2": 15.0, "aliengo": 20.6, "a1": 12.45}  # to the precision in which they are quoted
    assert model.body_mass.sum() == pytest.approx(published[figures.name], abs=0.05)


@every_robot
def test_links_are_as_long_as_published_on_all_four_legs(figures):
    model = build_model(figures, flat())
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    for leg in LEGS:
        front, left = leg[0] == "F", leg[1] == "L"
        hip, thigh, calf = (data.body(f"{leg}_{segment}").xpos for segment in SEGMENTS)
        foot = data.site(f"{leg}_foot").xpos
        signs = np.array([1 if front else -1, 1 if left else -1, 1])
        np.testing.assert_allclose((hip - data.body("trunk").xpos) * signs, figures.hip_position, atol=1e-9)
        np.testing.assert_allclose((thigh - hip) * signs, (0, figures.thigh_offset, 0), atol=1e-9)
        np.testing.assert_allclose(calf - thigh, (0, 0, -figures.thigh_length), atol=1e-9)
        np.testing.assert_allclose(foot - calf, (0, 0, -figures.calf_length), atol=1e-9)
        assert model.geom(f"{leg}_foot").size[0] == figures.foot_radius
    np.testing.assert_allclose(2 * model.geom("trunk").size, figures.trunk_box)
    np.testing.assert_allclose(model.site("imu").pos, figures.imu_position)


@every_robot
def test_joints_come_in_the_documented_order_with_the_published_limits(figures):
    model = build_model(figures, flat())
    assert [model.joint(i).name for i in range(1, model.njnt)] == list(JOINTS)
    for i, name in enumerate(JOINTS):
        assert tuple(model.joint(name).range) == pytest.approx(figures.limits(name))
        assert model.joint(name).qposadr[0] == 7 + i
        actuator = model.actuator(i)
        assert actuator.trnid[0] == model.joint(name).id
        assert tuple(actuator.ctrlrange) == pytest.approx(figures.limits(name))
        assert tuple(actuator.forcerange) == (-figures.torque_limit(name), figures.torque_limit(name))
        assert actuator.gainprm[0] == figures.stiffness
        assert tuple(actuator.biasprm[:3]) == (0, -figures.stiffness, -figures.damping)
    assert not model.dof_damping.any()  # a policy must not learn to lean on what no motor has
    assert load_figures("go2").limits("FL_thigh_joint") != load_figures("go2").limits("RL_thigh_joint")


@every_robot
def test_a_calf_and_its_foot_are_one_body(figures):
    """Against MuJoCo's own sum of two bodies welded together."""
    bodies = ""
    foot = Link(figures.foot_mass, (0, 0, 0), (0.4 * figures.foot_mass * figures.foot_radius**2,) * 3 + (0, 0, 0))
    for link, place in ((figures.calf, (0, 0, 0)), (foot, (0, 0, -figures.calf_length))):
        text = " ".join(map(str, link.inertia)), " ".join(map(str, link.com)), " ".join(map(str, place))
        bodies += f'<body pos="{text[2]}"><inertial mass="{link.mass}" pos="{text[1]}" fullinertia="{text[0]}"/></body>'
    welded = f'<worldbody><body name="calf"><joint/>{bodies}</body></worldbody>'
    model = mujoco.MjModel.from_xml_string(f'<mujoco><compiler fusestatic="true"/>{welded}</mujoco>')
    ours = build_model(figures, flat()).body("FL_calf")
    np.testing.assert_allclose(ours.ipos, model.body("calf").ipos, atol=1e-9)
    np.testing.assert_allclose(ours.inertia, model.body("calf").inertia, rtol=1e-6)


@every_robot
def test_it_stands(figures):
    model, data = standing(figures, 1.0)
    heights, torques = [], []
    for _ in range(round(3.0 / TIMESTEP)):
        mujoco.mj_step(model, data)
        heights.append(data.qpos[2])
        torques.append(np.abs(data.actuator_force))
    assert np.abs(np.array(heights) - figures.standing_height).max() < 0.02
    assert figures.standing_height < figures.unloaded_height
    limits = np.array([figures.torque_limit(name) for name in JOINTS])
    assert (np.max(torques, axis=0) < 0.5 * limits).all()
    weight = sum(data.sensor(f"{leg}_foot_force").data[0] for leg in LEGS)
    assert weight == pytest.approx(figures.total_mass * 9.81, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(data.sensor("accelerometer").data), 9.81, rtol=0.01)
    assert data.sensor("accelerometer").data[2] > 9.7  # gravity is measured upward, as by a real IMU


@every_robot
def test_left_and_right_bear_the_same_once_the_trunk_does(figures):
    """The published trunks are up to 4 mm heavier to the left; all else is a mirror image."""
    x, _, z = figures.trunk.com
    centred = replace(figures.trunk, com=(x, 0.0, z))
    _, data = standing(replace(figures, trunk=centred), 2.0)
    left = data.actuator_force.reshape(2, 2, 3)[:, 0]
    right = data.actuator_force.reshape(2, 2, 3)[:, 1] * (-1, 1, 1)  # abduction turns the other way
    np.testing.assert_allclose(left, right, atol=0.05)


@every_robot
def test_a_push_moves_the_whole_robot_by_its_mass(figures):
    model = build_model(figures, flat())
    data = mujoco.MjData(model)
    data.qpos[2] = 2.0  # nothing touches anything
    data.qpos[7:] = data.ctrl[:] = figures.default_pose
    force = np.array([100.0, -60.0, 30.0])
    data.xfrc_applied[model.body("trunk").id, :3] = force
    mujoco.mj_step(model, data)
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    expected = (force / figures.total_mass - (0, 0, 9.81)) * TIMESTEP
    np.testing.assert_allclose(data.subtree_linvel[model.body("trunk").id], expected, rtol=1e-3, atol=1e-6)


def test_only_feet_touch_the_ground_unless_bodies_are_asked_for():
    figures = load_figures("a1")
    for asked in (False, True):
        model = build_model(figures, flat(), body_contacts=asked)
        touching = {model.geom(i).name for i in range(model.ngeom) if model.geom_contype[i]}
        feet, bodies = {f"{leg}_foot" for leg in LEGS}, {"trunk"} | {f"{leg}_thigh" for leg in LEGS}
        assert touching == (feet | bodies if asked else feet)


@every_robot
def test_the_contract_promises_this_robot(figures):
    robot = load_robot(figures.name)
    assert robot.body == "quadruped"
    assert robot.joint_names == JOINTS
    assert robot.home == pytest.approx(figures.default_pose)
    assert robot.action_feature.names == JOINTS
    assert robot.control_rate_hz == 50
    for channel in robot.command.channels:
        assert (channel.min, channel.max) == pytest.approx(figures.limits(channel.name))
        assert channel.measured_by == channel.name
    gains = robot.command.position_control
    assert gains is not None
    assert (gains.kp, gains.kd) == (figures.stiffness, figures.damping)
    assert [s.name for s in robot.sensors] == ["joint_states", "imu", "velocity_command"]


def test_an_unknown_robot_names_those_there_are():
    with pytest.raises(ValueError, match="go2, aliengo, a1"):
        load_figures("laikago")
