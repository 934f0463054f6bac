"""A simulated robot without ROS: obeys the newest valid command, holds when there is none, is measured and pictured."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts import Camera, RobotContract
from ros_nodes.newest import Newest

WORLD, HEADING = "world", "heading"
"""Frames of a push: z up and fixed; z up, and x where the robot's trunk points."""

PUSH_TIMEOUT_S = 0.1  # a push acts for this long after the latest word of it


@dataclass(frozen=True)
class Push:
    """A force on the robot, N, [3], in the frame WORLD or HEADING."""

    force: NDArray[np.float64]
    frame: str = WORLD


class Body(ABC):
    """One robot in its simulator. Use it from one thread: a rendering context belongs to the thread that made it.

    Args:
        robot: its contract.

    Attributes:
        commands: what the robot is told, [dim], finite and within limits; put there by another thread.
    """

    def __init__(self, robot: RobotContract) -> None:
        self.robot = robot
        self.commands: Newest[NDArray[np.float64]] = Newest(robot.command.timeout_s)
        self._ticks = 0

    # -- what the robots of all simulators share ---------------------------------------------------------------------

    def reset(self, task: str, seed: int) -> None:
        """Begin an episode; until the next command the robot holds.

        Raises:
            ValueError: no such task, or a seed that is not a number from 0 up; the world stays as it was.
        """
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        self._begin(task, seed)
        self.commands.clear()
        self._ticks = 0

    def due(self, cameras: Sequence[Camera]) -> list[Camera]:
        """The cameras that take a picture in this control period, each at its own rate, as far apart as possible."""
        due = []
        for index, camera in enumerate(cameras):
            per_tick = min(1.0, camera.rate_hz / self.robot.control_rate_hz)
            phase = index / len(cameras)
            if math.floor(self._ticks * per_tick + phase) > math.floor((self._ticks - 1) * per_tick + phase):
                due.append(camera)
        return due

    def command(self, now_ns: int) -> tuple[NDArray[np.float64], bool]:
        """What to apply in this period, [dim], and whether it was commanded (True) or is the hold (False)."""
        newest = self.commands.get(now_ns)
        return (self._hold(), False) if newest is None else (newest, True)

    def advance(self, command: NDArray[np.float64], push: NDArray[np.float64] | None = None) -> bool:
        """One control period of physics under a command [dim] and what `push` gave; returns `success`."""
        self._step(command, push)
        self._ticks += 1
        return self.success

    def _hold(self) -> NDArray[np.float64]:
        """The contract's hold, channel by channel. Where all are held at what is measured, only damping is left."""
        last, measured = self._last_command(), self._measured()
        values = {"zero": np.zeros(len(last)), "last": last}
        channels = self.robot.command.channels
        return np.array(
            [
                measured[c.measured_by or ""] if c.hold == "measured" else values[c.hold][i]
                for i, c in enumerate(channels)
            ]
        )

    def _measured(self) -> dict[str, float]:
        """Field -> value, of the fields that some channel holds at."""
        if all(c.hold != "measured" for c in self.robot.command.channels):
            return {}
        given, sensors = self.measurements(), self.robot.sensors
        return {f: float(v) for s in sensors if s.name in given for f, v in zip(s.fields, given[s.name], strict=True)}

    # -- what each simulator has of its own --------------------------------------------------------------------------

    @property
    @abstractmethod
    def episode(self) -> dict[str, str | int | None]:
        """What the recording must know of the episode to simulate it again: task (in words), task_name, seed."""

    @property
    @abstractmethod
    def success(self) -> bool:
        """Whether the task is done; of a task that is to go on, such as walking, that it has not failed."""

    @abstractmethod
    def measurements(self) -> dict[str, NDArray[np.float64]]:
        """What every sensor measures now: its name -> values in the order of its fields."""

    @abstractmethod
    def picture(self, camera: Camera) -> NDArray[np.uint8]:
        """What a camera sees now, uint8 [height, width, 3]."""

    def take_push(self, push: Push, now_ns: int) -> None:  # noqa: B027 - most bodies are not pushed
        """Be pushed from now on, for as long as pushes keep coming. From another thread."""

    def take_request(self, values: Sequence[float], now_ns: int) -> None:  # noqa: B027 - most tasks are not requests
        """Hear what the robot is asked for, a number a field, to be judged by it. From another thread."""

    def push(self, now_ns: int) -> NDArray[np.float64] | None:
        """The force that acts on the robot in this period, in the world, N, [3]; None: nothing can push it."""
        return None

    def figures(self) -> dict[str, float]:
        """Sums since the episode's start that a report may want, by name."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free the simulator."""

    @abstractmethod
    def _begin(self, task: str, seed: int) -> None:
        """`reset`, with a seed from 0 up."""

    @abstractmethod
    def _step(self, command: NDArray[np.float64], push: NDArray[np.float64] | None) -> None:
        """One control period of physics."""

    @abstractmethod
    def _last_command(self) -> NDArray[np.float64]:
        """What was applied last, [dim]."""


def make_body(robot: RobotContract, task: str, seed: int) -> Body:
    """The body that a robot's contract names, at the start of an episode.

    Raises:
        ValueError: the simulator does not know the task, or does not simulate this robot.
    """
    if robot.body == "metaworld":
        from ros_nodes.metaworld_body import MetaWorldBody  # each simulator is imported where it is needed only

        return MetaWorldBody(robot, task, seed)
    if robot.body == "quadruped":
        from ros_nodes.quadruped_body import QuadrupedBody

        return QuadrupedBody(robot, task, seed)
    raise ValueError(f"robot {robot.name!r}: no node simulates the body {robot.body!r}")
