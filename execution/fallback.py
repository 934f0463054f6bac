"""What a robot is sent when it must not follow the policy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts import RobotContract
from execution.measurements import Measurements


class Fallback:
    """The contract's `command.fallback`.

    `hold`: each channel's own; a position stays where it was measured when the hold began (following what is measured
    would creep). `damp`: the positions measured now, every time, so that no spring pulls.
    """

    def __init__(self, robot: RobotContract, measurements: Measurements) -> None:
        self._channels = robot.command.channels
        self._damps = robot.command.fallback == "damp"
        self._integrating = robot.command.kind != "joint_position"
        self._measurements = measurements
        self._held_at: dict[str, float] | None = None

    def begin(self) -> None:
        """It begins now, at what was measured last: as fresh as a moment ago, whatever is missing now."""
        self._held_at = dict(self._measurements.values)

    def end(self) -> None:
        """The next one begins where the robot is then."""
        self._held_at = None

    def command(self, now_ns: int, sent: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """[dim], within the channels' ranges; None if one of them is not known.

        `sent`: the latest command [dim], if there was one.
        """
        if not self._measurements.late(now_ns):
            if self._damps or self._held_at is None:
                self._held_at = dict(self._measurements.values)
        elif self._damps:
            return None  # a spring at an old position is no damper
        held = [self._held(index, sent) for index in range(len(self._channels))]
        if None in held:
            return None
        return np.array([min(max(v, c.min), c.max) for v, c in zip(held, self._channels, strict=True) if v is not None])

    def _held(self, index: int, sent: NDArray[np.float64] | None) -> float | None:
        channel = self._channels[index]
        if channel.hold == "zero":
            return 0.0
        if channel.hold == "last" and sent is not None:
            return float(sent[index])
        if channel.hold == "last" and self._integrating:
            return 0.0
        assert channel.measured_by is not None  # of `hold: measured` by the contract, of a position by the filter
        return None if self._held_at is None else self._held_at.get(channel.measured_by)
