"""The far side of the topics: ROS nodes in the test's own process, in the test's hand."""

from __future__ import annotations

import threading
import time
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from contracts import RobotContract
from execution.deadline import DeadlineLoop
from ros_nodes import qos


class Peer:
    """Publishes, and keeps what it hears as (monotonic seconds, message)."""

    def __init__(
        self, robot: RobotContract, middleware: dict[str, str], name: str = "peer", namespace: str | None = None
    ) -> None:
        self._context = Context()
        domain = int(middleware["ROS_DOMAIN_ID"])
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node(name, namespace=namespace or "/" + robot.name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def listen(self, topic: str, kind: type, profile=qos.SENSOR) -> list[tuple[float, Any]]:
        messages: list[tuple[float, Any]] = []
        self.node.create_subscription(kind, topic, lambda m: messages.append((time.monotonic(), m)), profile)
        return messages

    def publisher(self, topic: str, kind: type, profile=qos.COMMAND):
        return self.node.create_publisher(kind, topic, profile)

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(timeout=5.0)  # before the context ends: while a thread still waits in it, that can hang
        self.node.destroy_node()
        self._context.try_shutdown()


class BeatingPeer(Peer):
    """A peer that does something at a rate, in a thread of its own, once `begin` is called."""

    def __init__(self, robot: RobotContract, middleware: dict[str, str], name: str, rate_hz: float) -> None:
        super().__init__(robot, middleware, name)
        self.loop = DeadlineLoop(rate_hz)
        self._beating = True
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def begin(self) -> None:
        """Everything that `beat` needs is there."""
        self._heart.start()

    def beat(self, tick: int) -> None:
        raise NotImplementedError

    def _beat(self) -> None:
        self.loop.restart()
        tick = 0
        while self._beating:
            self.loop.wait()
            self.beat(tick)
            tick += 1

    def close(self) -> None:
        self._beating = False
        self._heart.join()
        super().close()
