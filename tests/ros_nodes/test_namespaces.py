"""Two robots of one model in one domain: each graph is driven, watched and recorded by itself."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import Float64MultiArray, String

from episodes.bag import BagReader
from episodes.convert import bag_to_dataset
from episodes.dataset import Dataset
from ros_nodes import qos
from ros_nodes.graph import BODY, CONTROLLER, LONGEST_NAMESPACE, RECORDER, THREADS, NodeProcess
from tests.ros_nodes.peers import Peer

LEFT, RIGHT = "/left", "/cell/right"
SEEDS = {LEFT: 3, RIGHT: 4}


@pytest.fixture
def graphs(robot, new_graph, tmp_path):
    """namespace -> a Graph of body, recorder and controller, configured."""
    found = {namespace: new_graph(namespace) for namespace in SEEDS}
    for namespace, graph in found.items():
        told = {"robot": robot.name}
        bag = str(tmp_path / namespace.replace("/", "_"))
        body = NodeProcess(BODY, "ros_nodes.mujoco_node", namespace, told | {"seed": SEEDS[namespace]}, THREADS)
        recorder = NodeProcess(
            RECORDER, "ros_nodes.recorder_node", namespace, told | {"bag": bag}, THREADS, signal.SIGTERM
        )
        graph.start(body, recorder, NodeProcess(CONTROLLER, "ros_nodes.controller_node", namespace, told, THREADS))
    return found


def test_two_robots_of_one_model_share_a_domain(robot, middleware, graphs, tmp_path, wait_for):
    peers = {namespace: Peer(robot, middleware, "peer", namespace) for namespace in graphs}
    try:
        states = {n: peer.listen("controller_state", String, qos.LATCHED) for n, peer in peers.items()}
        diagnostics = peers[LEFT].listen("/diagnostics", DiagnosticArray, qos.STATUS)
        commands = peers[LEFT].publisher(robot.command.topic, Float64MultiArray)
        for graph in graphs.values():
            graph.client.transition([BODY, RECORDER], "activate", 10.0)
        graphs[LEFT].client.trigger(BODY, "reset", 60.0)  # an episode of its own, which the other one does not begin
        wait_for(lambda: commands.get_subscription_count() >= 3, what="left's body, recorder and supervisor")
        for _ in range(40):
            commands.publish(Float64MultiArray(data=[0.0, 0.2, 0.0, 1.0]))
            time.sleep(robot.control_period_s)
        peers[LEFT].node.destroy_publisher(commands)  # a robot has one commander
        wait_for(lambda: publishers(peers[LEFT], robot) == 2, what="its farewell")
        graphs[LEFT].client.transition([CONTROLLER], "activate", 10.0)
        wait_for(lambda: [m.data for _, m in states[LEFT]][-1:] == ["hold"], what="left's controller, without a policy")
        wait_for(lambda: len(told_by(diagnostics)) >= 4, what="what each node says of itself")
        up = peers[LEFT].node.get_node_names_and_namespaces()
    finally:
        for peer in peers.values():
            peer.close()
    assert [m.data for _, m in states[RIGHT]] == ["inactive"]
    assert told_by(diagnostics) == {
        (f"{namespace}/{name}", namespace)
        for namespace in graphs
        for name in ("controller_node: control loop", "recorder_node")
    }
    names = [f"{namespace}/{name}" for name, namespace in up]
    assert len(names) == len(set(names)), "each node's name is its own"
    assert {f"{n}/{name}" for n in graphs for name in (BODY, RECORDER, CONTROLLER, "supervisor")} <= set(names)
    for graph in graphs.values():
        graph.close()
    for namespace, moved in ((LEFT, True), (RIGHT, False)):
        bag = tmp_path / namespace.replace("/", "_")
        topics = {message.topic for message in BagReader(bag).raw()}
        assert {t for t in topics if not t.startswith(f"{namespace}/")} <= {"/diagnostics"}
        bag_to_dataset(bag, tmp_path / f"dataset{bag.name}")
        dataset = Dataset(tmp_path / f"dataset{bag.name}")
        assert {episode.seed for episode in dataset.episodes} == {SEEDS[namespace]}
        assert (np.abs(dataset.episode(len(dataset) - 1).actions[:, :3]).max() > 0.1) == moved


def test_in_the_longest_namespace_all_names_are_valid(robot, new_graph):
    namespace = "/cell" * 39 + "/left"
    assert len(namespace) == LONGEST_NAMESPACE
    graph = new_graph(namespace)
    client = graph.start(
        NodeProcess(CONTROLLER, "ros_nodes.controller_node", namespace, {"robot": robot.name}, THREADS)
    )
    client.transition([CONTROLLER], "activate", 10.0)
    client.trigger(CONTROLLER, "statistics", 10.0)


def publishers(peer: Peer, robot) -> int:
    """How many could command the peer's robot: its controller and its supervisor."""
    return peer.node.count_publishers(peer.node.resolve_topic_name(robot.command.topic))


def told_by(diagnostics) -> set[tuple[str, str]]:
    """(name, hardware) of each status heard."""
    return {(status.name, status.hardware_id) for _, message in diagnostics for status in message.status}
