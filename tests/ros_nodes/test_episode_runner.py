"""Episodes of a robot without a simulated body, through a graph whose nodes are in the test's own hand."""

from __future__ import annotations

import io
import json
import threading
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rich.console import Console
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from contracts import RobotContract, load_robot
from ros_nodes import episode_runner, qos
from ros_nodes.episode_runner import EpisodeRunner
from ros_nodes.graph import CONTROLLER, POLICY, RECORDER
from ros_nodes.graph_client import GraphClient, GraphError
from ros_nodes.monitor import Monitor
from ros_nodes.run_report import RunReport
from tests.ros_nodes.peers import Peer

NAMES = (RECORDER, CONTROLLER, POLICY)
STATISTICS: dict[str, dict[str, Any]] = {
    RECORDER: {"error": None},
    CONTROLLER: {
        "rate_hz": 50.0,
        "period_error_us": {},
        "missed": 0,
        "periods": 10,
        "action_age_steps": {},
        "reasons": ["waiting:chunk", "waiting:sensor:imu"],
    },
    POLICY: {"inference_ms": {}, "residual_noise": None, "waiting_for": "sensor 'imu' has not come yet"},
}


class Nodes(Peer):
    """Recorder, controller and policy that do as they are told; the controller says the modes that it is given.

    Args:
        modes: what the controller says 0.1 s apart, once it is active.
        stopped_by: why it stopped, if it did.
    """

    def __init__(self, robot: RobotContract, middleware: dict[str, str], modes: list[str], stopped_by: list[str]):
        super().__init__(robot, middleware, "nodes")
        self._modes, self._stopped_by = list(modes), stopped_by
        self.resets = 0
        self.episodes: list[str] = []
        self.node.create_subscription(String, "episode", lambda said: self.episodes.append(said.data), qos.LATCHED)
        self._state = self.publisher("controller_state", String, qos.LATCHED)
        for name in NAMES:
            self._offer(GetState, f"{name}/get_state", lambda request, response: response)
            self._offer(ChangeState, f"{name}/change_state", self._change(name))
            self._offer(Trigger, f"{name}/statistics", self._statistics(name))
        self._offer(Trigger, f"{CONTROLLER}/reset_controller", self._reset)
        self._offer(SetParameters, f"{POLICY}/set_parameters", self._set)

    def _offer(self, kind, name, answer) -> None:
        self.node.create_service(kind, name, answer)

    def _change(self, name: str):
        def change(request, response):
            if name == CONTROLLER and request.transition.label == "activate":
                self._go_on()
            response.success = True
            return response

        return change

    def _go_on(self) -> None:
        if self._modes:
            self._state.publish(String(data=self._modes.pop(0)))
            threading.Timer(0.1, self._go_on).start()

    def _statistics(self, name: str):
        def tell(request, response):
            said = STATISTICS[name] | ({"stopped_by": self._stopped_by} if name == CONTROLLER else {})
            response.success, response.message = True, json.dumps(said)
            return response

        return tell

    def _reset(self, request, response):
        self.resets += 1
        self._state.publish(String(data="inactive"))
        response.success = True
        return response

    def _set(self, request, response):
        response.results = [SetParametersResult(successful=True) for _ in request.parameters]
        return response


@pytest.fixture
def make_runner(middleware):
    """make_runner(robot, steps, modes, stopped_by) -> (runner of that robot, if it were a real one, its nodes)."""
    with ExitStack() as opened:

        def make(name: str, steps: int, modes: list[str], stopped_by: list[str]) -> tuple[EpisodeRunner, Nodes]:
            robot = msgspec.structs.replace(load_robot(name), body="external")
            nodes = Nodes(robot, middleware, modes, stopped_by)
            opened.callback(nodes.close)
            client = GraphClient(robot, middleware, Monitor())
            opened.callback(client.close)
            return EpisodeRunner(client, NAMES, robot, "task", "Do it.", "state", steps, lambda name: True), nodes

        yield make


@pytest.fixture
def run_episode(make_runner):
    """run_episode(robot's name, steps, modes, stopped_by) -> EpisodeRow."""
    return lambda *how: make_runner(*how)[0].run(0, seed=1)


@pytest.mark.parametrize(
    ("robot", "modes", "reason"),
    [
        ("go2", ["damp", "stand_up", "run", "damp", "stopped"], "tilt"),
        ("go2", ["damp", "stand_up", "stopped"], "tilt"),
        ("metaworld_sawyer", ["hold", "run", "hold", "stopped"], "chunk"),
    ],
)
def test_an_episode_in_which_the_controller_stops_for_good_ends_and_is_no_success(run_episode, robot, modes, reason):
    """Pinned: nobody says of a real walking robot that it fell, and its run sat out its time and was a success."""
    row = run_episode(robot, 1000, modes, [reason])
    assert not row.success
    assert row.seconds < 3.0, "its limit is more than 10 s"
    said = io.StringIO()
    RunReport(robot, "p", "task", 1, 50.0, [row], "bag").show(Console(file=said, width=120))
    assert "0 of 1 succeeded" in said.getvalue()
    assert f"episode 0: the controller stopped ({reason})" in said.getvalue()


def test_a_real_robot_that_was_stopped_does_not_get_up_for_the_next_episode(make_runner):
    """A person looks at it first; and the recording says what it was told to do."""
    runner, nodes = make_runner("go2", 1000, ["damp", "stand_up", "run", "stopped"], ["tilt"])
    assert runner.run(0, seed=1).stopped_by == ("tilt",)
    resets = nodes.resets
    with pytest.raises(GraphError, match=r"controller_node stopped in the episode before \(tilt\): see to the robot"):
        runner.run(1, seed=2)
    assert nodes.resets == resets == 1
    described = json.loads(nodes.episodes[-1])
    assert (described["task_name"], described["task"], described["seed"]) == ("task", "Do it.", 1)


def test_a_real_robot_that_walks_until_its_time_is_over_is_a_success(run_episode):
    """What the controller does afterwards, when the policy is let go, does not count."""
    row = run_episode("go2", 20, ["damp", "stand_up", "run"], ["chunk"])
    assert row.success
    assert row.seconds == pytest.approx(0.4, abs=0.2)
    assert row.stopped_by == ()


@pytest.mark.parametrize("solved", [True, False])
def test_a_person_ends_a_real_robots_episode_by_saying_whether_it_was_a_success(make_runner, solved):
    """Regression: a robot went on until the time limit after it was said to have failed."""
    runner, nodes = make_runner("metaworld_sawyer", 1000, ["hold", "run"], [])
    judge = nodes.publisher("success", Bool, qos.STATUS)
    threading.Timer(1.0, lambda: judge.publish(Bool(data=solved))).start()
    row = runner.run(0, seed=1)
    assert row.success == solved
    assert row.seconds < 5.0, "its limit is more than 10 s"


def test_a_controller_that_goes_on_waiting_ends_the_run_with_what_it_waits_for(run_episode, monkeypatch):
    """Regression: the run sat out its time, said "no", and nothing told of the sensor that never came."""
    monkeypatch.setattr(episode_runner, "FIRST_CHUNK_S", 0.3)
    with pytest.raises(GraphError, match="controller_node does not follow the policy within") as caught:
        run_episode("metaworld_sawyer", 1000, ["hold"], [])
    for reason in ("waiting:chunk", "waiting:sensor:imu", "policy_node: sensor 'imu' has not come yet"):
        assert reason in str(caught.value)
