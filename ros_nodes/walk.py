"""Where a simulated walking robot is told to go in a run, how it is pushed on the way, and what came of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import WrenchStamped
from rclpy.node import Node

from contracts import RobotContract
from ros_nodes import qos
from ros_nodes.body import PUSH_TIMEOUT_S, Push
from ros_nodes.conversions import sensor_message, sensor_message_type
from ros_nodes.pushes import MAX_FORCE_N, push_message

PUSH_S = 0.5
TICK_S = 0.05  # of pushes: an unlucky message late does not end one
TICKS_A_REQUEST = 2  # 10 Hz
SAID_S = PUSH_S - PUSH_TIMEOUT_S + TICK_S / 2
"""For so long messages say that it is pushed: the last of them, PUSH_S - PUSH_TIMEOUT_S after the first, acts for
PUSH_TIMEOUT_S more. Half a tick is for rounding."""


@dataclass(frozen=True)
class WalkPlan:
    """What happens to a walking robot in each episode of a run.

    Attributes:
        velocity: what it is asked for: forward and left, m/s, turning left, rad/s; None: this run asks for nothing, and
            somebody else may.
        push_n: how hard it is pushed, N; 0: not at all.
        push_every_s: seconds from one push to the next, and to the first; each takes PUSH_S.
    """

    velocity: tuple[float, float, float] | None = None
    push_n: float = 0.0
    push_every_s: float = 10.0

    def __post_init__(self) -> None:
        if self.velocity is not None and not all(map(math.isfinite, self.velocity)):
            raise ValueError(f"velocity must be three finite numbers, not {self.velocity}")
        if not 0 <= self.push_n <= MAX_FORCE_N:
            raise ValueError(f"push must be within [0, {MAX_FORCE_N:g}] N, not {self.push_n}")
        if not PUSH_S < self.push_every_s < math.inf:
            raise ValueError(f"push_every must be more than the {PUSH_S} s of a push, not {self.push_every_s}")

    def check(self, robot: RobotContract) -> None:
        """Raise ValueError where something is planned for a robot that is no simulated quadruped."""
        if robot.body != "quadruped" and (self.velocity is not None or self.push_n):
            raise ValueError(f"robot {robot.name!r} is no simulated quadruped: it takes neither velocity nor push")


class WalkDirector:
    """Carries out a plan on the robot's topics, in a thread of its own.

    Args:
        node: that publishes, in the robot's namespace.
    """

    def __init__(self, node: Node, robot: RobotContract, plan: WalkPlan) -> None:
        self._node, self._plan = node, plan
        self._requested = [sensor for sensor in robot.sensors if sensor.is_request]
        self._requests = [node.create_publisher(sensor_message_type(s), s.topic, qos.STATUS) for s in self._requested]
        self._pushes = node.create_publisher(WrenchStamped, "push", qos.SENSOR)
        self._ended = threading.Event()
        self._ended.set()

    def start(self, seed: int) -> None:
        """Begin; `seed` draws the directions of the pushes."""
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(self._ended, seed), name="walk", daemon=True).start()

    def stop(self) -> None:
        """End at once: no request and no push any more."""
        self._ended.set()

    def _run(self, ended: threading.Event, seed: int) -> None:
        rng, began, ticks, pushes, force = np.random.default_rng(seed), time.monotonic(), 0, 0, np.zeros(3)
        ends_s = 0.0  # the push that goes on
        while not ended.wait(max(0.0, began + ticks * TICK_S - time.monotonic())):
            elapsed_s = ticks * TICK_S
            if ticks % TICKS_A_REQUEST == 0 and self._plan.velocity is not None:
                for sensor, publisher in zip(self._requested, self._requests, strict=True):
                    publisher.publish(sensor_message(sensor, 0, self._plan.velocity))
            if self._plan.push_n and elapsed_s >= (pushes + 1) * self._plan.push_every_s:
                pushes += 1
                ends_s = elapsed_s + SAID_S
                angle = rng.uniform(-np.pi, np.pi)
                force = self._plan.push_n * np.array([np.cos(angle), np.sin(angle), 0.0])
            if elapsed_s < ends_s:
                self._pushes.publish(push_message(Push(force), self._node.get_clock().now().nanoseconds))
            ticks += 1


def walk_figures(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """What came of a walk, from the body's sums (`QuadrupedBody.figures`) at its beginning and at its end."""
    sums = {name: float(after[name]) - float(before.get(name, 0.0)) for name in after}
    error = sums["velocity_error_m"] / sums["seconds"] if sums["seconds"] > 0 else 0.0
    return {
        "distance_m": round(sums["distance_m"], 3),
        "velocity_error_mps": round(error, 4),
        "falls": sums["falls"],
        "pushes": sums["pushes"],
    }
