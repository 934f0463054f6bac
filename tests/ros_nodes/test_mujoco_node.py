"""The simulated body, as its neighbours in the graph see it: through topics and services of a real process."""

from __future__ import annotations

import json
import math
import os
import signal
import time

import msgspec
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String

from ros_nodes import qos
from ros_nodes.body import make_body
from ros_nodes.graph import BODY, THREADS, NodeProcess
from ros_nodes.graph_client import GraphError
from sim import MetaWorldEnv
from sim.experts import Expert

STILL = 1e-9


@pytest.fixture(scope="module")
def body(robot, graph):
    """The client of a running body that takes pictures."""
    parameters = {"robot": robot.name, "task": "drawer-open", "seed": 1, "cameras": ["corner2"]}
    client = graph.start(NodeProcess(BODY, "ros_nodes.mujoco_node", "/" + robot.name, parameters, THREADS))
    client.transition([BODY], "activate", 10.0)
    return client


def begin(body, task: str = "drawer-open", seed: int = 1) -> None:
    body.set_parameters(BODY, {"task": task, "seed": seed}, 5.0)
    body.trigger(BODY, "reset", 60.0)


def stamp(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def position(message: PoseStamped) -> np.ndarray:
    p = message.pose.position
    return np.array([p.x, p.y, p.z])


def rate_of(stamps_ns: np.ndarray, nominal_hz: float) -> float:
    """Hz at which a loop goes round that is to go round at `nominal_hz`.

    Periods that it left out count: a busy machine makes gaps of whole periods, while a wrong rate would show in each.
    """
    periods = np.rint(np.diff(stamps_ns) * nominal_hz / 1e9)
    assert np.median(periods) == 1, "a loop of half the rate would leave out every other period"
    return 1e9 * periods.sum() / (stamps_ns[-1] - stamps_ns[0])


def drive(publisher, values, seconds: float, rate_hz: float = 80.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        publisher.publish(Float64MultiArray(data=values))
        time.sleep(1 / rate_hz)


def test_every_sensor_comes_at_its_rate_and_all_of_a_period_share_a_stamp(robot, body, peer, wait_for):
    begin(body)
    heard = {s.name: peer.listen(s.topic, PoseStamped if "Pose" in s.type else JointState) for s in robot.sensors}
    heard["applied"] = peer.listen("applied_command", JointState, qos.STATUS)
    wait_for(lambda: all(len(m) >= 100 for m in heard.values()), what="100 messages of every sensor")
    stamps = {name: np.array([stamp(m) for _, m in messages]) for name, messages in heard.items()}
    for name, of_sensor in stamps.items():
        assert rate_of(of_sensor, robot.control_rate_hz) == pytest.approx(robot.control_rate_hz, rel=0.02), name
    shared = set.intersection(*(set(s.tolist()) for s in stamps.values()))
    assert len(shared) >= 90
    joints = heard["joint_states"][-1][1]
    assert tuple(joints.name) == robot.joint_names
    assert heard["end_effector"][-1][1].header.frame_id == "base"
    assert tuple(heard["applied"][-1][1].name) == tuple(c.name for c in robot.command.channels)


def test_pictures_are_what_the_contract_says(robot, body, peer, wait_for):
    camera = robot.camera("corner2")
    begin(body)
    pictures = peer.listen(camera.topic, Image)
    gripper = peer.listen("gripper_state", JointState)
    wait_for(lambda: len(pictures) >= 20, what="20 pictures")
    picture = pictures[-1][1]
    assert (picture.height, picture.width, picture.encoding, picture.step) == (96, 96, "rgb8", 288)
    assert picture.header.frame_id == camera.frame
    assert np.frombuffer(picture.data, np.uint8).std() > 10  # not a blank picture
    stamps = np.array([stamp(m) for _, m in pictures])
    assert rate_of(stamps, camera.rate_hz) == pytest.approx(camera.rate_hz, rel=0.05)
    assert len(set(stamps.tolist()) & {stamp(m) for _, m in gripper}) >= 15


def test_it_obeys_and_then_holds_when_commands_stop(robot, body, peer, wait_for):
    begin(body)
    poses = peer.listen("end_effector_pose", PoseStamped)
    applied = peer.listen("applied_command", JointState, qos.STATUS)
    commands = peer.publisher(robot.command.topic, Float64MultiArray)
    wait_for(lambda: len(poses) > 5 and commands.get_subscription_count() > 0, what="the body")
    start = position(poses[-1][1])
    drive(commands, [0.0, 0.2, 0.0, 1.0], 0.5)
    stopped = time.monotonic()
    time.sleep(0.5)
    moved = position(poses[-1][1]) - start
    assert moved[1] == pytest.approx(0.1, abs=0.03)  # 0.2 m/s for half a second
    last_motion = max(t for t, m in applied if np.abs(m.position[:3]).max() > STILL)
    assert last_motion - stopped < 0.1
    assert list(applied[-1][1].position) == [0.0, 0.0, 0.0, 1.0]  # the gripper keeps its grip


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([math.nan, 0.0, 0.0, 0.0], "non_finite"),
        ([0.0, math.inf, 0.0, 0.0], "non_finite"),
        ([0.5, 0.5, 0.5], "size"),
        ([], "size"),
        ([0.5] * 5, "size"),
        ([0.0, 0.0, 0.81, 0.0], "range"),
        ([-1e300, 0.0, 0.0, 0.0], "range"),
    ],
)
def test_a_bad_command_is_counted_and_moves_nothing(robot, body, peer, wait_for, values, reason):
    begin(body)
    applied = peer.listen("applied_command", JointState, qos.STATUS)
    commands = peer.publisher(robot.command.topic, Float64MultiArray)
    wait_for(lambda: applied and commands.get_subscription_count() > 0, what="the body")

    def refused() -> int:
        return json.loads(body.trigger(BODY, "statistics", 5.0))["refused"].get(reason, 0)

    before = refused()
    drive(commands, values, 0.1)
    wait_for(lambda: refused() > before, what="a count")
    assert all(np.abs(m.position[:3]).max() <= STILL for _, m in applied)


