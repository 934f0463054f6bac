"""What a policy imagines, as pictures on topics, decoded beside the control path and never in it."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import Image

from contracts import RobotContract
from execution.chunk import ActionChunk
from policies.runtime import Session
from ros_nodes import qos
from ros_nodes.conversions import image_message

MAX_HZ = 10.0
NICENESS = 19  # the least urgent: the pictures are looked at, nothing waits for them
STOP_S = 2.0  # a picture that is being decoded is waited for this long

Decode = Callable[[], NDArray[np.uint8]]


class Imagination:
    """Decodes and hands on the newest of what it is shown, at most `hz` times a second, in an unhurried thread.

    Showing it a chunk takes a lock that nobody holds for long; what comes in between is dropped.
    """

    def __init__(self, hz: float, publish: Callable[[ActionChunk, NDArray[np.uint8]], None]) -> None:
        """`publish`: called in the thread with a chunk and what it is expected to lead to [future, H, W, 3].

        Raises:
            ValueError: `hz` is not within (0, MAX_HZ].
        """
        if not (math.isfinite(hz) and 0 < hz <= MAX_HZ):
            raise ValueError(f"imagine_hz {hz} is not within (0, {MAX_HZ:g}]; 0 imagines nothing")
        self._period_s = 1 / hz
        self._publish = publish
        self._condition = threading.Condition()
        self._newest: tuple[ActionChunk, Decode] | None = None
        self._running = True
        self._thread = threading.Thread(target=self._run, name="imagination", daemon=True)
        self._thread.start()

    def show(self, chunk: ActionChunk, decode: Decode) -> None:
        """Take a chunk, and what decodes its pictures (`Session.imagination`)."""
        with self._condition:
            self._newest = (chunk, decode)
            self._condition.notify()

    def close(self) -> bool:
        """Publish nothing more. False if a picture is still being decoded after `STOP_S`."""
        with self._condition:
            self._running = False
            self._condition.notify()
        self._thread.join(STOP_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)  # on Linux, of this thread alone
        while (newest := self._next()) is not None:
            began = time.monotonic()
            chunk, decode = newest
            pictures = decode()
            if self._running:  # no lock meanwhile: `show` must not wait for the middleware
                self._publish(chunk, pictures)
            with self._condition:
                self._condition.wait_for(lambda: not self._running, began + self._period_s - time.monotonic())

    def _next(self) -> tuple[ActionChunk, Decode] | None:
        """The newest chunk; None at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._newest is not None or not self._running)
            newest, self._newest = self._newest, None
            return newest if self._running else None


class ImaginationTopics:
    """An `Imagination` on topics `imagined/t4`, `imagined/t8`, ...: sensor_msgs/Image, rgb8, best effort.

    A picture is stamped with the time that it is imagined for, so 4, 8, ... control periods after the observation, and
    has the frame of the camera that it continues: the camera's own picture of the same stamp is what then happened.
    """

    def __init__(self, node: Node, robot: RobotContract, session: Session, hz: float) -> None:
        """`session`: one of the policy's, to ask what it imagines. Raises ValueError: nothing, or `hz` is wrong."""
        if not session.imagines:
            raise ValueError(f"imagine_hz is {hz}, but this {session.contract.policy} policy imagines no pictures")
        feature = next(o.feature for o in session.contract.observations if o.feature.key == session.camera)
        self._camera, self._imagines = robot.camera(feature.camera), session.imagines
        self._imagination = Imagination(hz, self._publish)
        self._node = node
        self._publishers = [node.create_publisher(Image, f"imagined/t{t}", qos.SENSOR) for t in session.imagines]

    def show(self, chunk: ActionChunk, session: Session) -> None:
        """Take the chunk that `session` has just given."""
        self._imagination.show(chunk, session.imagination())

    def close(self) -> None:
        """Publish nothing more, and let go."""
        if not self._imagination.close():
            self._node.get_logger().warning(f"a picture is still being decoded after {STOP_S} s")
        while self._publishers:
            self._node.destroy_publisher(self._publishers.pop())

    def _publish(self, chunk: ActionChunk, pictures: NDArray[np.uint8]) -> None:
        for publisher, periods, picture in zip(self._publishers, self._imagines, pictures, strict=True):
            stamp = chunk.start_ns + periods * chunk.period_ns
            publisher.publish(image_message(self._camera, stamp, picture))
