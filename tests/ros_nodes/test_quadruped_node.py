"""The simulated quadruped as its neighbours in the graph see it: through topics and services of a real process."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from geometry_msgs.msg import Twist, Vector3, Wrench, WrenchStamped
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Bool, Float64MultiArray, Header, String

from contracts import RobotContract, load_robot
from episodes.messages import stamp_ns
from ros_nodes import qos
from ros_nodes.body import HEADING, Push
from ros_nodes.graph import BODY, THREADS, NodeProcess
from ros_nodes.quadruped_body import QuadrupedBody

DAMPED_WITHIN_S = 0.1


@pytest.fixture(scope="module")
def robot() -> RobotContract:
    return load_robot("go2")


@pytest.fixture(scope="module")
def body(robot, graph):
    """The client of a running quadruped."""
    parameters = {"robot": robot.name, "task": "flat", "seed": 1, "observation_set": "proprioception"}
    client = graph.start(NodeProcess(BODY, "ros_nodes.mujoco_node", "/" + robot.name, parameters, THREADS))
    client.transition([BODY], "activate", 10.0)
    return client


def begin(body, seed: int = 1) -> None:
    body.set_parameters(BODY, {"task": "flat", "seed": seed}, 5.0)
    body.trigger(BODY, "reset", 60.0)


def statistics(body) -> dict:
    return json.loads(body.trigger(BODY, "statistics", 5.0))


def wrench(x: float = 0.0, y: float = 0.0, frame: str = "world", torque: float = 0.0) -> WrenchStamped:
    force, twist = Vector3(x=x, y=y), Vector3(z=torque)
    return WrenchStamped(header=Header(frame_id=frame), wrench=Wrench(force=force, torque=twist))


def same_stamp(one, other) -> list[tuple]:
    """Pairs of messages of one control period, in order."""
    found = {stamp_ns(m): m for _, m in other}
    return [(m, found[stamp_ns(m)]) for _, m in one if stamp_ns(m) in found]


def test_it_is_limp_but_for_as_long_as_it_is_commanded(robot, body, peer, wait_for):
    begin(body)
    joints = peer.listen("joint_states", JointState)
    applied = peer.listen("applied_command", JointState, qos.STATUS)
    imu, success = peer.listen("imu", Imu), peer.listen("success", Bool, qos.STATUS)
    episodes = peer.listen("episode", String, qos.LATCHED)
    commands = peer.publisher(robot.command.topic, Float64MultiArray)
    wait_for(lambda: len(joints) > 20 and applied and imu and commands.get_subscription_count(), what="the body")
    for sent, measured in same_stamp(applied, joints):
        assert sent.position == measured.position  # the spring is off
    message = joints[-1][1]
    assert (tuple(message.name), len(message.position), len(message.velocity)) == (robot.joint_names, 12, 12)
    assert imu[-1][1].linear_acceleration.z == pytest.approx(9.81, abs=0.5)
    lying = np.array(message.position)
    low, high = ([getattr(c, end) for c in robot.command.channels] for end in ("min", "max"))
    gently = np.clip(lying + 0.2 * (np.array(robot.home_command) - lying), low, high).tolist()
    for _ in range(10):
        commands.publish(Float64MultiArray(data=gently))
        time.sleep(0.02)
    stopped_ns = time.time_ns()
    wait_for(lambda: stamp_ns(applied[-1][1]) > stopped_ns + 300_000_000, what="the end of the commands")
    obeyed = [stamp_ns(sent) for sent, measured in same_stamp(applied, joints) if sent.position != measured.position]
    assert len(obeyed) >= 5
    assert max(obeyed) - stopped_ns < DAMPED_WITHIN_S * 1e9
    told = json.loads(episodes[-1][1].data)
    assert [told[key] for key in ("robot", "task_name", "seed")] == ["go2", "flat", 1]
    assert all(m.data for _, m in success)  # it has not fallen: it never stood


def test_a_push_acts_in_the_frame_it_is_given_in_and_only_while_it_is_told(body, peer, wait_for):
    begin(body, seed=3)
    acting = peer.listen("applied_push", WrenchStamped, qos.STATUS)
    imu = peer.listen("imu", Imu)
    pushes = peer.publisher("push", WrenchStamped)
    wait_for(lambda: acting and imu and pushes.get_subscription_count(), what="the body")
    q = imu[-1][1].orientation
    yaw = math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y**2 + q.z**2))
    assert abs(math.remainder(yaw, math.pi)) > 0.1  # or the frames would be alike
    for frame, angle in (("world", math.pi / 2), ("heading", yaw + math.pi / 2)):
        acting.clear()
        for _ in range(5):
            pushes.publish(wrench(y=20.0, frame=frame))
            time.sleep(0.03)
        told_ns = time.time_ns()
        wait_for(lambda n=told_ns: acting and stamp_ns(acting[-1][1]) > n + 300_000_000, what="the end of the push")
        felt = [(stamp_ns(m), m.wrench.force) for _, m in acting if (m.wrench.force.x, m.wrench.force.y) != (0.0, 0.0)]
        assert len(felt) >= 5
        assert max(stamp for stamp, _ in felt) - told_ns < 0.15e9
        assert all(m.header.frame_id == "world" for _, m in acting)
        np.testing.assert_allclose([felt[0][1].x, felt[0][1].y], 20 * np.array([np.cos(angle), np.sin(angle)]), atol=1)
    assert statistics(body)["episode"]["pushes"] == 2


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (wrench(x=math.nan), "push.non_finite"),
        (wrench(x=300.0, y=300.0), "push.range"),
        (wrench(x=1e300, y=1e300), "push.range"),
        (wrench(x=10.0, torque=1.0), "push.torque"),
        (wrench(x=10.0, torque=math.nan), "push.torque"),
        (wrench(x=10.0, frame="base"), "push.frame"),
    ],
)
def test_a_bad_push_is_counted_and_moves_nothing(body, peer, wait_for, message, reason):
    acting = peer.listen("applied_push", WrenchStamped, qos.STATUS)
    pushes = peer.publisher("push", WrenchStamped)
    wait_for(lambda: acting and pushes.get_subscription_count(), what="the body")
    before = statistics(body)["refused"].get(reason, 0)

    def refused() -> bool:
        pushes.publish(message)
        return statistics(body)["refused"].get(reason, 0) > before

    wait_for(refused, what="a count")
    assert all((m.wrench.force.x, m.wrench.force.y, m.wrench.force.z) == (0.0, 0.0, 0.0) for _, m in acting)


def test_a_request_that_is_not_finite_is_counted(body, peer, wait_for):
    asks = peer.publisher("cmd_vel", Twist)
    wait_for(asks.get_subscription_count, what="the body")

    def refused() -> bool:
        asks.publish(Twist(linear=Vector3(z=math.nan)))
        return statistics(body)["refused"].get("velocity_command.non_finite", 0) > 0

    wait_for(refused, what="a count")


def test_the_heading_turns_a_push(robot):
    body, force = QuadrupedBody(robot, "flat", 1), np.array([1.0, 2.0, 3.0])
    try:
        w, x, y, z = body.quadruped.state.orientation[0]
        ahead = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z)])  # the trunk's x axis, seen from above
        ahead /= np.linalg.norm(ahead)
        assert np.abs(ahead).min() > 0.1  # it points along no axis of the world
        assert not body.push(0).any()
        body.take_push(Push(force), 0)
        np.testing.assert_array_equal(body.push(0), force)
        body.take_push(Push(force, HEADING), 0)
        left = np.array([-ahead[1], ahead[0]])
        np.testing.assert_allclose(body.push(0), [*(1.0 * ahead + 2.0 * left), 3.0])
    finally:
        body.close()
