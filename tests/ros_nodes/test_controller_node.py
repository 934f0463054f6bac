"""The controller's process, seen over real topics: a robot and a policy that are in the test's hand on the far side."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from std_msgs.msg import Float64MultiArray, Header, String
from trajectory_msgs.msg import JointTrajectory

from contracts import RobotContract
from execution.chunk import ActionChunk
from ros_nodes import qos
from ros_nodes.conversions import chunk_message, sensor_message, to_stamp
from ros_nodes.graph import CONTROLLER, THREADS, NodeProcess
from ros_nodes.graph_client import GraphClient, GraphError
from ros_nodes.monitor import Monitor
from ros_nodes.processes import NodeProcesses
from tests.ros_nodes.peers import BeatingPeer, Peer

PERIOD_NS = 12_500_000
ACTION = [0.1, -0.2, 0.3, 0.7]
MIDDLE = (0.0, 0.6, 0.2)
HOLD_ZERO = [0.0, 0.0, 0.0]
HOLD_WITHIN_S = 0.1


@pytest.fixture(scope="module")
def controller(robot, graph):
    """The client of a configured controller."""
    node = NodeProcess(CONTROLLER, "ros_nodes.controller_node", "/" + robot.name, {"robot": robot.name}, THREADS)
    return graph.start(node)


class FarSide(BeatingPeer):
    """A robot that measures and a policy that acts, 80 times a second; each can fall silent, or say something else."""

    def __init__(self, robot, middleware: dict[str, str]) -> None:
        super().__init__(robot, middleware, "far_side", rate_hz=80)
        self._robot = robot
        self.alive = {"sensor", "heartbeat", "chunk"}
        self.position = MIDDLE
        self.drift_ns = 0  # by which each of its periods is too long
        self.last: dict[str, float] = {}
        self.measured: list[float] = []
        self._sensor = next(s for s in robot.sensors if s.name == "end_effector")
        self.pose = self.publisher(self._sensor.topic, PoseStamped, qos.SENSOR)
        self.heartbeat = self.publisher("heartbeat", Header, qos.HEARTBEAT)
        self.chunk = self.publisher("action_chunk", JointTrajectory, qos.CHUNK)
        self.commands = self.listen(robot.command.topic, Float64MultiArray, qos.COMMAND)
        self.modes = self.listen("controller_state", String, qos.LATCHED)
        self.diagnostics = self.listen("/diagnostics", DiagnosticArray, qos.STATUS)
        self.begin()

    def a_chunk(self, action=ACTION, horizon: int = 16, names=None) -> JointTrajectory:
        """A chunk of one action for now."""
        actions = np.tile(np.asarray(action, dtype=np.float64), (horizon, 1))
        now = time.time_ns()
        return chunk_message(ActionChunk(actions, now, PERIOD_NS, names or self._robot.action_feature.names), now)

    def newest(self) -> list[float]:
        return list(self.commands[-1][1].data)

    def beat(self, tick: int) -> None:
        self.loop.align(self.loop.next_deadline_ns + self.drift_ns)
        if "sensor" in self.alive:
            self.pose.publish(sensor_message(self._sensor, time.time_ns(), self.position))
            self.last["sensor"] = time.monotonic()
            self.measured.append(self.last["sensor"])
        if "heartbeat" in self.alive:
            self.heartbeat.publish(Header(stamp=to_stamp(time.time_ns())))
            self.last["heartbeat"] = time.monotonic()
        if "chunk" in self.alive and tick % 8 == 0:
            self.chunk.publish(self.a_chunk())


@pytest.fixture(scope="module")
def far_side(robot, controller, middleware, wait_for):
    """The FarSide of this module: to find each other takes ROS nodes seconds."""
    far = FarSide(robot, middleware)
    connected = (far.pose, far.heartbeat, far.chunk)
    wait_for(lambda: all(p.get_subscription_count() for p in connected), what="discovery of the controller")
    wait_for(lambda: far.modes, what="the controller's mode")
    yield far
    far.close()


@pytest.fixture
def far(far_side, controller, wait_for):
    """A healthy FarSide that has heard no command yet, and a controller that is not active."""
    far_side.alive, far_side.position, far_side.drift_ns = {"sensor", "heartbeat", "chunk"}, MIDDLE, 0
    controller.trigger(CONTROLLER, "reset_controller", 5.0)
    wait_for(lambda: far_side.modes[-1][1].data == "inactive", what="the controller's rest")
    time.sleep(0.03)  # what was sent last is heard
    far_side.commands.clear()
    yield far_side
    controller.wait_for([controller.begin_transition(CONTROLLER, "deactivate")], 5.0)


@pytest.fixture
def running(controller, far, wait_for):
    """A FarSide whose chunks are being executed."""
    activate(controller)
    wait_for(lambda: far.commands and far.newest() == ACTION, what="the policy's command")
    return far


def activate(controller) -> None:
    controller.wait_for([controller.begin_transition(CONTROLLER, "deactivate")], 5.0)
    controller.trigger(CONTROLLER, "reset_controller", 5.0)
    controller.transition([CONTROLLER], "activate", 5.0)


def statistics(controller) -> dict:
    return json.loads(controller.trigger(CONTROLLER, "statistics", 5.0))


def counted(controller, wait_for, reason: str) -> None:
    wait_for(lambda: statistics(controller)["counters"].get(reason, 0) > 0, what=f"a count of {reason}")


def usual_phase(times_s) -> float:
    """Of what happens 80 times a second, in periods. A median on the circle: a busy machine delays some of it."""
    phases = np.asarray(times_s) * 80
    middle = np.angle(np.exp(2j * np.pi * phases).mean()) / (2 * np.pi)
    return middle + np.median((phases - middle + 0.5) % 1 - 0.5)


def test_configured_it_sends_nothing_active_it_sends_every_period(controller, far, wait_for) -> None:
    time.sleep(0.2)
    assert not far.commands, "something else may drive the robot"
    far.alive.discard("chunk")
    activate(controller)
    wait_for(lambda: len(far.commands) > 80, what="a second of commands")
    assert all(list(m.data) == [0, 0, 0, 0] for _, m in far.commands), "without a chunk it holds"
    assert far.modes[-1][1].data == "hold"
    far.alive.add("chunk")
    wait_for(lambda: far.newest() == ACTION, what="the policy's command")
    wait_for(lambda: far.modes[-1][1].data == "run", what="the mode")


def test_it_says_how_old_the_commands_of_this_activity_were(controller, running, wait_for) -> None:
    """Chunks come every eighth period, and the robot obeys in the next one."""
    wait_for(lambda: sum(statistics(controller)["action_age_steps"].values()) > 80, what="a second of commands")
    ages = statistics(controller)["action_age_steps"]
    assert sum(count for age, count in ages.items() if 1 <= int(age) <= 8) > 0.8 * sum(ages.values())
    running.alive.discard("chunk")
    activate(controller)
    assert statistics(controller)["action_age_steps"] == {}


def test_deactivated_it_sends_hold_last(controller, running, wait_for) -> None:
    controller.transition([CONTROLLER], "deactivate", 5.0)
    wait_for(lambda: running.modes[-1][1].data == "inactive", what="the mode")
    time.sleep(0.1)
    assert running.newest() == [*HOLD_ZERO, 0.7], "velocities zero, the gripper keeps its grip"
    heard = len(running.commands)
    time.sleep(0.1)
    assert len(running.commands) == heard


@pytest.mark.parametrize(("lost", "timeout_s"), [("heartbeat", 0.06), ("sensor", 0.1)])
def test_when_the_far_side_falls_silent_it_holds_and_later_stops_for_good(
    controller, running, wait_for, lost, timeout_s
) -> None:
    running.alive.discard(lost)
    wait_for(lambda: running.newest()[:3] == HOLD_ZERO, what="hold")
    moving = [at for at, m in running.commands if list(m.data)[:3] != HOLD_ZERO]
    assert max(moving) - running.last[lost] < max(HOLD_WITHIN_S, timeout_s + 0.02)
    wait_for(lambda: running.modes[-1][1].data == "stopped", what="the stop for good")
    running.alive.add(lost)
    time.sleep(0.2)
    assert running.newest()[:3] == HOLD_ZERO
    assert statistics(controller)["stopped_by"] == ["sensor:end_effector" if lost == "sensor" else lost]
    controller.transition([CONTROLLER], "deactivate", 5.0)
    with pytest.raises(GraphError):
        controller.transition([CONTROLLER], "activate", 5.0)
    activate(controller)
    wait_for(lambda: running.newest() == ACTION, what="the policy's command after a reset")


def break_number(chunk: JointTrajectory) -> None:
    chunk.points[3].positions[1] = float("nan")


def break_names(chunk: JointTrajectory) -> None:
    chunk.joint_names[0] = "elbow"


def break_size(chunk: JointTrajectory) -> None:
    chunk.points[15].positions.pop()


def break_period(chunk: JointTrajectory) -> None:
    chunk.points[1].time_from_start.nanosec *= 2


def empty(chunk: JointTrajectory) -> None:
    chunk.points.clear()


def make_old(chunk: JointTrajectory) -> None:
    chunk.header.stamp.sec -= 1


def make_early(chunk: JointTrajectory) -> None:
    chunk.header.stamp.sec += 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (break_number, "non_finite"),
        (break_names, "names"),
        (break_size, "size"),
        (empty, "size"),
        (break_period, "period"),
        (make_old, "stale"),
        (make_early, "future"),
    ],
)
def test_a_chunk_that_is_wrong_is_never_executed(controller, far, wait_for, spoil, reason) -> None:
    """Its policy says nothing else, so whatever moved the robot would be the wrong chunk."""
    far.alive.discard("chunk")
    activate(controller)
    wait_for(lambda: far.commands, what="hold")
    for _ in range(3):
        chunk = far.a_chunk()
        spoil(chunk)
        far.chunk.publish(chunk)
    counted(controller, wait_for, f"refused.chunk.{reason}")
    time.sleep(0.1)
    assert all(list(m.data) == [0, 0, 0, 0] for _, m in far.commands)


def test_a_wrong_chunk_in_between_does_not_disturb_the_right_ones(controller, running, wait_for) -> None:
    seen = len(running.commands)
    chunk = running.a_chunk([0.8, 0.8, 0.8, 0.8])
    break_number(chunk)
    running.chunk.publish(chunk)
    counted(controller, wait_for, "refused.chunk.non_finite")
    wait_for(lambda: len(running.commands) > seen + 40, what="half a second of commands")
    assert all(list(m.data) == ACTION for _, m in running.commands[seen:])


def test_channels_are_found_by_name(controller, far, wait_for, robot) -> None:
    far.alive.discard("chunk")
    activate(controller)
    wait_for(lambda: far.commands, what="hold")
    order = [3, 1, 0, 2]
    names = tuple(robot.action_feature.names[i] for i in order)
    far.chunk.publish(far.a_chunk([ACTION[i] for i in order], names=names))
    wait_for(lambda: ACTION in [list(m.data) for _, m in far.commands], what="the command in the robot's order")


@pytest.mark.parametrize(
    ("position", "reason"), [((float("nan"), 0.6, 0.2), "non_finite"), ((float("inf"), 0.6, 0.2), "non_finite")]
)
def test_a_robot_that_measures_nonsense_is_not_moved(controller, running, wait_for, position, reason) -> None:
    running.position = position
    wait_for(lambda: running.newest()[:3] == HOLD_ZERO, what="hold")
    counted(controller, wait_for, f"refused.sensor.end_effector.{reason}")


def test_a_robot_outside_its_limits_is_only_moved_back(controller, running, wait_for) -> None:
    running.position = (0.6, 0.6, -0.1)
    wait_for(lambda: running.newest() == [0.0, -0.2, 0.3, 0.7], what="x stopped, z on its way back")
    counted(controller, wait_for, "limited.position:ee_velocity_x")


def test_a_command_beyond_the_range_is_cut(controller, far, wait_for) -> None:
    far.alive.discard("chunk")
    activate(controller)
    wait_for(lambda: far.commands, what="hold")
    far.chunk.publish(far.a_chunk([5.0, 0.0, 0.0, -3.0]))
    wait_for(lambda: [0.8, 0.0, 0.0, -1.0] in [list(m.data) for _, m in far.commands], what="the cut command")


def test_it_keeps_its_rate_and_says_so(controller, running, wait_for) -> None:
    activate(controller)
    running.commands.clear()
    wait_for(lambda: len(running.commands) > 240, what="three seconds of commands")
    figures = statistics(controller)
    assert figures["rate_hz"] == pytest.approx(80, rel=0.02), figures
    assert figures["periods"] >= 240
    assert figures["missed"] <= 5, figures  # the machine runs the test, too; `visuomotor run` shows 0
    assert set(figures["period_error_us"]) == {"p50", "p99", "max"}
    assert figures["mode"] == "run"
    wait_for(lambda: running.diagnostics, what="diagnostics")
    values = {v.key: v.value for v in running.diagnostics[-1][1].status[0].values}
    assert json.loads(values["period_error_us"])["max"] >= 0
    controller.transition([CONTROLLER], "deactivate", 5.0)
    before = statistics(controller)
    time.sleep(0.2)
    assert statistics(controller) == before, "the figures are of the activity, not of the time after"


def test_cleaning_up_is_no_reset_and_the_mode_is_told_anew(controller, running, robot, middleware, wait_for) -> None:
    """Regression: a lifecycle manager that starts its nodes anew set a stopped robot going."""
    running.alive.clear()
    wait_for(lambda: running.modes[-1][1].data == "stopped", what="the stop")
    for transition in ("deactivate", "cleanup", "configure"):
        controller.transition([CONTROLLER], transition, 5.0)
    late = Peer(robot, middleware, "late")
    modes = late.listen("controller_state", String, qos.LATCHED)
    wait_for(lambda: modes and modes[-1][1].data == "stopped", what="the mode for who comes late")
    late.close()
    with pytest.raises(GraphError):
        controller.transition([CONTROLLER], "activate", 5.0)


def test_its_commands_lie_between_the_robots_ticks(controller, running, wait_for) -> None:
    """At every activation: otherwise chance decides which of two actions is meant for now, and when it is obeyed."""
    for _ in range(3):
        activate(controller)
        running.commands.clear()
        running.measured.clear()
        wait_for(lambda: len(running.commands) > 40, what="commands")
        heard = usual_phase([at for at, _ in running.commands]) - usual_phase(running.measured)
        assert 0.65 < heard % 1 < 0.95, heard  # late, and yet in time for the next one


def test_its_commands_lie_between_the_ticks_of_a_robot_that_measures_only_later(controller, far, wait_for) -> None:
    """As under `ros2 launch`. Regression: then they lay wherever they happened to, for as long as it was active."""
    far.alive.clear()
    controller.transition([CONTROLLER], "cleanup", 5.0)
    controller.transition([CONTROLLER], "configure", 5.0)  # it has never heard of this robot
    wait_for(lambda: all(p.get_subscription_count() for p in (far.pose, far.heartbeat, far.chunk)), what="discovery")
    for _ in range(20):  # until chance puts them elsewhere
        activate(controller)
        far.commands.clear()
        wait_for(lambda: len(far.commands) > 10, what="commands that hold")
        if 0.05 < (usual_phase([at for at, _ in far.commands]) - usual_phase(far.measured)) % 1 < 0.45:
            break
    far.alive.update({"sensor", "heartbeat", "chunk"})
    wait_for(lambda: far.newest() == ACTION, what="the policy's command")
    far.commands.clear()
    far.measured.clear()
    wait_for(lambda: len(far.commands) > 40 and len(far.measured) > 40, what="commands")
    heard = usual_phase([at for at, _ in far.commands]) - usual_phase(far.measured)
    assert 0.65 < heard % 1 < 0.95, heard


@pytest.mark.parametrize("drift", [1.5e-3, -1.5e-3])
def test_its_commands_stay_between_the_ticks_of_a_robot_whose_clock_drifts(running, wait_for, drift) -> None:
    """Regression: after minutes of quartz drift, chance decided which action was meant for now."""
    running.drift_ns = round(drift * PERIOD_NS)
    running.measured.clear()
    wait_for(lambda: len(running.measured) > 300, what="a drift of 0.45 periods")
    running.commands.clear()
    running.measured.clear()
    wait_for(lambda: len(running.commands) > 40 and len(running.measured) > 40, what="commands")
    heard = usual_phase([at for at, _ in running.commands]) - usual_phase(running.measured)
    assert 0.65 < heard % 1 < 0.95, heard


def test_it_says_in_log_and_diagnostics_why_the_robot_waits_and_what_it_refuses(
    controller, far, graph, wait_for
) -> None:
    """Regression: a driver with a wrong frame or clock gave no sign anywhere but a count."""
    far.alive.discard("chunk")
    log = graph.processes.log(CONTROLLER)
    heard = len(log.read_text())
    activate(controller)
    wait_for(lambda: "hold: waiting:chunk" in log.read_text()[heard:], what="the reason")
    wait_for(lambda: statistics(controller)["reasons"] == ["waiting:chunk"], what="the heartbeat")
    wait_for(lambda: diagnosis(far) == "hold: waiting:chunk", what="the diagnostics")

    def is_refused(ahead_ns: int, frame: str, reason: str) -> bool:
        """Of all that is refused within a second, only the first is logged: so a driver that is wrong is so again."""
        message = sensor_message(far._sensor, time.time_ns() + ahead_ns, MIDDLE)
        message.header.frame_id = frame
        far.pose.publish(message)
        return reason in log.read_text()[heard:]

    wait_for(lambda: is_refused(0, "table", "frame 'table', not 'base'"), what="the refused frame")
    wait_for(lambda: is_refused(10**9, "base", "refused: sensor.end_effector.future"), what="the refused stamp")
    far.alive.add("chunk")
    wait_for(lambda: "controller_node]: run\n" in log.read_text()[heard:], what="run")
    assert statistics(controller)["reasons"] == []


def test_it_survives_a_lifecycle_request_that_makes_no_sense(controller, far, wait_for) -> None:
    with pytest.raises(GraphError):
        controller.transition([CONTROLLER], "configure", 5.0)
    activate(controller)
    wait_for(lambda: far.commands and far.newest() == ACTION, what="the policy's command")


def test_a_robot_or_a_stitching_that_nobody_knows_is_refused_by_name(robot, middleware, tmp_path) -> None:
    elsewhere = RobotContract.from_dict(robot.to_dict() | {"name": "elsewhere"})
    processes = NodeProcesses(tmp_path, dict(os.environ) | middleware, lambda *_: None)
    node = NodeProcess(CONTROLLER, "ros_nodes.controller_node", "/elsewhere", {"robot": "nobody"}, THREADS)
    processes.start(node)
    client = GraphClient(elsewhere, middleware, Monitor())
    try:
        with pytest.raises(GraphError, match="could not configure"):
            client.transition([CONTROLLER], "configure", 20.0)
        client.set_parameters(CONTROLLER, {"robot": robot.name, "stitching": "sewing"}, 5.0)
        with pytest.raises(GraphError, match="could not configure"):
            client.transition([CONTROLLER], "configure", 5.0)
        log = processes.log(CONTROLLER).read_text()
        assert "no robot 'nobody': there are a1, aliengo, go2, metaworld_sawyer" in log
        assert "latest and ensemble, not 'sewing'" in log
        client.set_parameters(CONTROLLER, {"stitching": "ensemble"}, 5.0)
        client.transition([CONTROLLER], "configure", 5.0)
    finally:
        client.close()
        processes.stop([CONTROLLER], 5.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_sends_hold_last_and_ends_cleanly(robot, middleware, peer, tmp_path, wait_for, number) -> None:
    elsewhere = RobotContract.from_dict(robot.to_dict() | {"name": "elsewhere"})
    ended: list[str] = []
    processes = NodeProcesses(tmp_path, dict(os.environ) | middleware, lambda name, how: ended.append(how))
    processes.start(NodeProcess(CONTROLLER, "ros_nodes.controller_node", "/elsewhere", {"robot": robot.name}, THREADS))
    commands = peer.listen("/elsewhere/commands", Float64MultiArray, qos.COMMAND)
    client = GraphClient(elsewhere, middleware, Monitor())
    try:
        client.transition([CONTROLLER], "configure", 20.0)
        client.transition([CONTROLLER], "activate", 5.0)
        wait_for(lambda: len(commands) > 5, what="commands")
        os.kill(processes.pids[CONTROLLER], number)
        wait_for(lambda: ended, what="the end")
        assert ended == ["exit code 0"]
        assert list(commands[-1][1].data) == [0, 0, 0, 0]
    finally:
        client.close()
        processes.stop([CONTROLLER], 5.0)


# --- a robot has one commander


@pytest.fixture
def rival(robot, middleware):
    """A node that is about to command the same robot; it has said nothing yet."""
    peer = Peer(robot, middleware, "teleoperation", "/elsewhere")
    peer.publisher(f"/{robot.name}/{robot.command.topic}", Float64MultiArray, qos.COMMAND)
    yield peer
    peer.close()


def test_while_another_could_command_the_robot_it_does_not_take_charge(controller, graph, far, rival, wait_for) -> None:
    wait_for(lambda: commanders(far) == 3, what="discovery of the other, beside the controller and its supervisor")
    wait_for(lambda: refused_activation(controller), what="discovery in the controller too")
    assert far.modes[-1][1].data == "inactive"
    far.commands.clear()
    time.sleep(0.1)
    assert not far.commands
    log = graph.processes.log(CONTROLLER).read_text()
    assert "/metaworld_sawyer/commands is published by /elsewhere/teleoperation too" in log
    rival.close()
    wait_for(lambda: not refused_activation(controller), what="activation without the other")
    wait_for(lambda: far.commands and far.newest() == ACTION, what="the policy's command")


def test_another_commander_stops_it_for_good(robot, middleware, controller, running, wait_for) -> None:
    rival = Peer(robot, middleware, CONTROLLER, f"/{robot.name}")  # of the same name, as of a second launch
    try:
        rival.publisher(robot.command.topic, Float64MultiArray, qos.COMMAND)
        wait_for(lambda: running.modes[-1][1].data == "stopped", what="the stop")
        wait_for(lambda: running.newest()[:3] == HOLD_ZERO, what="the hold")
        assert statistics(controller)["stopped_by"] == ["other_commander"]
        running.modes.clear()
        controller.trigger(CONTROLLER, "reset_controller", 5.0)
        wait_for(lambda: said(running) == ["hold", "stopped"], what="the stop again, while it is still there")
    finally:
        rival.close()
    wait_for(lambda: commanders(running) == 2, what="the other's farewell")
    time.sleep(0.1)  # known to the controller too
    assert running.newest()[:3] == HOLD_ZERO, "only a person says that it is safe to go on"
    controller.trigger(CONTROLLER, "reset_controller", 5.0)
    wait_for(lambda: running.newest() == ACTION, what="the policy's command")


def diagnosis(far: FarSide) -> str | None:
    return far.diagnostics[-1][1].status[0].message if far.diagnostics else None


def said(far: FarSide) -> list[str]:
    return [mode.data for _, mode in far.modes]


def commanders(far: FarSide) -> int:
    return far.node.count_publishers(far.node.resolve_topic_name(far._robot.command.topic))


def refused_activation(controller) -> bool:
    try:
        activate(controller)
    except GraphError:
        return True
    return False
