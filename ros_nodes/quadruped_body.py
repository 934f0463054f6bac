"""The body of a quadruped: walks as it is commanded, is pushed, and keeps books on how well that goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts import Camera, RobotContract
from ros_nodes.body import PUSH_TIMEOUT_S, WORLD, Body, Push
from ros_nodes.newest import Newest
from sim.legged.body import Quadruped
from sim.legged.state import heading, turn

WAYPOINT_M = 0.1  # a way is measured in pieces of this length: swaying on the spot is none


class QuadrupedBody(Body):
    """See `Body`; its tasks are TERRAINS of `sim.legged.terrain`. It starts lying on its belly.

    Until the first command and when commands stop, only the joints' damping acts: see `Body._hold`. `success` is true
    until the robot falls.
    """

    def __init__(self, robot: RobotContract, task: str, seed: int) -> None:
        super().__init__(robot)
        self._pushes: Newest[Push] = Newest(PUSH_TIMEOUT_S)
        self._velocity: Newest[NDArray[np.float64]] = Newest(
            max((sensor.timeout_s for sensor in robot.sensors if sensor.is_request), default=0.0)
        )
        self._quadruped: Quadruped | None = None
        self._last = np.zeros(len(robot.command.channels))
        self._now_ns = 0  # of the period
        self.reset(task, seed)

    @property
    def quadruped(self) -> Quadruped:
        """The simulation."""
        assert self._quadruped is not None  # reset() made it
        return self._quadruped

    @property
    def episode(self) -> dict[str, str | int | None]:
        return {"task": self.quadruped.terrain, "task_name": self.quadruped.terrain, "seed": self.quadruped.seed}

    @property
    def success(self) -> bool:
        return not self.quadruped.fallen

    def measurements(self) -> dict[str, NDArray[np.float64]]:
        return self.quadruped.measurements()

    def picture(self, camera: Camera) -> NDArray[np.uint8]:
        raise ValueError(f"{self.robot.name} has no camera {camera.name!r}")

    def take_push(self, push: Push, now_ns: int) -> None:
        self._pushes.put(push, now_ns)

    def take_request(self, values: Sequence[float], now_ns: int) -> None:
        self._velocity.put(np.array(values), now_ns)

    def push(self, now_ns: int) -> NDArray[np.float64]:
        self._now_ns = now_ns
        newest = self._pushes.get(now_ns)
        if newest is None:
            return np.zeros(3)
        if newest.frame == WORLD:
            return newest.force
        return turn(newest.force[None], heading(self.quadruped.state.orientation))[0]

    def figures(self) -> dict[str, float]:
        books = self._books
        return {
            "seconds": books.ticks * self.robot.control_period_s,
            "distance_m": books.distance_m,
            "velocity_error_m": books.velocity_error * self.robot.control_period_s,
            "falls": float(self.quadruped.fallen),
            "pushes": float(books.pushes),
            "stood": float(self.quadruped.stood),
        }

    def close(self) -> None:
        if self._quadruped is not None:
            self._quadruped.close()
            self._quadruped = None

    def _begin(self, task: str, seed: int) -> None:
        if self._quadruped is None or self._quadruped.terrain != task:
            quadruped = Quadruped(self.robot, task, seed)
            self.close()
            self._quadruped = quadruped
        else:
            self._quadruped.reset(seed)
        self._pushes.clear()
        self._velocity.clear()
        self._books = WalkBooks(self.quadruped.state.position[0, :2].copy())

    def _step(self, command: NDArray[np.float64], push: NDArray[np.float64] | None) -> None:
        push = np.zeros(3) if push is None else push
        self.quadruped.step(command, push)
        self._last = command
        wanted = self._velocity.get(self._now_ns)
        state = self.quadruped.state
        error = state.linear_velocity[0, :2] - (np.zeros(2) if wanted is None else wanted[:2])
        if self.success:  # what comes after a fall is no walk
            self._books.add(state.position[0, :2], float(np.linalg.norm(error)), bool(push.any()))

    def _last_command(self) -> NDArray[np.float64]:
        return self._last


@dataclass
class WalkBooks:
    """Sums over an episode.

    Attributes:
        waypoint: where the last piece of the way ended, m, [2].
        ticks: control periods.
        distance_m: way of the trunk over ground.
        velocity_error: sum of the periods' errors of the horizontal velocity, m/s.
        pushes: how often a push began.
    """

    waypoint: NDArray[np.float64]
    ticks: int = 0
    distance_m: float = 0.0
    velocity_error: float = 0.0
    pushes: int = 0
    _pushed: bool = False

    def add(self, position: NDArray[np.float64], velocity_error: float, pushed: bool) -> None:
        """One control period: where the trunk is now, m, [2]; its velocity's error, m/s; whether it is pushed."""
        self.ticks += 1
        self.velocity_error += velocity_error
        self.pushes += pushed and not self._pushed
        self._pushed = pushed
        way = float(np.linalg.norm(position - self.waypoint))
        if way >= WAYPOINT_M:
            self.waypoint = position.copy()
            self.distance_m += way
