"""What a robot is sent when it must not follow the policy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts import ContractError, RobotContract
from execution.measurements import Measurements
from execution.safety import SafetyFilter, reachable


class Fallback:
    """The contract's `command.fallback`.

    `hold`: each channel's own; a position stays where the robot was sent last, which a robot in motion is behind (back
    to where it was measured would be a jerk), or else where it was measured when the hold began (following what is
    measured would creep). Unless the robot is moved away: then that place comes along, no further from the robot than
    the safety filter lets any command be, or it would jump back when it is let go (a drive that an emergency stop had
    switched off). `damp`: the positions measured now, every time, so that no spring pulls.
    """

    def __init__(self, robot: RobotContract, measurements: Measurements, safety: SafetyFilter) -> None:
        """
        Raises:
            ContractError: a position channel that holds, without `max_rate`: it could jump back from anywhere.
        """
        self._channels = robot.command.channels
        self._damps = robot.command.fallback == "damp"
        self._integrating = robot.command.kind != "joint_position"
        self._period_s = robot.control_period_s
        self._measurements = measurements
        self._safety = safety
        self._held_at: dict[str, float] | None = None
        boundless = [c.name for c in self._channels if c.max_rate is None]
        if boundless and not self._integrating and not self._damps:
            raise ContractError(
                f"robot {robot.name!r}: {boundless} hold a position and need max_rate, or they could jump back to it "
                "from wherever the robot is moved"
            )

    def begin(self, sent: NDArray[np.float64] | None) -> None:
        """It begins now.

        Args:
            sent: the command [dim] that the robot still obeys; None: of what was measured last, as fresh as a moment
                ago, whatever is missing now.
        """
        self._held_at = dict(self._measurements.values)
        if sent is not None and not self._integrating:
            places = zip(self._channels, sent, strict=True)
            self._held_at.update({c.measured_by: float(place) for c, place in places if c.measured_by is not None})

    def end(self) -> None:
        """The next one begins where the robot is then."""
        self._held_at = None

    def command(self, now_ns: int, sent: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """[dim], within the channels' ranges; None if one of them is not known.

        `sent`: the latest command [dim], if there was one.
        """
        seen = not self._measurements.late(now_ns)
        if seen and (self._damps or self._held_at is None):
            self._held_at = dict(self._measurements.values)
        if self._damps and not seen:
            return None  # a spring at an old position is no damper
        held = [value for index in range(len(self._channels)) if (value := self._held(index, sent)) is not None]
        if len(held) < len(self._channels):
            return None
        if seen and not self._integrating:
            held = self._near(held, self._safety.reach_s(self._period_s, self._measurements.age_s(now_ns)))
        return np.array([min(max(v, c.min), c.max) for v, c in zip(held, self._channels, strict=True)])

    def _near(self, held: list[float], reach_s: float) -> list[float]:
        """Positions no further from the robot than it may move within `reach_s` [s]; from now on these are held."""
        assert self._held_at is not None
        for index, channel in enumerate(self._channels):
            field = channel.measured_by
            assert field is not None  # of a position by the filter
            low, high = reachable(channel, self._measurements.values[field], reach_s)
            held[index] = self._held_at[field] = min(max(held[index], low), high)
        return held

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
