"""Policy and controller of a walking robot as real processes; the robot itself is in the test's hand."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
from geometry_msgs.msg import Twist
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header, String
from trajectory_msgs.msg import JointTrajectory

from contracts import RobotContract, load_robot
from ros_nodes import qos
from ros_nodes.conversions import chunk_from_message, sensor_message, sensor_message_type, to_stamp
from ros_nodes.graph import CONTROLLER, POLICY, THREADS, NodeProcess
from ros_nodes.graph_client import GraphClient, GraphError
from tests.ros_nodes.peers import BeatingPeer

TICK = 20_000_000
GO2 = load_robot("go2")
LYING = np.tile([0.0, 1.4, -2.6], 4)
UPRIGHT = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.81)
DAMPED_WITHIN_S = 0.1


@pytest.fixture(scope="module")
def robot() -> RobotContract:
    """The same robot, quicker on its feet."""
    data = GO2.to_dict()
    data["task"] |= {"stand_up_s": 0.4, "ramp_s": 0.2}
    return RobotContract.from_dict(data)


class Legs(BeatingPeer):
    """A robot that lies still and measures itself 50 times a second, and somebody who asks it to walk."""

    def __init__(self, robot: RobotContract, middleware: dict[str, str]) -> None:
        super().__init__(robot, middleware, "legs", rate_hz=50)
        self._sensors = robot.sensors[:2]
        self.out = [self.publisher(s.topic, sensor_message_type(s), qos.SENSOR) for s in self._sensors]
        self.asks = self.publisher("cmd_vel", Twist, 10)
        self.chunks = self.listen("action_chunk", JointTrajectory, qos.CHUNK)
        self.commands = self.listen("commands", Float64MultiArray, qos.SENSOR)  # what is late is not repaired
        self.modes = self.listen("controller_state", String, qos.LATCHED)
        self.stamps: list[int] = []
        self.asked = (0.0, 0.0, 0.0)
        self.carries_an_arm = False
        self.begin()

    def mode(self) -> str:
        return self.modes[-1][1].data

    def command(self) -> np.ndarray:
        return np.array(self.commands[-1][1].data)

    def action(self) -> np.ndarray:
        return chunk_from_message(self.chunks[-1][1], TICK).actions[0]

    def beat(self, tick: int) -> None:
        now = time.time_ns()
        self.stamps.append(now)
        for sensor, publisher, values in zip(self._sensors, self.out, ([*LYING, *[0.0] * 12], UPRIGHT), strict=True):
            publisher.publish(sensor_message(sensor, now, values))
        if self.carries_an_arm:  # whose joints come on the same topic
            self.out[0].publish(JointState(header=Header(stamp=to_stamp(now)), name=["gripper"], position=[0.1]))
        if len(self.stamps) % 5 == 0 and any(self.asked):
            self.asks.publish(sensor_message(GO2.sensors[2], now, self.asked))


@pytest.fixture(scope="module")
def nodes(robot, graph, walking_bundle, tmp_path_factory) -> GraphClient:
    """A policy that was refused by a robot with stiffer springs, then configured; and a controller."""
    folder = tmp_path_factory.mktemp("robots")
    (folder / "go2.json").write_text(robot.to_json())
    stiff = robot.to_dict()
    stiff["command"]["position_control"] = {"kp": 80, "kd": 1}
    (folder / "stiff.json").write_text(RobotContract.from_dict(stiff).to_json())
    namespace, parameters = "/" + robot.name, {"robot": str(folder / "go2.json")}
    policy = {"robot": str(folder / "stiff.json"), "bundle": str(walking_bundle)}
    with pytest.raises(GraphError, match="could not configure"):
        graph.start(
            NodeProcess(POLICY, "ros_nodes.policy_node", namespace, policy, THREADS),
            NodeProcess(CONTROLLER, "ros_nodes.controller_node", namespace, parameters, THREADS),
        )
    assert "trained with kp 40 and kd 1, the robot has kp 80" in graph.processes.log(POLICY).read_text()
    graph.client.set_parameters(POLICY, parameters, 20.0)
    graph.client.transition([POLICY], "configure", 60.0)
    return graph.client


@pytest.fixture(scope="module")
def legs(robot, nodes, middleware, wait_for):
    legs = Legs(robot, middleware)
    wait_for(lambda: all(p.get_subscription_count() for p in (*legs.out, legs.asks)), what="discovery")
    yield legs
    legs.close()


def counters(nodes: GraphClient) -> dict:
    return json.loads(nodes.trigger(POLICY, "statistics", 5.0))["counters"]


def test_it_answers_every_measurement_and_goes_where_it_is_asked_to(nodes, legs, wait_for) -> None:
    nodes.transition([POLICY], "activate", 10.0)
    wait_for(lambda: len(legs.chunks) > 60, what="a second of chunks that nobody asked for")
    chunks = [chunk_from_message(m, TICK) for _, m in legs.chunks]
    starts = [c.start_ns for c in chunks]
    assert set(starts) <= set(legs.stamps), "to the nanosecond"
    which = np.array([legs.stamps.index(start) for start in starts])
    assert (np.diff(which) == 1).sum() >= 5, "one after the other; a busy machine leaves some out"
    standing = legs.action()
    legs.carries_an_arm = True
    legs.asked = (0.5, -0.3, 0.5)
    wait_for(lambda: np.abs(legs.action() - standing).max() > 0.01, what="a request that is followed")
    for number in (float("nan"), float("-inf")):
        legs.asks.publish(Twist())  # a person lets go, and then something breaks
        broken = Twist()
        broken.angular.z = number
        legs.asks.publish(broken)
    wait_for(lambda: counters(nodes).get("refused.sensor.velocity_command.non_finite") == 2, what="the refusal")
    assert set(counters(nodes)) == {"refused.sensor.velocity_command.non_finite"}
    legs.asked = (0.0, 0.0, 0.0)
    wait_for(lambda: np.abs(legs.action() - standing).max() < 1e-3, what="standing again when nobody asks any more")
    nodes.transition([POLICY], "deactivate", 5.0)


def test_it_stands_up_follows_and_is_damped_when_the_policy_is_killed(nodes, legs, graph, wait_for) -> None:
    """Last in this file: the policy does not come back."""
    nodes.wait_for([nodes.begin_transition(POLICY, "deactivate")], 5.0)
    nodes.transition([CONTROLLER], "activate", 10.0)
    wait_for(lambda: len(legs.commands) > 10, what="commands")
    assert legs.mode() == "damp"
    assert all(list(m.data) == LYING.tolist() for _, m in legs.commands), "before there is a policy"
    legs.commands.clear()
    nodes.transition([POLICY], "activate", 10.0)
    wait_for(lambda: legs.mode() == "run", what="the policy's turn")
    modes = [m.data for _, m in legs.modes]
    assert modes.index("damp") < modes.index("stand_up") < modes.index("run")
    heard = np.array([m.data for _, m in legs.commands])
    assert np.abs(heard - GO2.home_command).max(axis=1).min() < 1e-9, "it was at home"
    wait_for(lambda: np.abs(legs.command() - legs.action()).max() < 1e-6, what="the policy's own command")
    graph.monitor.finish()  # a death is expected
    os.kill(graph.processes.pids[POLICY], signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: legs.mode() == "stopped", what="the stop for good")
    led = [at for at, m in legs.commands if list(m.data) != LYING.tolist()]
    assert max(led) - killed < DAMPED_WITHIN_S
    seen = len(legs.commands)
    wait_for(lambda: len(legs.commands) > seen + 10, what="damping, not silence")
    assert "damp.chunk" in json.loads(nodes.trigger(CONTROLLER, "statistics", 5.0))["counters"]