def test_a_command_that_arrives_late_moves_nothing(robot, body, graph, peer, wait_for):
    publisher = peer.publisher("commands", Float64MultiArray)
    applied = peer.listen("applied_command", JointState, qos.STATUS)

    def late() -> int:
        return json.loads(body.trigger(BODY, "statistics", 5.0))["refused"].get("stale", 0)

    def obeys() -> bool:
        drive(publisher, [0.0, 0.0, 0.0, 0.5], 0.1)
        return bool(applied) and applied[-1][1].position[3] == 0.5

    begin(body)
    wait_for(obeys, what="the body hearing its commands")
    time.sleep(robot.command.timeout_s)  # on a busy machine one of those, too, may arrive late: before the count
    before = late()
    process = graph.processes.pids[BODY]
    os.kill(process, signal.SIGSTOP)
    try:
        publisher.publish(Float64MultiArray(data=[0.0, 0.0, 0.5, 0.0]))
        time.sleep(3 * robot.command.timeout_s)
    finally:
        os.kill(process, signal.SIGCONT)
    wait_for(lambda: late() > before, what="the late command being refused")
    assert max(abs(m.position[2]) for _, m in applied) < STILL


def test_reset_begins_the_episode_of_the_seed(robot, body, peer, wait_for):
    environment = peer.listen("environment_state", JointState)
    episodes = peer.listen("episode", String, qos.LATCHED)
    env = MetaWorldEnv("push", "state", robot)
    wait_for(lambda: environment and episodes, what="the body")
    for seed in (5, 6, 5):
        begin(body, "push", seed)
        env.reset(seed=seed)
        before = len(environment)
        wait_for(lambda n=before: len(environment) > n + 5, what="measurements of the new episode")
        seen, wanted = np.array(environment[-1][1].position), env.measurements()["environment"]
        object_and_goal = [4, 5, 36, 37]  # x, y of each: drawn from the seed; at rest, so they stay
        np.testing.assert_allclose(seen[object_and_goal], wanted[object_and_goal], atol=1e-3)
        told = json.loads(episodes[-1][1].data)
        assert (told["robot"], told["task_name"], told["seed"]) == (robot.name, "push", seed)
        assert told["task"] == env.instruction
    env.close()


