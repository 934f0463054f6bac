"""Stamps of another clock, told on the steady clock, so that no time-out depends on a clock that jumps or stops."""

from __future__ import annotations

import time
from collections.abc import Callable

TIGHT_NS = 20_000  # the two clocks are read within this; a wider pair was interrupted and says little
DEADBAND_NS = 100_000  # a smaller change of the offset is reading noise: stamps of one instant stay equal
ATTEMPTS = 5


class SteadyClock:
    """Converts between another clock's stamps (ROS time) and the steady clock (`time.monotonic_ns`).

    `steady stamp = steady now - (other now - stamp)`, taken at reception. When the other clock jumps or stops, later
    stamps follow it, but what was received before keeps ageing.
    """

    def __init__(self, other_ns: Callable[[], int], steady_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._other_ns = other_ns
        self._steady_ns = steady_ns
        self._offset_ns, _ = self._measure()

    def now_ns(self) -> int:
        """The steady clock."""
        return self._steady_ns()

    def to_steady(self, stamp_ns: int) -> int:
        """The steady time of a stamp that was received now."""
        self._follow()
        return stamp_ns + self._offset_ns

    def to_other(self, steady_ns: int) -> int:
        """The stamp of a steady time, for those who are told of it now: by the other clock as it is now."""
        self._follow()
        return steady_ns - self._offset_ns

    def _follow(self) -> None:
        """Follow the other clock if it has jumped."""
        offset_ns, uncertainty_ns = self._measure()
        if abs(offset_ns - self._offset_ns) > max(DEADBAND_NS, uncertainty_ns):
            self._offset_ns = offset_ns

    def _measure(self) -> tuple[int, int]:
        """The offset, and how wrong it can be: how far apart the two readings of the steady clock around it were."""
        best_spread, best_offset = 0, 0
        for attempt in range(ATTEMPTS):
            before = self._steady_ns()
            other = self._other_ns()
            after = self._steady_ns()
            if attempt == 0 or after - before < best_spread:
                best_spread, best_offset = after - before, (before + after) // 2 - other
            if best_spread < TIGHT_NS:
                break
        return best_offset, best_spread
