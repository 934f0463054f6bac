"""The recorder, a real process: what it is sent is what `rosbags` reads, whatever happens to it or to the disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from typing import Any

import pytest
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String

from episodes.bag import BagReader
from episodes.repair import repair
from ros_nodes import qos
from ros_nodes.graph import RECORDER, THREADS, NodeProcess
from ros_nodes.graph_client import GraphError
from ros_nodes.monitor import NodeDied


@pytest.fixture
def recorder(robot, middleware, tmp_path, peer, new_graph):
    """(client, graph, bag path, publishers) of a recorder that is recording; one process a test."""
    graph = new_graph()
    bag = tmp_path / "bag"
    parameters = {"robot": robot.name, "bag": str(bag)}
    publishers = {
        "joint_states": peer.publisher("joint_states", JointState, qos.SENSOR),
        "commands": peer.publisher("commands", Float64MultiArray),
        "episode": peer.publisher("episode", String, qos.LATCHED),
    }
    node = NodeProcess(RECORDER, "ros_nodes.recorder_node", "/" + robot.name, parameters, THREADS, signal.SIGTERM)
    client = graph.start(node)
    client.transition([RECORDER], "activate", 10.0)
    return client, graph, bag, publishers


def send(publishers, wait_for, count: int, first: int = 0) -> None:
    wait_for(lambda: all(p.get_subscription_count() > 0 for p in publishers.values()), what="the recorder")
    time.sleep(0.3)  # it may still have to find the publishers, which found it
    for i in range(first, first + count):
        message = JointState(name=["right_j0"], position=[float(i)])
        message.header.stamp.sec = i
        publishers["joint_states"].publish(message)
        publishers["commands"].publish(Float64MultiArray(data=[float(i)] * 4))
        time.sleep(0.002)


def read(reader: AnyReader, topic: str) -> list[Any]:
    return [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages() if c.topic.endswith(topic)]


def statistics(client) -> dict:
    return json.loads(client.trigger(RECORDER, "statistics", 5.0))


def test_everything_that_was_sent_can_be_read(recorder, wait_for):
    client, graph, bag, publishers = recorder
    send(publishers, wait_for, 200)
    wait_for(lambda: sum(statistics(client)["messages"].values()) >= 400, what="400 recorded messages")
    graph.close()
    with AnyReader([bag]) as reader:
        joints = read(reader, "joint_states")
        commands = read(reader, "commands")
    assert [m.position[0] for m in joints] == [float(i) for i in range(200)]
    assert [m.data.tolist() for m in commands] == [[float(i)] * 4 for i in range(200)]


def test_a_new_file_begins_with_each_episode(recorder, wait_for):
    client, graph, bag, publishers = recorder
    for episode in range(2):
        publishers["episode"].publish(String(data=json.dumps({"episode": episode, "task_name": "push"})))
        wait_for(
            lambda n=episode: statistics(client)["messages"].get("/metaworld_sawyer/episode", 0) > n, what="an episode"
        )
        send(publishers, wait_for, 20)
    wait_for(lambda: sum(statistics(client)["messages"].values()) >= 82, what="all messages")
    graph.close()
    assert sorted(p.name for p in bag.glob("*.mcap")) == ["bag_0.mcap", "bag_1.mcap"]
    found = BagReader(bag).episodes()
    assert [e.description["episode"] for e in found] == [0, 1]
    assert [len(e.files) for e in found] == [1, 1]


def test_an_episode_may_be_announced_by_an_ordinary_publisher_too(recorder, peer, wait_for):
    """Regression: `ros2 topic pub` and `create_publisher(String, "episode", 10)` were never heard."""
    client, graph, bag, publishers = recorder
    ordinary = peer.publisher("episode", String, qos.STATUS)
    send(publishers | {"ordinary": ordinary}, wait_for, 5)
    for publisher, name in ((ordinary, "first"), (publishers["episode"], "second")):
        publisher.publish(String(data=json.dumps({"task_name": name})))
        send(publishers, wait_for, 5)
    wait_for(lambda: statistics(client)["messages"].get("/metaworld_sawyer/commands", 0) >= 15, what="the commands")
    graph.close()
    with AnyReader([bag]) as reader:
        told = [json.loads(message.data)["task_name"] for message in read(reader, "episode")]
    assert told == ["first", "second"], "each once"


def test_paused_it_records_nothing(recorder, wait_for):
    client, graph, bag, publishers = recorder
    send(publishers, wait_for, 20)
    wait_for(lambda: sum(statistics(client)["messages"].values()) >= 40, what="40 messages")
    client.transition([RECORDER], "deactivate", 5.0)
    send(publishers, wait_for, 20, first=100)
    client.transition([RECORDER], "activate", 5.0)
    send(publishers, wait_for, 20, first=200)
    wait_for(lambda: sum(statistics(client)["messages"].values()) >= 80, what="80 messages")
    graph.close()
    with AnyReader([bag]) as reader:
        seconds = [m.header.stamp.sec for m in read(reader, "joint_states")]
    assert seconds == [*range(20), *range(200, 220)]


def test_a_full_disk_ends_the_recording_and_not_the_node(recorder, wait_for):
    client, graph, bag, publishers = recorder
    send(publishers, wait_for, 50)
    wait_for(lambda: sum(statistics(client)["messages"].values()) >= 100, what="100 messages")
    limit = sum(f.stat().st_size for f in bag.glob("*.mcap")) + 2000
    resource.prlimit(graph.processes.pids[RECORDER], resource.RLIMIT_FSIZE, (limit, limit))
    send(publishers, wait_for, 200, first=50)
    wait_for(lambda: "File too large" in (statistics(client)["error"] or ""), what="the error")
    assert graph.processes.alive(RECORDER)
    client.transition([RECORDER], "deactivate", 5.0)
    with pytest.raises(GraphError, match="could not activate"):  # what has ended is not gone on with
        client.transition([RECORDER], "activate", 5.0)
    graph.close()
    repair(bag)
    with AnyReader([bag]) as reader:
        assert reader.message_count >= 100


def test_after_an_error_another_recording_is_a_whole_one(recorder, wait_for, tmp_path):
    """Regression: nothing of it was written, and the recorder said that it was active."""
    client, graph, bag, publishers = recorder
    publishers["episode"].publish(String(data=json.dumps({"episode": 0, "task_name": "push"})))
    send(publishers, wait_for, 20)
    resource.prlimit(graph.processes.pids[RECORDER], resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    publishers["commands"].publish(Float64MultiArray(data=[0.0] * 4))
    wait_for(lambda: statistics(client)["error"], what="the error")
    resource.prlimit(graph.processes.pids[RECORDER], resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    client.transition([RECORDER], "deactivate", 5.0)
    client.set_parameters(RECORDER, {"bag": str(tmp_path / "another")}, 5.0)
    client.transition([RECORDER], "activate", 5.0)
    assert statistics(client)["error"] is None
    before = sum(statistics(client)["messages"].values())
    send(publishers, wait_for, 20, first=100)
    wait_for(lambda: sum(statistics(client)["messages"].values()) >= before + 40, what="40 messages more")
    graph.close()
    with AnyReader([tmp_path / "another"]) as reader:
        assert [m.header.stamp.sec for m in read(reader, "joint_states")] == [*range(100, 120)]
    assert [(e.description["episode"], len(e.files)) for e in BagReader(tmp_path / "another").episodes()] == [(0, 1)]


def test_a_killed_recorder_loses_only_its_last_moments(recorder, wait_for):
    client, graph, bag, publishers = recorder
    send(publishers, wait_for, 200)
    time.sleep(0.1)
    os.kill(graph.processes.pids[RECORDER], signal.SIGKILL)
    wait_for(lambda: graph.monitor.reason is not None, what="notice of the death")
    assert isinstance(graph.monitor.reason, NodeDied)
    assert str(graph.monitor.reason).startswith("recorder_node died: signal 9 (SIGKILL)")
    repair(bag)
    with AnyReader([bag]) as reader:
        assert reader.message_count >= 398


def test_it_does_not_write_into_what_is_there(robot, tmp_path, new_graph):
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "bag_0.mcap").write_bytes(b"precious")
    graph = new_graph()
    parameters = {"robot": robot.name, "bag": str(tmp_path / "bag")}
    client = graph.start(NodeProcess(RECORDER, "ros_nodes.recorder_node", "/" + robot.name, parameters, THREADS))
    with pytest.raises(GraphError, match="could not activate"):
        client.transition([RECORDER], "activate", 10.0)
    assert "not empty" in graph.processes.log(RECORDER).read_text()
    assert (tmp_path / "bag" / "bag_0.mcap").read_bytes() == b"precious"
