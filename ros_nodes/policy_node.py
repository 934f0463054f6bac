"""The policy: sensors and pictures in, stamped action chunks out, and a sign of life for as long as it is well."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from contracts import Camera, PolicyContract, RobotContract, check_compatible, load_robot
from contracts.messages import RefusedMessage, SensorReader, image_array
from execution.chunk import ActionChunk
from execution.clock import SteadyClock
from execution.controller import FUTURE_PERIODS
from execution.deadline import DeadlineLoop, try_realtime
from execution.observation import Observation, ObservationAssembler
from policies.runtime import Runtime, Session
from ros_nodes import qos
from ros_nodes.conversions import SensorMessage, chunk_message, sensor_message_type, stamp_ns
from ros_nodes.graph import cameras_of
from ros_nodes.imagination import ImaginationTopics
from ros_nodes.inference import InferenceThread
from ros_nodes.managed_node import ManagedNode, RefusedTransition
from ros_nodes.middleware import buffer_warning
from ros_nodes.node_main import run_node, spin_with_thread

HEARTBEAT_HZ = 100.0
HEARTBEAT_PRIORITY = 40  # below the controller's
WARM_UP_INFERENCES = 3
STOP_S = 2.0  # an inference that was begun is waited for this long
SAY_WAITING_S = 2.0  # how often it says what it waits for
NOT_NEWER = "its stamp is not newer than the last one's"


class Heartbeat:
    """Publishes a stamped Header at HEARTBEAT_HZ from a thread of its own while `healthy` says so."""

    def __init__(self, publisher: Publisher, stamp: Callable[[], Any], healthy: Callable[[], bool]) -> None:
        self._publisher = publisher
        self._stamp = stamp
        self._healthy = healthy
        self._running = True
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further sign of life after this."""
        self._running = False
        self._thread.join()

    def _run(self) -> None:
        try_realtime(HEARTBEAT_PRIORITY)  # a sign of life that comes late costs a hold
        loop = DeadlineLoop(HEARTBEAT_HZ)
        while self._running:
            if self._healthy():
                self._publisher.publish(Header(stamp=self._stamp(), frame_id="policy"))
            loop.wait()


