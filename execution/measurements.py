"""What is known of the robot's state, and how fresh it is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence

from contracts import RobotContract, Sensor

NANOSECONDS = 1_000_000_000
KEPT_STAMPS = 16  # enough that a few late ones do not move their median
ON_TIME = 0.125  # of a period: so near to their median ...
REGULAR = 0.6  # ... lie more than this share of the stamps, or else the robot has no ticks a period apart


class Measurements:
    """The latest values of the sensors that measure certain fields. All times are on one steady clock."""

    def __init__(self, robot: RobotContract, fields: Collection[str], future_ns: int) -> None:
        """
        Args:
            robot: its sensors and their time-outs.
            fields: what must be known; sensors with none of these are ignored.
            future_ns: a stamp may be this far ahead.
        """
        self.sensors: tuple[Sensor, ...] = tuple(s for s in robot.sensors if set(fields) & set(s.fields))
        self.values: dict[str, float] = {}
        """Field -> latest value."""
        self._by_name = {s.name: s for s in self.sensors}
        self._timeout_ns = {s.name: round(s.timeout_s * NANOSECONDS) for s in self.sensors}
        self._stamp_ns: dict[str, int] = {}
        self._recent_ns: deque[int] = deque(maxlen=KEPT_STAMPS)
        self._future_ns = future_ns

    def update(
        self, sensor: str, stamp_ns: int, names: Sequence[str], values: Sequence[float], now_ns: int
    ) -> str | None:
        """Take one measurement of one of `sensors`; fields are found by name. The reason if it is refused."""
        fields = self._by_name[sensor].fields
        given = dict(zip(names, values, strict=False))
        if len(names) != len(values) or not all(field in given for field in fields):
            return "names"
        if not all(math.isfinite(given[field]) for field in fields):
            return "non_finite"
        if stamp_ns > now_ns + self._future_ns:
            return "future"
        if now_ns - stamp_ns > self._timeout_ns[sensor]:
            return "stale"
        if stamp_ns < self._stamp_ns.get(sensor, stamp_ns):
            return "out_of_order"
        self._stamp_ns[sensor] = stamp_ns
        self._recent_ns.append(stamp_ns)
        self.values.update({field: float(given[field]) for field in fields})
        return None

    def late(self, now_ns: int) -> list[str]:
        """Names of the sensors that have not measured within their time-out."""
        return [
            name
            for name, timeout_ns in self._timeout_ns.items()
            if name not in self._stamp_ns or now_ns - self._stamp_ns[name] > timeout_ns
        ]

    def tick_ns(self, period_ns: int) -> int | None:
        """When the robot measures: a steady time of which its ticks lie whole periods away.

        The latest measurement alone may have been stamped late, by a robot that was busy: the median of the latest few.
        None before the first, and of a robot that measures at another rate: which of its ticks obeys is not known.
        """
        if not self._recent_ns:
            return None
        newest_ns, half_ns = self._recent_ns[-1], period_ns // 2
        off_ns = sorted((stamp - newest_ns + half_ns) % period_ns - half_ns for stamp in self._recent_ns)
        middle_ns = off_ns[len(off_ns) // 2]
        on_time = sum(abs(off - middle_ns) < ON_TIME * period_ns for off in off_ns)
        return newest_ns + middle_ns if on_time > REGULAR * len(off_ns) else None

    def age_s(self, now_ns: int) -> float:
        """Seconds since the oldest of the latest measurements."""
        return max(0, now_ns - min(self._stamp_ns.values(), default=now_ns)) / NANOSECONDS
