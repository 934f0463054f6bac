"""A recorded episode comes back on its topics: in time, fresh, and never in the way of a live robot."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from geometry_msgs.msg import Twist
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String

from contracts import RobotContract
from episodes.bag import BagError, BagWriter, RecordedMessage, Topic
from episodes.messages import deserialize, joint_state, message_definition, message_type, serialize, stamp_ns
from ros_nodes import qos
from ros_nodes.replay_node import replay_topics, restamped
from tests.ros_nodes.peers import Peer

JOINTS = "sensor_msgs/msg/JointState"
ARRAY = "std_msgs/msg/Float64MultiArray"
TEXT = "std_msgs/msg/String"
TWIST = "geometry_msgs/msg/Twist"
START_NS = 1_700_000_000_000_000_000
COUNT, PERIOD_NS = 60, 12_500_000


@pytest.fixture(scope="module")
def bag(robot, tmp_path_factory):
    return record(robot, tmp_path_factory.mktemp("recording") / "bag")


def record(robot, path, namespace: str | None = None, requests: str = "cmd_vel"):
    """Two episodes of 60 measurements, requests and commands, 12.5 ms apart, long ago."""
    asked = {"name": "asked", "topic": requests, "type": TWIST, "fields": ["x", "y", "yaw"], "units": ["1", "1", "1"]}
    data = robot.to_dict()
    robot = RobotContract.from_dict(data | {"sensors": [*data["sensors"], asked | {"rate_hz": 10, "timeout_s": 0.5}]})
    names = {
        kind: name if name.startswith("/") else f"{namespace or '/' + robot.name}/{name}"
        for name, kind in (("joint_states", JOINTS), ("commands", ARRAY), ("episode", TEXT), (requests, TWIST))
    }
    layout = message_type("std_msgs/msg/MultiArrayLayout")([], 0)
    vector = message_type("geometry_msgs/msg/Vector3")
    forward = serialize(message_type(TWIST)(vector(1.0, 0.0, 0.0), vector(0.0, 0.0, 0.0)), TWIST)
    with BagWriter(path, [Topic(n, k, message_definition(k)) for k, n in names.items()], robot) as writer:
        for episode in range(2):
            base = START_NS + episode * 10_000_000_000
            text = serialize(message_type(TEXT)(f'{{"episode": {episode}}}'), TEXT)
            writer.write(names[TEXT], text, base, base)
            for k in range(COUNT):
                now = base + k * PERIOD_NS
                joints = joint_state(now - 1_000_000, "base", ["right_j0"], np.array([100.0 * episode + k]))
                writer.write(names[JOINTS], serialize(joints, JOINTS), now, now)
                command = message_type(ARRAY)(layout, np.full(4, k / 100.0))
                writer.write(names[ARRAY], serialize(command, ARRAY), now, now)
                writer.write(names[TWIST], forward, now, now)
            writer.split()
    return path


def replay(bag, middleware, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "visuomotor", "replay", str(bag), "--topics", *arguments]
    return subprocess.Popen(
        command, env=dict(os.environ) | middleware, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(("episode", "speed"), [(0, 1.0), (1, 2.0)])
def test_an_episode_comes_back_in_time_and_fresh(bag, middleware, peer, episode, speed):
    joints = peer.listen("joint_states", JointState)
    told = peer.listen("episode", String, qos.LATCHED)
    process = replay(bag, middleware, "--episode", str(episode), "--speed", str(speed))
    received_at = time.time() - time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert [m.position[0] for _, m in joints] == [100.0 * episode + k for k in range(COUNT)]
    assert told[0][1].data == f'{{"episode": {episode}}}'
    times = np.array([t for t, _ in joints])
    assert times[-1] - times[0] == pytest.approx((COUNT - 1) * PERIOD_NS / 1e9 / speed, abs=0.05)
    stamps = np.array([m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for _, m in joints])
    ages = times + received_at - stamps
    assert np.median(ages) == pytest.approx(0.001 / speed, abs=0.01)  # as old on arrival as when it was recorded


def test_it_never_gets_in_the_way_of_a_live_robot(robot, bag, middleware, peer):
    commands = peer.listen(robot.command.topic, Float64MultiArray, qos.COMMAND)  # a robot that would obey
    asked = peer.listen("cmd_vel", Twist)  # with a policy that goes where it is asked to
    joints = peer.listen("joint_states", JointState)
    live = peer.publisher("joint_states", JointState, qos.SENSOR)  # and that publishes what it measures
    told = peer.listen("episode", String, qos.LATCHED)
    output, _ = replay(bag, middleware).communicate(timeout=60)
    assert "commands is left out: a robot is driven" in output
    assert "cmd_vel is left out: a robot is driven" in output
    assert "joint_states is left out: somebody else publishes it" in output
    assert not commands
    assert not asked
    assert not joints
    assert live.get_subscription_count() == 1
    assert len(told) == 1  # the rest is published


def test_what_comes_up_while_it_plays_is_left_alone_too(robot, bag, middleware, peer, wait_for):
    """Pinned: who else is there was asked once, and a driver that came up later obeyed the recorded commands."""
    joints = peer.listen("joint_states", JointState)
    process = replay(bag, middleware, "--speed", "0.5")
    wait_for(lambda: joints, timeout_s=30.0, what="the replay")
    commands = peer.listen(robot.command.topic, Float64MultiArray, qos.COMMAND)
    asked = peer.listen("cmd_vel", Twist)
    live = peer.publisher("joint_states", JointState, qos.SENSOR)
    output, _ = process.communicate(timeout=60)
    assert "commands is left out: a robot is driven" in output
    assert "cmd_vel is left out: a robot is driven" in output
    assert "joint_states is left out: somebody else publishes it" in output
    assert not commands
    assert not asked
    assert len(joints) < COUNT
    assert live.get_subscription_count() == 1


@pytest.mark.parametrize(("asked", "here", "other"), [((), "/left", "/right"), (("right",), "/right", "/left")])
def test_it_plays_in_the_namespace_of_the_recording_or_in_another(robot, tmp_path, middleware, asked, here, other):
    """There too it keeps out of the way, on the topics of that namespace and on the absolute ones."""
    bag = record(robot, tmp_path / "bag", "/left", "/cmd_vel")
    peers = {namespace: Peer(robot, middleware, "peer", namespace) for namespace in (here, other)}
    try:
        joints = {namespace: peer.listen("joint_states", JointState) for namespace, peer in peers.items()}
        commands = peers[here].listen(robot.command.topic, Float64MultiArray, qos.COMMAND)
        requests = peers[here].listen("/cmd_vel", Twist)
        told = peers[here].listen("episode", String, qos.LATCHED)
        output, _ = replay(bag, middleware, *(f"--namespace={name}" for name in asked)).communicate(timeout=60)
    finally:
        for peer in peers.values():
            peer.close()
    assert joints[here], output
    assert not joints[other]
    assert len(told) == 1
    assert f"{here}/commands is left out: a robot is driven" in output
    assert f"[{here[1:]}.replay_node]" in output
    assert " /cmd_vel is left out: a robot is driven" in output
    assert not commands
    assert not requests


@pytest.mark.parametrize(
    ("episode", "speed", "error", "message"),
    [(2, 1.0, BagError, "has 2 episodes"), (-1, 1.0, BagError, "no episode -1"), (0, 0.0, ValueError, "positive")],
)
def test_what_cannot_be_replayed_is_refused(bag, episode, speed, error, message):
    with pytest.raises(error, match=message):
        replay_topics(bag, episode, speed)


def test_what_is_no_namespace_is_refused(bag):
    with pytest.raises(ValueError, match="'2nd' is no namespace of a robot"):
        replay_topics(bag, namespace="2nd")


def test_only_the_stamp_of_a_message_changes():
    data = serialize(joint_state(5_000_000_007, "base", ["a", "b"], np.array([1.0, 2.0])), JOINTS)
    moved = deserialize(restamped(RecordedMessage("t", 0, JOINTS, data), lambda ns: ns + 2_000_000_001), JOINTS)
    assert stamp_ns(moved) == 7_000_000_008
    assert (moved.header.frame_id, list(moved.name), moved.position.tolist()) == ("base", ["a", "b"], [1.0, 2.0])
    text = RecordedMessage("t", 0, TEXT, serialize(message_type(TEXT)("no stamp at all"), TEXT))
    assert restamped(text, lambda ns: 0) == text.data