class PolicyNode(ManagedNode):
    """Lifecycle node around a Runtime.

    Configured, its policy is loaded and warm; active, it infers and publishes; each activation is a new episode, with
    a session that starts from the parameters `seed`, `instruction` and `prefix` as they are then.

    Parameters: `robot` (name or path of a contract), `bundle` (directory), `backend` (`openvino`, `onnxruntime`),
    `threads` (of the inference), `seed`, `instruction` (what to do, in words of the policy's contract; may be empty if
    it knows one task only), `prefix` (first actions of a chunk that repeat those of the chunk before),
    `imagine_hz` (how often pictures that the policy imagines are published, see `ImaginationTopics`; 0: never).
    """

    def __init__(self) -> None:
        super().__init__("policy_node")
        self.declare_parameter("robot", "metaworld_sawyer")
        self.declare_parameter("bundle", "")
        self.declare_parameter("backend", "openvino")
        self.declare_parameter("threads", 1)
        self.declare_parameter("seed", 0)
        self.declare_parameter("instruction", "")
        self.declare_parameter("prefix", 0)
        self.declare_parameter("imagine_hz", 0.0)
        self._steady = SteadyClock(lambda: int(self.get_clock().now().nanoseconds))
        self._inference: InferenceThread | None = None
        self._heartbeat: Heartbeat | None = None
        self._imagination: ImaginationTopics | None = None

    # --- lifecycle

    def configure(self) -> None:
        """Load the policy, compare the contracts, warm up, and listen."""
        self._robot = load_robot(self._parameter("robot"))
        self._runtime = Runtime.load(self._parameter("bundle"), self._parameter("backend"), self._parameter("threads"))
        check_compatible(self._runtime.contract, self._robot)
        if warning := buffer_warning(self._robot, cameras_of(self._runtime.contract)):
            self.get_logger().warning(warning)
        session = self._start(seed=0)
        imagine_hz = self._parameter("imagine_hz")
        self._imagination = ImaginationTopics(self, self._robot, session, imagine_hz) if imagine_hz else None
        self._warm_up(session)
        self._connect(self._robot, self._runtime.contract)

    def activate(self) -> None:
        """Begin an episode."""
        if self._inference is not None and not self._inference.stop(0.0):
            raise RefusedTransition("an inference of the episode before still runs")
        contract, seed = self._runtime.contract, self._parameter("seed")
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        session = self._start(seed)
        self._inference = InferenceThread(
            ObservationAssembler(self._robot, contract),
            contract,
            session,
            self._steady.now_ns,
            partial(self._publish_chunk, session),
        )
        limit_s = self._robot.task.chunk_timeout_s
        healthy = partial(self._inference.healthy, limit_s)
        self._heartbeat = Heartbeat(self._heartbeat_publisher, lambda: self.get_clock().now().to_msg(), healthy)

    def deactivate(self) -> None:
        """End the episode: no more chunks, no more signs of life."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._inference is not None and not self._inference.stop(STOP_S):
            self.get_logger().warning(f"an inference still runs {STOP_S} s after the end of the episode")

    def close(self) -> None:
        """End the episode and let go."""
        self.deactivate()
        if self._imagination is not None:
            self._imagination.close()
            self._imagination = None
        self._disconnect()

    @property
    def died(self) -> bool:
        """True when an error ended the inference."""
        return self._inference is not None and self._inference.died

    # --- the episode

    def _start(self, seed: int) -> Session:
        """A session of what the parameters ask for. Raises ValueError: the policy cannot do it."""
        return self._runtime.start(seed, self._parameter("instruction") or None, self._parameter("prefix"))

    def _warm_up(self, session: Session) -> None:
        """The first inferences are slow: allocations, thread pools, caches. Nothing waits for them here."""
        contract = self._runtime.contract
        values = {
            o.feature.key: np.zeros((o.history, *o.feature.shape), dtype=o.feature.dtype) for o in contract.observations
        }
        for _ in range(WARM_UP_INFERENCES):
            start = time.monotonic()
            session.act(Observation(0, values))
            seconds = time.monotonic() - start
        self.get_logger().info(f"{contract.policy} policy is ready; an inference takes {1e3 * seconds:.1f} ms")

    def _publish_chunk(self, session: Session, chunk: ActionChunk) -> None:
        chunk = replace(chunk, start_ns=self._steady.to_other(chunk.start_ns))  # inside all stamps are steady time
        self._chunk_publisher.publish(chunk_message(chunk, chunk.start_ns))
        if self._imagination is not None:
            self._imagination.show(chunk, session)

    # --- topics and services

    def _connect(self, robot: RobotContract, contract: PolicyContract) -> None:
        self._chunk_publisher = self._advertise(JointTrajectory, "action_chunk", qos.CHUNK)
        self._heartbeat_publisher = self._advertise(Header, "heartbeat", qos.HEARTBEAT)
        seen = ObservationAssembler(robot, contract)
        for sensor in seen.sensors:
            heard = partial(self._on_sensor, SensorReader(sensor))
            self._listen(sensor_message_type(sensor), sensor.topic, heard, qos.SENSOR)
        for camera in seen.cameras:
            self._listen(Image, camera.topic, partial(self._on_image, camera), qos.SENSOR)
        self._offer("~/statistics", self._on_statistics)
        self._every(SAY_WAITING_S, self._say_waiting)

    def _on_sensor(self, reader: SensorReader, message: SensorMessage) -> None:
        inference = self._inference
        if inference is None:
            return
        sensor = reader.sensor
        try:
            read = reader.read(message)
            if read is None:
                return
            stamp = self._steady.now_ns() if sensor.is_request else self._checked_stamp(message.header)
            with inference.collecting() as assembler:
                accepted = assembler.push_fields(sensor.name, stamp, *read)
        except RefusedMessage as error:
            self._refuse(inference, f"sensor.{sensor.name}.{error.reason}", error)
            return
        except ValueError as error:  # a number that the 32 bits of an observation cannot hold
            self._refuse(inference, f"sensor.{sensor.name}.range", error)
            return
        if not accepted:
            self._refuse(inference, f"sensor.{sensor.name}.out_of_order", NOT_NEWER)

    def _on_image(self, camera: Camera, message: Image) -> None:
        inference = self._inference
        if inference is None:
            return
        try:
            stamp = self._checked_stamp(message.header)
            image = image_array(message, camera)
        except RefusedMessage as error:
            self._refuse(inference, f"camera.{camera.name}.{error.reason}", error)
            return
        with inference.collecting() as assembler:
            accepted = assembler.push_image(camera.name, stamp, image)
        if not accepted:
            self._refuse(inference, f"camera.{camera.name}.out_of_order", NOT_NEWER)

    def _refuse(self, inference: InferenceThread, reason: str, why: object) -> None:
        inference.refuse(reason)
        self._warn_refused(f"{reason}: {why}")

    def _say_waiting(self) -> None:
        if self._inference is not None and (missing := self._inference.waiting_for) is not None:
            self.get_logger().warning(f"there is nothing to infer from: {missing}")

    def _checked_stamp(self, header: Header) -> int:
        """The stamp in steady time, or a step back of ROS time would make all that follows look old.

        One from the future would do the same.
        """
        stamp = self._steady.to_steady(stamp_ns(header.stamp))
        ahead_s = (stamp - self._steady.now_ns()) / 1e9
        if ahead_s > FUTURE_PERIODS * self._robot.control_period_s:
            raise RefusedMessage("future", f"the stamp is {ahead_s:.3f} s ahead of this computer's clock")
        return stamp

    def _on_statistics(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._inference is not None
        response.message = json.dumps(self._inference.statistics()) if self._inference else "was never active"
        return response

    def _parameter(self, name: str) -> Any:
        return self.get_parameter(name).value


def main() -> int:
    """Entry point of the process."""
    return run_node(PolicyNode, spin=spin_with_thread)


if __name__ == "__main__":
    sys.exit(main())