@pytest.mark.parametrize("wrong", [{"task": "draw-open"}, {"seed": -1}])
def test_a_reset_that_cannot_be_is_refused_and_the_body_lives_on(body, peer, wait_for, wrong):
    begin(body)
    with pytest.raises(GraphError, match=str(next(iter(wrong.values())))):
        begin(body, **wrong)
    poses = peer.listen("end_effector_pose", PoseStamped)
    wait_for(lambda: len(poses) > 10, what="measurements after a refused reset")


def test_success_is_told_and_time_goes_on(robot, body, peer, wait_for):
    begin(body, "drawer-open", 3)
    success = peer.listen("success", Bool, qos.STATUS)
    environment = peer.listen("environment_state", JointState)
    commands = peer.publisher(robot.command.topic, Float64MultiArray)
    expert = Expert("drawer-open", robot)
    low = [c.min for c in robot.command.channels]  # float32's 0.8 is a little more than 0.8, and would be refused
    high = [c.max for c in robot.command.channels]
    wait_for(lambda: environment and commands.get_subscription_count() > 0, what="the body")
    end = time.monotonic() + 10.0
    while not any(m.data for _, m in success) and time.monotonic() < end:
        action = expert.action(np.array(environment[-1][1].position)).astype(np.float64)
        commands.publish(Float64MultiArray(data=np.clip(action, low, high).tolist()))
        time.sleep(1 / 80)
    assert any(m.data for _, m in success)
    before = len(environment)
    wait_for(lambda: len(environment) > before + 40, what="measurements after success")


def test_it_can_be_put_away_and_set_up_again(body, peer, wait_for):
    poses = peer.listen("end_effector_pose", PoseStamped)
    wait_for(lambda: poses, what="measurements")
    body.transition([BODY], "deactivate", 10.0)
    time.sleep(0.1)
    poses.clear()
    time.sleep(0.2)
    assert not poses  # time stands still
    body.transition([BODY], "cleanup", 10.0)
    body.transition([BODY], "configure", 60.0)
    body.transition([BODY], "activate", 10.0)
    wait_for(lambda: len(poses) > 10, what="measurements after another configuration")


def test_the_body_lives_longer_than_meta_worlds_episodes(robot):
    body = make_body(robot, "drawer-open", seed=1)
    for _ in range(520):
        command, commanded = body.command(time.monotonic_ns())
        assert not commanded
        body.advance(command)
    assert np.isfinite(np.concatenate(list(body.measurements().values()))).all()
    body.close()


def test_an_episode_begins_without_a_picture(robot, monkeypatch):
    """Even of a robot all of whose observation sets have pictures: each one is asked for by itself."""
    rendered = []
    monkeypatch.setattr("sim.rendering.CameraRenderer.render", lambda *arguments: rendered.append(arguments))
    sees = {"image": robot.observation_sets["image"]}
    body = make_body(msgspec.structs.replace(robot, observation_sets=sees), "drawer-open", seed=1)
    body.reset("drawer-open", 2)
    assert body.episode["seed"] == 2
    body.advance(body.command(0)[0])
    assert not rendered
    body.picture(robot.camera("corner2"))
    assert len(rendered) == 1
    body.close()


def test_cameras_take_turns_at_their_own_rates(robot):
    body = make_body(robot, "drawer-open", seed=1)
    corner = robot.camera("corner2")
    both = [corner, msgspec.structs.replace(corner, name="second", rate_hz=20.0)]
    taken = []
    for _ in range(80):  # one second
        taken.append([camera.name for camera in body.due(both)])
        body.advance(body.command(0)[0])
    names = [name for due in taken for name in due]
    assert (names.count("corner2"), names.count("second")) == (40, 20)
    assert taken[0] == ["corner2"]  # the first picture comes at once
    body.close()


def test_a_real_robot_has_no_simulated_body(robot):
    with pytest.raises(ValueError, match="no node simulates the body 'external'"):
        make_body(msgspec.structs.replace(robot, body="external"), "drawer-open", seed=1)
