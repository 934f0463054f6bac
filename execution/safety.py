"""The last thing that a command passes: finite, position, rate, range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts import CommandChannel, ContractError, RobotContract

RANGE_TOLERANCE = 1e-6
"""Fraction of a channel's range by which a limit may change a command uncounted: float32(0.8) is above 0.8."""


class RefusedCommand(ValueError):
    """A command that must not be sent, nor anything like it; `reason` is short, for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class FilterResult:
    """A command [dim] within every limit, and what was changed for that: `<limit>:<channel>`, in channel order."""

    command: NDArray[np.float64]
    interventions: tuple[str, ...]


class SafetyFilter:
    """Makes of every command one that the robot contract allows; a normal one passes bit for bit.

    - finite: a NaN or an infinity refuses the whole command.
    - position, where the contract limits it: judged by the *measured* position, and so that the limit holds even if
      this is the last command that the body gets, which it then obeys for its whole time-out. An integrating channel (a
      velocity) slows down towards the limit; beyond it, only the way back is open. A position channel stays within the
      limits and, where `max_rate` is given, no further ahead of the measured position than it may move in that time (a
      robot that is held back does not wind up a jump).
    - rate, where the contract gives `max_rate`: the change since the previous command. A position limit outranks it.
    - range: `min` to `max`, always, last.
    """

    def __init__(self, robot: RobotContract) -> None:
        """
        Raises:
            ContractError: a position channel that nothing measures: its first command could be a jump.
        """
        self._channels = robot.command.channels
        self._integrating = robot.command.kind != "joint_position"
        self._timeout_s = robot.command.timeout_s
        for channel in self._channels:
            if not self._integrating and channel.measured_by is None:
                raise ContractError(
                    f"robot {robot.name!r}, channel {channel.name!r}: a joint_position channel needs measured_by, "
                    "or nobody knows where it starts from"
                )
        self.fields = frozenset(
            c.measured_by
            for c in self._channels
            if c.measured_by is not None and (c.position_min is not None or not self._integrating)
        )
        """The sensor fields without which no command passes."""

    def filter(
        self,
        command: NDArray[np.float64] | Sequence[float],
        measured: Mapping[str, float],
        previous: NDArray[np.float64] | None,
        dt_s: float,
        age_s: float = 0.0,
    ) -> FilterResult:
        """Limit one command.

        Args:
            command: [dim], in the order of the contract's channels.
            measured: field -> measured value, for at least `self.fields`.
            previous: the command sent `dt_s` ago; None: none yet (a velocity starts from 0, a position where it is).
            dt_s: the control period.
            age_s: how old the measurement is: the robot went on moving since.

        Raises:
            RefusedCommand: wrong size, not finite, a needed measurement missing or not finite, or limits that
                contradict each other.
        """
        values = [float(v) for v in command]
        if len(values) != len(self._channels):
            raise RefusedCommand("size", f"a command has {len(self._channels)} elements, not {len(values)}")
        reach_s = self.reach_s(dt_s, age_s)
        interventions: list[str] = []
        for index, channel in enumerate(self._channels):
            value = values[index]
            if not math.isfinite(value):
                raise RefusedCommand("non_finite", f"{channel.name}: {value} is not a finite number")
            position = self._position(channel, measured)
            start = 0.0 if self._integrating or position is None else position
            last = start if previous is None else float(previous[index])
            slewed = _limit_rate(channel, value, last, dt_s)
            kept = self._limit_position(channel, slewed, position, reach_s)
            ranged = min(max(kept, channel.min), channel.max)
            self._check_consistent(channel, kept, ranged)
            values[index] = ranged
            tolerance = RANGE_TOLERANCE * (channel.max - channel.min)
            stages = (("rate", value, slewed), ("position", slewed, kept), ("range", kept, ranged))
            interventions += [f"{name}:{channel.name}" for name, a, b in stages if abs(a - b) > tolerance]
        return FilterResult(np.array(values, dtype=np.float64), tuple(interventions))

    def reach_s(self, dt_s: float, age_s: float) -> float:
        """Seconds for which a command may act on what was measured `age_s` ago, if none comes `dt_s` later."""
        return max(dt_s, self._timeout_s) + age_s

    def _position(self, channel: CommandChannel, measured: Mapping[str, float]) -> float | None:
        field = channel.measured_by
        if field not in self.fields:
            return None
        position = measured.get(field)
        if position is None or not math.isfinite(position):
            raise RefusedCommand("not_measured", f"{channel.name}: {field} was measured as {position}")
        return float(position)

    def _limit_position(self, channel: CommandChannel, value: float, position: float | None, reach_s: float) -> float:
        if position is None:
            return value
        low = -math.inf if channel.position_min is None else channel.position_min
        high = math.inf if channel.position_max is None else channel.position_max
        if self._integrating:
            return min(max(value, min(0.0, (low - position) / reach_s)), max(0.0, (high - position) / reach_s))
        nearest, furthest = reachable(channel, position, reach_s)  # a robot outside its limits is led back, not thrown
        return min(max(value, min(max(low, nearest), furthest)), min(max(high, nearest), furthest))

    def _check_consistent(self, channel: CommandChannel, kept: float, ranged: float) -> None:
        """The range has the last word; it must not push a channel out of its position limits."""
        if kept == ranged or channel.position_min is None or channel.position_max is None:
            return
        low, high = (0.0, 0.0) if self._integrating else (channel.position_min, channel.position_max)
        if not min(kept, low) <= ranged <= max(kept, high):  # otherwise it is nearer to where it is safe
            raise RefusedCommand("limits", f"{channel.name}: nothing is within its range and its position limits")


def reachable(channel: CommandChannel, position: float, reach_s: float) -> tuple[float, float]:
    """Lowest and highest command, in the channel's unit, that leads a position channel no further than it may move.

    Args:
        position: what is measured.
        reach_s: for how long it may move [s]; see `SafetyFilter.reach_s`.
    """
    lead = math.inf if channel.max_rate is None else channel.max_rate * reach_s
    return position - lead, position + lead


def _limit_rate(channel: CommandChannel, value: float, last: float, dt_s: float) -> float:
    if channel.max_rate is None:
        return value
    step = channel.max_rate * dt_s
    return min(max(value, last - step), last + step)
