"""Has a walking robot fallen? By which way is down, as its IMU says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contracts import RobotContract, Sensor
from contracts.locomotion import projected_gravity
from execution.measurements import Measurements


class TiltGuard:
    """Watches how far the trunk leans, where the contract limits it (`task.max_tilt_rad`); else it needs nothing.

    Its sensor is kept apart from those that limits are judged by: without an IMU a robot can still be damped.
    """

    def __init__(self, robot: RobotContract, future_ns: int) -> None:
        """`future_ns`: a stamp may be this far ahead."""
        self._limit = math.inf if robot.task.max_tilt_rad is None else robot.task.max_tilt_rad
        self._orientation = () if robot.task.max_tilt_rad is None else robot.orientation_fields
        self._measurements = Measurements(robot, self._orientation, future_ns)

    @property
    def sensors(self) -> tuple[Sensor, ...]:
        """The IMU, or nothing."""
        return self._measurements.sensors

    def update(
        self, sensor: str, stamp_ns: int, names: Sequence[str], values: Sequence[float], now_ns: int
    ) -> str | None:
        """Take one measurement of one of `sensors`. The reason if it is refused."""
        return self._measurements.update(sensor, stamp_ns, names, values, now_ns)

    def late(self, now_ns: int) -> list[str]:
        """As `Measurements.late`."""
        return self._measurements.late(now_ns)

    @property
    def fallen(self) -> bool:
        """True if the trunk was last seen leaning further from upright than it may."""
        if not self._orientation or not self._measurements.values:
            return False
        down = projected_gravity([self._measurements.values[field] for field in self._orientation])
        return math.acos(min(1.0, max(-1.0, -float(down[2])))) > self._limit
