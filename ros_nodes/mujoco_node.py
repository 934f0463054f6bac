"""The simulated body: stands in for a robot, on exactly the topics of its contract.

One control period, at its deadline: take the newest command, publish what is measured now and what will be applied,
take the pictures that are due, then step the physics to the next deadline. So the measurements and the
`applied_command` of a period carry one stamp, and a command can only follow from measurements before it, as on a robot.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import numpy as np
from geometry_msgs.msg import WrenchStamped
from numpy.typing import NDArray
from rclpy.subscription import MessageInfo
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, Header, String
from std_srvs.srv import Trigger

from contracts import Sensor, load_robot
from contracts.messages import RefusedMessage, sensor_fields
from execution.deadline import DeadlineLoop
from ros_nodes import qos
from ros_nodes.body import Body, Push, make_body
from ros_nodes.conversions import (
    NANOSECONDS,
    SensorMessage,
    command_from_message,
    image_message,
    sensor_message,
    sensor_message_type,
    to_stamp,
)
from ros_nodes.managed_node import ManagedNode
from ros_nodes.node_main import run_node, spin_with_thread
from ros_nodes.pushes import push_from_message, push_message

LOOP_ANSWER_S = 60.0  # for the physics loop to carry out a request: another task compiles another model
THREAD_END_S = 2.0


class MujocoNode(ManagedNode):
    """A robot's simulated body, running in real time from `configure` to the end.

    Physics, rendering and publishing happen in one thread with a deadline of its own; callbacks only hand things to it.

    Parameters:
        robot: name or path of the robot's contract.
        task, seed: of the episode that the next `reset` (or `configure`) begins.
        observation_set: what the driving policy sees; only told to the recording.
        cameras: the cameras to be rendered.

    Services: `~/reset` begins an episode; `~/statistics` gives figures as JSON.
    """

    def __init__(self) -> None:
        super().__init__("mujoco_node")
        self.declare_parameter("robot", "metaworld_sawyer")
        self.declare_parameter("task", "drawer-open")
        self.declare_parameter("seed", 1)
        self.declare_parameter("observation_set", "state")
        self.declare_parameter("cameras", [""])
        self.refused: Counter[str] = Counter()
        self._body: Body | None = None
        self._loop: DeadlineLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._running = False
        self._episodes = 0
        self._commanded = False
        self._succeeded = False
        self._held_periods = 0
        self._requests: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()

    # -- lifecycle ---------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Load the robot and its world, announce the topics; nothing moves yet."""
        self._robot = load_robot(self._text("robot"))
        self._cameras = [self._robot.camera(name) for name in self.get_parameter("cameras").value if name]
        self._connect()
        self._closing.clear()
        self._loop = DeadlineLoop(self._robot.control_rate_hz)
        self._thread = threading.Thread(target=self._run, name="physics", daemon=True)
        self._thread.start()
        self._in_loop(self._make_body)

    def activate(self) -> None:
        """Let time pass: physics and sensors run."""
        self._running = True

    def deactivate(self) -> None:
        """Stop time."""
        self._running = False

    def close(self) -> None:
        """End the physics loop and let go."""
        self._running = False
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=THREAD_END_S)
            self._thread = None
        self._disconnect()

    @property
    def died(self) -> bool:
        """True when an error ended the physics (its traceback is on stderr)."""
        return self._thread is not None and not self._thread.is_alive() and not self._closing.is_set()

    # -- callbacks ---------------------------------------------------------------------------------------------------

    def _on_command(self, message: Float64MultiArray, info: MessageInfo) -> None:
        # A reliable topic delivers again what was lost, after the middleware's next heartbeat, up to 3 s later.
        age_s = (time.time_ns() - info["source_timestamp"]) / NANOSECONDS
        try:
            if age_s > self._robot.command.timeout_s:
                raise RefusedMessage("stale", f"a command sent {age_s:.2f} s ago")
            command = command_from_message(message, self._robot)
        except RefusedMessage as error:
            self._refuse(error.reason, error)
            return
        if self._body is not None:
            self._body.commands.put(command, time.monotonic_ns())

    def _on_push(self, message: WrenchStamped) -> None:
        try:
            push = push_from_message(message)
        except RefusedMessage as error:
            self._refuse(f"push.{error.reason}", error)
            return
        if self._body is not None:
            self._body.take_push(push, time.monotonic_ns())

    def _on_request(self, sensor: Sensor, message: SensorMessage) -> None:
        try:
            _, values = sensor_fields(message, sensor)
        except RefusedMessage as error:
            self._refuse(f"{sensor.name}.{error.reason}", error)
            return
        if self._body is not None:
            self._body.take_request(values, time.monotonic_ns())

    def _refuse(self, reason: str, error: RefusedMessage) -> None:
        self.refused[reason] += 1
        self._warn_refused(str(error))

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._in_loop(self._begin_episode)
        except (ValueError, TimeoutError) as error:
            response.success, response.message = False, str(error) or "the physics loop does not answer"
            return response
        response.success, response.message = True, self._text("task")
        return response

    def _on_statistics(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        loop = {} if self._loop is None else self._loop.statistics()
        figures = {"loop": loop, "refused": dict(self.refused), "held_periods": self._held_periods}
        figures["episode"] = {} if self._body is None else self._body.figures()
        response.success, response.message = True, json.dumps(figures)
        return response

    # -- the physics thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._loop is not None
        while not self._closing.is_set():
            now_ns = self._loop.wait()
            if not self._requests.empty():
                self._serve()  # and let this period pass: what announces an episode arrives before its measurements
            elif self._running and self._body is not None and self.context.ok():
                self._tick(self._body, now_ns)
        if self._body is not None:
            self._body.close()
            self._body = None

    def _serve(self) -> None:
        work, done = self._requests.get()
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)  # nobody waits for an answer in vain
            if not isinstance(error, (ValueError, ImportError)):  # no such task, no such simulator: it lives on
                raise

    def _tick(self, body: Body, now_ns: int) -> None:
        stamp = self.get_clock().now().nanoseconds
        command, commanded = body.command(now_ns)
        self._held_periods += not commanded
        self._commanded |= commanded
        measured, push = body.measurements(), body.push(now_ns)
        for sensor in self._sensors:
            self._sensor_publishers[sensor.name].publish(sensor_message(sensor, stamp, measured[sensor.name]))
        self._applied_publisher.publish(self._applied(command, stamp))
        if push is not None:
            self._push_publisher.publish(push_message(Push(push), stamp))
        for camera in body.due(self._cameras):
            picture = image_message(camera, stamp, body.picture(camera))
            self._camera_publishers[camera.name].publish(picture)
        if body.advance(command, push) != self._succeeded:
            self._tell_success(not self._succeeded)

    def _make_body(self) -> None:
        self._body = make_body(self._robot, self._text("task"), self._number("seed"))
        self._announce(self._body)

    def _begin_episode(self) -> None:
        assert self._body is not None
        self._body.reset(self._text("task"), self._number("seed"))
        self._episodes += self._commanded  # an episode that nobody drove is begun again, not counted
        self._commanded = False
        self._announce(self._body)

    def _announce(self, body: Body) -> None:
        """Tell the recording which episode begins, and start the figures anew."""
        assert self._loop is not None
        for camera in self._cameras:  # the first picture of a rendering context takes 0.2 s: not within a period
            body.picture(camera)
        episode = {
            "robot": self._robot.name,
            **body.episode,
            "episode": self._episodes,
            "observation_set": self._text("observation_set"),
        }
        self._episode_publisher.publish(String(data=json.dumps(episode)))
        self._tell_success(body.success)
        self._held_periods = 0
        self._loop.reset_statistics()

    def _tell_success(self, succeeded: bool) -> None:
        self._succeeded = succeeded
        self._success_publisher.publish(Bool(data=succeeded))

    def _applied(self, command: NDArray[np.float64], stamp: int) -> JointState:
        names = [channel.name for channel in self._robot.command.channels]
        return JointState(header=Header(stamp=to_stamp(stamp)), name=names, position=command.tolist())

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        robot = self._robot
        self._sensors = [sensor for sensor in robot.sensors if not sensor.is_request]
        self._sensor_publishers = {
            s.name: self._advertise(sensor_message_type(s), s.topic, qos.SENSOR) for s in self._sensors
        }
        self._camera_publishers = {c.name: self._advertise(Image, c.topic, qos.SENSOR) for c in self._cameras}
        self._applied_publisher = self._advertise(JointState, "applied_command", qos.STATUS)
        self._success_publisher = self._advertise(Bool, "success", qos.STATUS)
        self._episode_publisher = self._advertise(String, "episode", qos.LATCHED)
        self._listen(Float64MultiArray, robot.command.topic, self._on_command, qos.COMMAND)
        self._offer("~/reset", self._on_reset)
        self._offer("~/statistics", self._on_statistics)
        if robot.body == "quadruped":
            self._connect_walker()

    def _connect_walker(self) -> None:
        """What moves a walking robot besides its commands, and what it is asked for."""
        self._push_publisher = self._advertise(WrenchStamped, "applied_push", qos.STATUS)
        self._listen(WrenchStamped, "push", self._on_push, qos.SENSOR)
        for sensor in self._robot.sensors:
            if sensor.is_request:
                self._listen(sensor_message_type(sensor), sensor.topic, partial(self._on_request, sensor), qos.SENSOR)

    def _in_loop(self, work: Callable[[], None]) -> None:
        """Let the physics thread do something between two periods. Raises what it raised, or TimeoutError."""
        done: Future[None] = Future()
        self._requests.put((work, done))
        done.result(timeout=LOOP_ANSWER_S)

    def _text(self, name: str) -> str:
        return str(self.get_parameter(name).value)

    def _number(self, name: str) -> int:
        return int(self.get_parameter(name).value)


def main() -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(MujocoNode, spin=spin_with_thread)


if __name__ == "__main__":
    sys.exit(main())
