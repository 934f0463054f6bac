"""A simulated robot without ROS: obeys the newest valid command, holds when there is none, is measured and pictured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contracts import Camera, RobotContract
from sim import MetaWorldEnv, make_env

NANOSECONDS = 1_000_000_000


class CommandBuffer:
    """The newest valid command. Commands come in one thread and are taken in another.

    Args:
        timeout_s: the newest command ages; after this it is obeyed no more.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_ns = round(timeout_s * NANOSECONDS)
        self._newest: tuple[NDArray[np.float64], int] | None = None  # replaced as a whole: no lock is needed

    def put(self, command: NDArray[np.float64], now_ns: int) -> None:
        """Take a command, [dim], finite and within limits, received at `now_ns` of the steady clock."""
        self._newest = command, now_ns

    def newest(self, now_ns: int) -> NDArray[np.float64] | None:
        """The newest command; None when none came within the time-out."""
        held = self._newest
        if held is None or now_ns - held[1] > self._timeout_ns:
            return None
        return held[0]

    def clear(self) -> None:
        """Forget the newest command."""
        self._newest = None


class SimulatedBody:
    """One robot in its simulator. Use it from one thread: a rendering context belongs to the thread that made it.

    Args:
        robot: its contract.
        task: what the world is set up for.
        seed: of the first episode.

    Raises:
        ValueError: the simulator does not know the task, or does not simulate this robot.
    """

    def __init__(self, robot: RobotContract, task: str, seed: int) -> None:
        if robot.body != "metaworld":
            raise ValueError(f"robot {robot.name!r}: no node simulates the body {robot.body!r}; only 'metaworld'")
        self.robot = robot
        self.commands = CommandBuffer(robot.command.timeout_s)
        self._ticks = 0
        self._env: MetaWorldEnv | None = None
        self.reset(task, seed)

    @property
    def env(self) -> MetaWorldEnv:
        """The simulator."""
        assert self._env is not None  # reset() made it
        return self._env

    def reset(self, task: str, seed: int) -> None:
        """Begin an episode; until the next command the robot holds.

        Raises:
            ValueError: no such task, or a seed that is not a number from 0 up; the world stays as it was.
        """
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        if self._env is None or self._env.task != task:
            env = make_env(task, _set_without_pictures(self.robot), self.robot)
            self.close()
            self._env = env
        self.env.reset(seed=seed)
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

    def measurements(self) -> dict[str, NDArray[np.float64]]:
        """What every sensor measures now: sensor name -> values in the order of its fields."""
        return self.env.measurements()

    def picture(self, camera: Camera) -> NDArray[np.uint8]:
        """What a camera sees now, uint8 [height, width, 3]."""
        return self.env.render_camera(camera.name)

    def command(self, now_ns: int) -> tuple[NDArray[np.float64], bool]:
        """What to apply in this period, [dim], and whether it was commanded (True) or is the hold (False)."""
        newest = self.commands.newest(now_ns)
        return (self._hold(), False) if newest is None else (newest, True)

    def advance(self, command: NDArray[np.float64]) -> bool:
        """One control period of physics; True when the task is done."""
        self.env.advance(command)
        self._ticks += 1
        return bool(self.env.success)

    def close(self) -> None:
        """Free the simulator."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _hold(self) -> NDArray[np.float64]:
        """The contract's hold, channel by channel."""
        last = self.env.applied_action.astype(np.float64)
        measured = self._measured()
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
        measurements = self.measurements()
        return {f: float(v) for s in self.robot.sensors for f, v in zip(s.fields, measurements[s.name], strict=True)}


def _set_without_pictures(robot: RobotContract) -> str:
    """An observation set that costs no rendering: the body is measured by its sensors, not by an observation."""
    for name in robot.observation_sets:
        if not any(f.is_image for f in robot.observation_features(name)):
            return name
    return next(iter(robot.observation_sets))
