"""The controller: action chunks in, one safe command a control period out, whatever happens to the rest.

One thread does everything: at each absolute deadline it publishes the command, and it handles messages in the slack
until just before the next deadline. So nothing shares the interpreter lock with the control loop.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Float64MultiArray, Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from contracts import RobotContract, load_robot
from contracts.messages import RefusedMessage, SensorReader
from execution.clock import SteadyClock
from execution.controller import FUTURE_PERIODS, NANOSECONDS, Command, ControllerCore, Mode
from execution.deadline import DeadlineLoop, try_realtime
from execution.stitching import make_stitching
from ros_nodes import qos
from ros_nodes.commanders import OtherCommanders
from ros_nodes.conversions import SensorMessage, chunk_from_message, command_message, sensor_message_type, stamp_ns
from ros_nodes.managed_node import WARN_EVERY_S, ManagedNode, RefusedTransition
from ros_nodes.node_main import WAIT_S, Executor, Stop, run_node

REALTIME_PRIORITY = 50
PHASE = 0.75
"""Of a control period, from the robot's tick to the controller's. Late, so that a chunk inferred from the measurements
of the robot's latest tick is in time for its next one; a quarter of a period is left for the command's way, so that it
is no chance before which tick of the robot it arrives."""
DRIFT = 2e-3
"""Of a control period: how far a tick moves at most to stay there while it follows the policy. Twenty times what the
quartz of two computers drifts apart, and far less than what a tick is early or late by chance."""
QUIET_NS = 1_000_000  # before a deadline no callback begins ...
QUIET_FRACTION = 0.2  # ... or in this part of a short period
DIAGNOSTICS_S = 1.0
FOLLOWING = (Mode.STAND_UP, Mode.RUN)  # a command's reasons are then what the safety filter changed
LEVELS = {
    Mode.INACTIVE: DiagnosticStatus.OK,
    Mode.STAND_UP: DiagnosticStatus.OK,
    Mode.RUN: DiagnosticStatus.OK,
    Mode.HOLD: DiagnosticStatus.WARN,
    Mode.DAMP: DiagnosticStatus.WARN,
    Mode.STOPPED: DiagnosticStatus.ERROR,
}


class ControllerNode(ManagedNode):
    """Lifecycle node around a ControllerCore.

    Configured, it listens and publishes no command, so that something else may drive the robot; active, it publishes
    one every control period (the contract's fallback, until it has something to follow; then the robot stands up, if
    the contract says so, and follows); deactivated, it sends the fallback once, last.

    A robot has one commander: while somebody else publishes the command topic it is not activated, and active it stops.

    Parameters: `robot` (name or path of a contract), `stitching` (`latest` or `ensemble`).
    """

    def __init__(self, scheduling: str = "not asked for") -> None:
        """
        Args:
            scheduling: what `try_realtime` said, for the statistics.
        """
        super().__init__("controller_node")
        self._scheduling = scheduling
        self.declare_parameter("robot", "metaworld_sawyer")
        self.declare_parameter("stitching", "latest")
        self.loop: DeadlineLoop | None = None  # runs only while active
        self._core: ControllerCore | None = None
        self._steady = SteadyClock(lambda: int(self.get_clock().now().nanoseconds))
        self._figures: dict[str, Any] = {}  # of the latest activity
        self._counted: Counter[str] = Counter()
        self._counted_ages: Counter[int] = Counter()
        self._published_mode: Mode | None = None
        self._reasons: tuple[str, ...] = ()  # why it does not follow the policy
        self._said = ""
        self._following = False  # since the latest activation, now or before

    # --- lifecycle

    def configure(self) -> None:
        """Load the contract and listen."""
        self._robot = load_robot(self.get_parameter("robot").value)
        stitching = make_stitching(self.get_parameter("stitching").value)
        # The robot obeys from its next tick on, 1 - PHASE periods from now. Half a period more is the middle of the
        # action that is meant for that tick: neither side's jitter picks a neighbour.
        lead_ns = round((1.5 - PHASE) * self._robot.control_period_s * NANOSECONDS)
        stopped = self._core.stop_reasons if self._core is not None else ()  # cleaning up is no reset
        self._core = core = ControllerCore(self._robot, stitching, lead_ns=lead_ns, stop_reasons=stopped)
        self._figures = DeadlineLoop(self._robot.control_rate_hz).statistics() | {
            "counters": {},
            "action_age_steps": {},
        }
        self.get_logger().info(f"{self._robot.name} at {self._robot.control_rate_hz:g} Hz, {self._scheduling}")
        self._connect(self._robot, core)
        self._publish_mode(core.mode)

    def activate(self) -> None:
        """Take charge of the robot; refused while stopped, and while somebody else could command it."""
        core = self._configured()
        if others := self._others.names():
            raise RefusedTransition(
                f"{self._command_publisher.topic_name} is published by {', '.join(others)} too, and a robot that obeys"
                " two jumps between them. End the other first (one that was killed is listed for 20 s more); of two"
                " robots, each needs a command topic of its own"
            )
        if not core.activate(time.monotonic_ns()):
            why = ", ".join(core.stop_reasons)
            raise RefusedTransition(f"stopped ({why}); call ~/reset_controller when it is safe to go on")
        self._counted, self._counted_ages = Counter(core.counters), Counter(core.ages)
        self.loop = DeadlineLoop(self._robot.control_rate_hz)
        self.loop.pause_garbage_collection()
        self.loop.restart()
        self._align()
        self._following = False

    def deactivate(self) -> None:
        """Hold, and give up charge."""
        if self.loop is None:
            return
        core, now_ns = self._configured(), time.monotonic_ns()
        self.statistics()  # the last ones of this activity
        self.loop.resume_garbage_collection()
        self.loop = None
        core.deactivate(now_ns)
        self._obey(core.step(now_ns))

    def close(self) -> None:
        """Hold and let go."""
        self.deactivate()
        self._disconnect()
        self._published_mode = None  # on a topic of before

    # --- control

    def tick(self) -> None:
        """One control period."""
        core = self._configured()
        if self._others.names():
            core.stop(time.monotonic_ns(), "other_commander")
        command = core.step(time.monotonic_ns())
        self._obey(command)
        self._align()
        self._following |= command.mode in FOLLOWING

    def statistics(self) -> dict[str, Any]:
        """Figures since the latest activation (`DeadlineLoop.statistics`), what was counted, and the mode.

        `action_age_steps`: commands by their age in control periods (`ControllerCore.ages`). `reasons`: why it does not
        follow the policy now.
        """
        core = self._configured()
        if self.loop is not None:
            ages = {str(age): count for age, count in sorted((core.ages - self._counted_ages).items())}
            counted = {"counters": dict(core.counters - self._counted), "action_age_steps": ages}
            self._figures = self.loop.statistics() | counted
        state = {"mode": str(core.mode), "stopped_by": list(core.stop_reasons), "reasons": list(self._reasons)}
        return self._figures | state | {"scheduling": self._scheduling}

    def _align(self) -> None:
        """Put the next ticks where PHASE says, if the robot's are known: at once until it follows, then bit by bit."""
        tick_ns = self._configured().robot_tick_ns  # it may have begun to measure after the activation
        if self.loop is not None and tick_ns is not None:
            at_most_ns = round(DRIFT * self.loop.period_ns) if self._following else None
            self.loop.align(tick_ns + round(PHASE * self.loop.period_ns), at_most_ns)

    def _obey(self, command: Command) -> None:
        """Send what the core wants sent, and tell what it does."""
        if command.values is not None:
            self._command_publisher.publish(command_message(command.values, self._robot))
        self._publish_mode(command.mode)
        self._reasons = () if command.mode in FOLLOWING else command.reasons
        if (doing := self._doing()) != self._said and self._log(doing):
            self._said = doing

    def _doing(self) -> str:
        """The mode, and why it is not another."""
        return ": ".join(filter(None, (self._configured().mode, ", ".join(self._reasons))))

    def _log(self, doing: str) -> bool:
        """Say it, at most once a second: a robot that falters must not fill the disk. False if nothing was said."""
        if self._reasons:
            return bool(self.get_logger().warning(doing, throttle_duration_sec=WARN_EVERY_S))
        return bool(self.get_logger().info(doing, throttle_duration_sec=WARN_EVERY_S))

    def _publish_mode(self, mode: Mode) -> None:
        if mode is not self._published_mode:
            self._published_mode = mode
            self._mode_publisher.publish(String(data=str(mode)))

    def _configured(self) -> ControllerCore:
        assert self._core is not None  # rclpy's state machine lets nothing come before configure
        return self._core

    # --- topics and services

    def _connect(self, robot: RobotContract, core: ControllerCore) -> None:
        self._command_publisher = self._advertise(Float64MultiArray, robot.command.topic, qos.COMMAND)
        self._others = OtherCommanders(self, self._command_publisher.topic_name)
        self._mode_publisher = self._advertise(String, "controller_state", qos.LATCHED)
        diagnostics = self._advertise(DiagnosticArray, "/diagnostics", qos.STATUS)
        for sensor in core.needed_sensors:
            heard = partial(self._on_sensor, SensorReader(sensor))
            self._listen(sensor_message_type(sensor), sensor.topic, heard, qos.SENSOR)
        self._listen(JointTrajectory, "action_chunk", self._on_chunk, qos.CHUNK)
        self._listen(Header, "heartbeat", self._on_heartbeat, qos.HEARTBEAT)
        self._offer("~/statistics", self._on_statistics)
        self._offer("~/reset_controller", self._on_reset)
        self._every(DIAGNOSTICS_S, lambda: diagnostics.publish(self._diagnostics()))

    def _on_sensor(self, reader: SensorReader, message: SensorMessage) -> None:
        core = self._configured()
        sensor = reader.sensor.name
        try:
            read = reader.read(message)
        except RefusedMessage as error:
            self._refuse(f"sensor.{sensor}.{error.reason}", error)
            return
        stamp = self._steady.to_steady(stamp_ns(message.header.stamp))
        if read is not None and not core.on_fields(sensor, stamp, *read, time.monotonic_ns()):
            self._warn_refused(core.refusal)

    def _on_chunk(self, message: JointTrajectory) -> None:
        core = self._configured()
        start_ns = self._steady.to_steady(stamp_ns(message.header.stamp))
        try:
            chunk = chunk_from_message(message, round(self._robot.control_period_s * 1e9), start_ns)
        except RefusedMessage as error:
            self._refuse(f"chunk.{error.reason}", error)
            return
        if not core.on_chunk(chunk, time.monotonic_ns()):
            self._warn_refused(core.refusal)

    def _on_heartbeat(self, message: Header) -> None:
        now_ns = time.monotonic_ns()
        age_s = (now_ns - self._steady.to_steady(stamp_ns(message.stamp))) / 1e9
        if age_s > self._robot.task.heartbeat_timeout_s:
            self._refuse("heartbeat.stale", f"{age_s:.3f} s old")
        elif age_s < -FUTURE_PERIODS * self._robot.control_period_s:
            self._refuse("heartbeat.future", f"{-age_s:.3f} s ahead of this computer's clock")
        else:
            self._configured().on_heartbeat(now_ns)

    def _refuse(self, reason: str, why: object) -> None:
        self._configured().refuse(reason)
        self._warn_refused(f"{reason}: {why}")

    def _on_statistics(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = True, json.dumps(self.statistics())
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        core = self._configured()
        before = core.mode
        core.reset(time.monotonic_ns())
        self._reasons = ()
        self._publish_mode(core.mode)
        response.success, response.message = True, f"{before} -> {core.mode}"
        return response

    def _diagnostics(self) -> DiagnosticArray:
        core, statistics = self._configured(), self.statistics()
        status = DiagnosticStatus(
            level=LEVELS[core.mode],
            name=f"{self.get_fully_qualified_name()}: control loop",
            message=self._doing(),
            hardware_id=self.get_namespace(),  # of two robots of one model each has its own
        )
        status.values = [KeyValue(key=key, value=json.dumps(value)) for key, value in statistics.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        return array


def control(node: ControllerNode, executor: Executor, stop: Stop) -> None:
    """The process's one loop: a command at each deadline, callbacks between deadlines."""
    while not stop:
        if node.loop is None:
            executor.spin_once(WAIT_S)
            continue
        node.loop.wait()
        node.tick()
        handle_messages(node, executor)


def handle_messages(node: ControllerNode, executor: Executor) -> None:
    """Run callbacks until just before the next deadline, or until one of them ends the activity."""
    if node.loop is not None:
        node.loop.collect_in_slack()
    while (loop := node.loop) is not None:
        quiet_ns = min(QUIET_NS, int(QUIET_FRACTION * loop.period_ns))
        left_ns = loop.next_deadline_ns - quiet_ns - time.monotonic_ns()
        if left_ns <= 0:
            return
        executor.spin_once(left_ns / 1e9)


def main() -> int:
    """Entry point of the process."""
    # Before rclpy starts the middleware's threads, so that they inherit it: while one of them has a lock, the control
    # loop waits for it, and must not wait for everything else on that core too.
    scheduling = try_realtime(REALTIME_PRIORITY)
    return run_node(lambda: ControllerNode(scheduling), spin=control)


if __name__ == "__main__":
    sys.exit(main())
