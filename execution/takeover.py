"""From a robot at rest to one that follows the policy: up to its home pose, then gradually over to the policy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts import RobotContract

NANOSECONDS = 1_000_000_000
SETTLE_S = 0.5  # that a robot which has stood up stands still before the policy takes over


class Takeover:
    """What to command between the moment when everything is there and the moment when the policy decides alone.

    With `task.stand_up_s`, the joints are led from where they are to `home` and stay there for SETTLE_S. After that, or
    at once, the command goes over from there (or from where the robot is) to what the policy wants, over `task.ramp_s`.
    """

    def __init__(self, robot: RobotContract) -> None:
        stands_up = robot.task.stand_up_s > 0
        self._home = np.array(robot.home_command) if stands_up else None
        self._stand_up_ns = robot.task.stand_up_s * NANOSECONDS
        self._settled_ns = round(self._stand_up_ns + (SETTLE_S if stands_up else 0.0) * NANOSECONDS)
        self._ramp_ns = round(robot.task.ramp_s * NANOSECONDS)
        self._resumes = robot.command.fallback == "damp"
        self._since_ns: int | None = None
        self._start: NDArray[np.float64] | None = None

    @property
    def begun(self) -> bool:
        """True from `begin` to `lost` or `forget`."""
        return self._since_ns is not None

    def begin(self, now_ns: int, start: NDArray[np.float64] | None) -> None:
        """Everything is there; `start`: what is commanded at rest [dim], None if that is not known."""
        self._since_ns, self._start = now_ns, start

    def stands_up(self, now_ns: int) -> bool:
        """True before the policy has any say."""
        return self._since_ns is None or now_ns - self._since_ns < self._settled_ns

    def target(self, action: NDArray[np.float64] | None, now_ns: int) -> NDArray[np.float64]:
        """What to command [dim] when the policy wants `action` [dim]; only once begun.

        `action` may be None, for nothing, while the robot stands up.
        """
        assert self._since_ns is not None
        elapsed_ns = now_ns - self._since_ns
        rest = self._start
        if self._home is not None:
            assert self._start is not None  # without measurements nothing begins
            time = min(1.0, elapsed_ns / self._stand_up_ns)
            share = time * time * (3.0 - 2.0 * time)  # begins and ends at rest
            rest = self._start + share * (self._home - self._start)
        if elapsed_ns < self._settled_ns and rest is not None:
            return rest
        assert action is not None
        ramped_ns = elapsed_ns - self._settled_ns
        if ramped_ns >= self._ramp_ns or rest is None:
            return action
        return np.asarray(rest + (ramped_ns / self._ramp_ns) * (action - rest))

    def lost(self, now_ns: int) -> None:
        """Something is missing: begin again when it is back.

        A robot whose fallback is to damp, and which had stood up, goes on at once instead: in the middle of a step
        there is no time to be gentle.
        """
        if self.stands_up(now_ns) or not self._resumes:
            self.forget()

    def forget(self) -> None:
        """Begin again."""
        self._since_ns, self._start = None, None
