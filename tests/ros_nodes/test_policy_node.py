"""The policy's process with a real bundle, seen over real topics by a robot that is in the test's hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory

from contracts import PolicyContract, RobotContract
from ros_nodes import qos
from ros_nodes.conversions import chunk_from_message, sensor_message, stamp_ns
from ros_nodes.graph import CONTROLLER, POLICY, THREADS, NodeProcess
from ros_nodes.graph_client import GraphClient, GraphError
from ros_nodes.monitor import Monitor
from ros_nodes.policy_node import PolicyNode
from ros_nodes.processes import NodeProcesses
from tests.ros_nodes.peers import BeatingPeer

PERIOD_NS = 12_500_000
HOLD_WITHIN_S = 0.1


class Robot(BeatingPeer):
    """A robot that measures itself 80 times a second, and keeps what policy and controller say."""

    def __init__(self, robot, middleware: dict[str, str]) -> None:
        super().__init__(robot, middleware, "robot", rate_hz=80)
        self._sensors = {s.name: s for s in robot.sensors if s.name in ("environment", "end_effector")}
        self.state = self.publisher(self._sensors["environment"].topic, JointState, qos.SENSOR)
        self.pose = self.publisher(self._sensors["end_effector"].topic, PoseStamped, qos.SENSOR)
        self.chunks = self.listen("action_chunk", JointTrajectory, qos.CHUNK)
        self.heartbeats = self.listen("heartbeat", Header, qos.HEARTBEAT)
        self.commands = self.listen(robot.command.topic, Float64MultiArray, qos.COMMAND)
        self.alive = True
        self.now_ns = time.time_ns
        self.stamps: list[int] = []
        self.begin()

    def measurement(self, stamp: int | None = None) -> JointState:
        """What its environment sensor says: always the same."""
        values = np.linspace(-0.5, 0.5, 39)
        return sensor_message(self._sensors["environment"], time.time_ns() if stamp is None else stamp, values)

    def beat(self, tick: int) -> None:
        if self.alive:
            now = self.now_ns()
            self.stamps.append(now)
            self.state.publish(self.measurement(now))
            self.pose.publish(sensor_message(self._sensors["end_effector"], now, (0.0, 0.6, 0.2)))


@pytest.fixture(scope="module")
def contract(bundle) -> PolicyContract:
    return PolicyContract.load(bundle / "contract.json")


@pytest.fixture(scope="module")
def nodes(robot, graph, bundle) -> GraphClient:
    """A configured policy and controller."""
    namespace = "/" + robot.name
    parameters = {"robot": robot.name, "bundle": str(bundle), "seed": 3}
    return graph.start(
        NodeProcess(POLICY, "ros_nodes.policy_node", namespace, parameters, THREADS),
        NodeProcess(CONTROLLER, "ros_nodes.controller_node", namespace, {"robot": robot.name}, THREADS),
    )


@pytest.fixture(scope="module")
def body_of_module(robot, nodes, middleware, wait_for):
    body = Robot(robot, middleware)
    wait_for(lambda: body.state.get_subscription_count() and body.pose.get_subscription_count(), what="discovery")
    yield body
    body.close()


@pytest.fixture
def body(body_of_module, nodes):
    """A healthy robot that has heard nothing yet, and nodes at rest."""
    body_of_module.alive = True
    for heard in (body_of_module.chunks, body_of_module.heartbeats, body_of_module.commands):
        heard.clear()
    yield body_of_module
    rest(nodes)


def rest(nodes: GraphClient) -> None:
    nodes.wait_for([nodes.begin_transition(name, "deactivate") for name in (POLICY, CONTROLLER)], 5.0)


def statistics(nodes: GraphClient) -> dict:
    return json.loads(nodes.trigger(POLICY, "statistics", 5.0))


def test_active_it_answers_by_receding_horizon_and_stamps_each_chunk_with_its_observation(
    nodes, body, wait_for, contract
) -> None:
    time.sleep(0.1)
    assert not body.chunks
    assert not body.heartbeats, "a sign of life is of a policy that acts"
    nodes.transition([POLICY], "activate", 5.0)
    wait_for(lambda: len(body.chunks) >= 12, what="12 chunks")
    chunks = [chunk_from_message(m, PERIOD_NS) for _, m in body.chunks]
    assert all(c.names == contract.action.names and c.horizon == contract.horizon for c in chunks)
    starts = [c.start_ns for c in chunks]
    assert set(starts) <= set(body.stamps), "to the nanosecond"
    gaps = np.diff(starts) / PERIOD_NS
    assert np.median(gaps) == pytest.approx(contract.execute, abs=0.2)
    assert gaps.min() > contract.execute - 0.6
    figures = statistics(nodes)
    assert figures["chunks"] >= 12
    assert 0 < figures["inference_ms"]["p50"] <= figures["inference_ms"]["p99"] < 1000
    assert figures["observation_age_ms"]["p50"] >= figures["inference_ms"]["p50"]
    assert figures["counters"] == {}


def test_it_gives_signs_of_life_only_while_it_acts(nodes, body, wait_for) -> None:
    nodes.transition([POLICY], "activate", 5.0)
    wait_for(lambda: len(body.heartbeats) > 100, what="100 signs of life")
    times = [at for at, _ in body.heartbeats]
    assert 1 / np.median(np.diff(times)) > 50
    age_s = time.time() - stamp_ns(body.heartbeats[-1][1].stamp) / 1e9
    assert abs(age_s) < 0.5
    nodes.transition([POLICY], "deactivate", 5.0)
    time.sleep(0.05)
    heard = len(body.heartbeats), len(body.chunks)
    time.sleep(0.2)
    assert (len(body.heartbeats), len(body.chunks)) == heard


def test_an_episode_depends_on_its_seed_and_on_nothing_before_it(nodes, body, wait_for) -> None:
    def first_chunks(seed: int) -> bytes:
        body.chunks.clear()
        nodes.set_parameters(POLICY, {"seed": seed}, 5.0)
        nodes.transition([POLICY], "activate", 5.0)
        wait_for(lambda: len(body.chunks) >= 3, what="3 chunks")
        nodes.transition([POLICY], "deactivate", 5.0)
        return b"".join(chunk_from_message(m, PERIOD_NS).actions.tobytes() for _, m in body.chunks[:3])

    assert first_chunks(1) == first_chunks(1)
    assert first_chunks(1) != first_chunks(2)
    nodes.set_parameters(POLICY, {"seed": -1}, 5.0)
    with pytest.raises(GraphError, match="could not activate"):
        nodes.transition([POLICY], "activate", 5.0)
    nodes.set_parameters(POLICY, {"seed": 3}, 5.0)


def test_without_fresh_observations_it_says_nothing_and_goes_on_when_they_come_back(nodes, body, wait_for) -> None:
    nodes.transition([POLICY], "activate", 5.0)
    wait_for(lambda: body.chunks, what="a chunk")
    body.alive = False
    time.sleep(0.15)
    body.chunks.clear()
    old = body.measurement(time.time_ns() - 500_000_000)
    for _ in range(10):
        body.state.publish(old)
        time.sleep(0.02)
    assert not body.chunks, "it must not answer an old observation"
    body.alive = True
    wait_for(lambda: body.chunks, what="a chunk")


def test_it_says_in_its_log_what_it_waits_for_and_what_it_refuses(nodes, body, graph, wait_for) -> None:
    """Regression: a sensor that never came, or of another frame, was silence."""
    log = graph.processes.log(POLICY)
    heard = len(log.read_text())
    body.alive = False
    time.sleep(0.2)  # what is under way arrives
    nodes.transition([POLICY], "activate", 5.0)
    assert statistics(nodes)["waiting_for"] == "sensor 'environment' has not come yet"
    wait_for(lambda: "sensor 'environment' has not come yet" in log.read_text()[heard:], what="what is missing")
    message = body.measurement()
    spoil_names(message)
    body.state.publish(message)
    wait_for(lambda: "there are ['elbow'" in log.read_text()[heard:], what="what is refused")
    body.alive = True
    wait_for(lambda: statistics(nodes)["waiting_for"] is None, what="an observation")


def spoil_number(m: JointState) -> None:
    m.position[7] = float("nan")


def spoil_names(m: JointState) -> None:
    m.name[0] = "elbow"


def spoil_size(m: JointState) -> None:
    m.position.pop()


def spoil_time(m: JointState) -> None:
    m.header.stamp.sec += 100


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(spoil_number, "non_finite"), (spoil_names, "names"), (spoil_size, "size"), (spoil_time, "future")],
)
def test_a_wrong_measurement_is_dropped_and_counted_and_the_right_ones_go_on(
    nodes, body, wait_for, spoil, reason
) -> None:
    nodes.transition([POLICY], "activate", 5.0)
    wait_for(lambda: body.chunks, what="a chunk")
    body.alive = False
    body.chunks.clear()
    time.sleep(0.15)
    for _ in range(20):
        message = body.measurement()
        spoil(message)
        body.state.publish(message)
        time.sleep(0.01)
    key = f"refused.sensor.environment.{reason}"
    wait_for(lambda: statistics(nodes)["counters"].get(key, 0) >= 10, what=key)
    assert not body.chunks
    body.alive = True
    wait_for(lambda: body.chunks, what="a chunk of right measurements")


def test_a_policy_that_does_not_fit_is_refused_with_every_reason(robot, bundle, middleware, tmp_path) -> None:
    data = robot.to_dict() | {"name": "elsewhere", "control_rate_hz": 40}
    data["command"]["channels"][3]["unit"] = "N"
    other = RobotContract.from_dict(data)
    (tmp_path / "elsewhere.json").write_text(other.to_json())
    torn = tmp_path / "torn"
    shutil.copytree(bundle, torn)
    graph_file = next(torn.glob("*.onnx"))
    graph_file.write_bytes(graph_file.read_bytes()[:-100])

    processes = NodeProcesses(tmp_path / "nodes", dict(os.environ) | middleware, lambda *_: None)
    parameters = {"robot": str(tmp_path / "elsewhere.json"), "bundle": str(bundle)}
    processes.start(NodeProcess(POLICY, "ros_nodes.policy_node", "/elsewhere", parameters, THREADS))
    client = GraphClient(other, middleware, Monitor())
    try:
        for values in ({}, {"robot": robot.name, "bundle": str(torn)}, {"bundle": str(bundle), "backend": "abacus"}):
            client.set_parameters(POLICY, values, 20.0)
            with pytest.raises(GraphError, match="could not configure"):
                client.transition([POLICY], "configure", 20.0)
        log = processes.log(POLICY).read_text()
        for text in ("this is 'elsewhere'", "every 12.500 ms, the robot every 25.000 ms", "gripper_effort"):
            assert text in log
        assert graph_file.name in log
        assert "abacus" in log
        client.set_parameters(POLICY, {"backend": "openvino"}, 5.0)
        client.transition([POLICY], "configure", 20.0)
    finally:
        client.close()
        processes.stop([POLICY], 5.0)


def test_a_policy_of_several_tasks_does_what_it_is_told_and_refuses_what_it_cannot(
    robot, two_task_bundle, middleware, tmp_path, wait_for
) -> None:
    elsewhere = RobotContract.from_dict(robot.to_dict() | {"name": "elsewhere"})
    processes = NodeProcesses(tmp_path / "nodes", dict(os.environ) | middleware, lambda *_: None)
    parameters = {"robot": robot.name, "bundle": str(two_task_bundle), "seed": 1}
    processes.start(NodeProcess(POLICY, "ros_nodes.policy_node", "/elsewhere", parameters, THREADS))
    client = GraphClient(elsewhere, middleware, Monitor())
    body = Robot(elsewhere, middleware)

    def first_chunks(instruction: str) -> bytes:
        body.chunks.clear()
        client.set_parameters(POLICY, {"instruction": instruction}, 5.0)
        client.transition([POLICY], "activate", 5.0)
        wait_for(lambda: len(body.chunks) >= 3, what="3 chunks")
        client.transition([POLICY], "deactivate", 5.0)
        return b"".join(chunk_from_message(m, PERIOD_NS).actions.tobytes() for _, m in body.chunks[:3])

    push, reach = "push the puck to the goal", "move the gripper to the goal"
    try:
        for values in ({}, {"instruction": "dance"}, {"instruction": push, "prefix": 4}):
            client.set_parameters(POLICY, values, 20.0)
            with pytest.raises(GraphError, match="could not configure"):
                client.transition([POLICY], "configure", 20.0)
        log = processes.log(POLICY).read_text()
        refused = "does not know the instruction 'dance'"
        for text in (refused, f"- {push}", f"- {reach}", "cannot continue the chunk before"):
            assert text in log
        client.set_parameters(POLICY, {"prefix": 0}, 5.0)
        client.transition([POLICY], "configure", 20.0)
        wait_for(body.state.get_subscription_count, what="discovery")
        pushing = first_chunks(push)
        assert first_chunks(reach) != pushing
        assert first_chunks(push) == pushing
        client.set_parameters(POLICY, {"instruction": "sing"}, 5.0)
        with pytest.raises(GraphError, match="could not activate"):
            client.transition([POLICY], "activate", 5.0)
        assert "does not know the instruction 'sing'" in processes.log(POLICY).read_text()
        assert first_chunks(push) == pushing, "it is still alive"
    finally:
        body.close()
        client.close()
        processes.stop([POLICY], 5.0)


class SteppedClock:
    """ROS time that can be set, as chrony sets it on a robot that finds its time server late."""

    step_ns = 0

    def now_ns(self) -> int:
        return time.time_ns() + self.step_ns

    def now(self) -> Time:
        return Time(nanoseconds=self.now_ns())


def test_a_step_of_ros_time_does_not_make_it_deaf(robot, bundle, middleware, monkeypatch, wait_for) -> None:
    """Pinned: after a step of 30 s back it took every measurement for an old one, for 30 s."""
    elsewhere, clock = RobotContract.from_dict(robot.to_dict() | {"name": "elsewhere"}), SteppedClock()
    rclpy.init(args=["--ros-args", "-r", "__ns:=/elsewhere"])
    node, executor = PolicyNode(), SingleThreadedExecutor()
    monkeypatch.setattr(node, "get_clock", lambda: clock)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    client, body = GraphClient(elsewhere, middleware, Monitor()), Robot(elsewhere, middleware)
    body.now_ns = clock.now_ns
    key = "refused.sensor.environment"

    def refused() -> dict[str, int]:
        counters = statistics(client)["counters"]
        return {reason: counters.get(f"{key}.{reason}", 0) for reason in ("future", "out_of_order")}

    try:
        client.set_parameters(POLICY, {"robot": robot.name, "bundle": str(bundle)}, 5.0)
        client.transition([POLICY], "configure", 20.0)
        client.transition([POLICY], "activate", 5.0)
        wait_for(lambda: len(body.chunks) >= 3, what="3 chunks")
        for step_s in (-30, 20):
            clock.step_ns += step_s * 1_000_000_000
            time.sleep(0.1)  # what was under way
            body.chunks.clear()
            wait_for(lambda: len(body.chunks) >= 3, 2.0, what="3 chunks after the step")
            age_s = (clock.now_ns() - chunk_from_message(body.chunks[-1][1], PERIOD_NS).start_ns) / 1e9
            assert 0 <= age_s < 0.5, "stamped by the clock as it is now"
        before = refused()
        body.state.publish(body.measurement(clock.now_ns() - 60_000_000))
        body.state.publish(body.measurement(clock.now_ns() + 100_000_000_000))
        wait_for(lambda: all(count > before[r] for r, count in refused().items()), what="an old and a wild stamp")
        body.chunks.clear()
        wait_for(lambda: body.chunks, 2.0, what="a chunk after the wild stamp")
    finally:
        body.close()
        client.close()
        executor.shutdown()
        thread.join()
        node.close()
        node.destroy_node()
        rclpy.shutdown()


def test_killed_in_the_middle_of_a_movement_the_robot_is_held_within_100_ms(
    robot, nodes, body, graph, wait_for
) -> None:
    """Last in this file: the policy does not come back."""
    nodes.trigger(CONTROLLER, "reset_controller", 5.0)
    nodes.transition([CONTROLLER], "activate", 5.0)
    nodes.transition([POLICY], "activate", 5.0)
    wait_for(lambda: sum(any(m.data[:3]) for _, m in body.commands) > 40, what="half a second of movement")
    graph.monitor.finish()  # a death is expected
    os.kill(graph.processes.pids[POLICY], signal.SIGKILL)
    killed = time.monotonic()
    time.sleep(0.3)
    moving = [at for at, m in body.commands if any(m.data[:3])]
    held = [m for at, m in body.commands if at > killed + HOLD_WITHIN_S]
    assert max(moving) - killed < HOLD_WITHIN_S
    assert len(held) > 10, "hold is sent, not silence"
    assert not any(any(m.data[:3]) for m in held)
