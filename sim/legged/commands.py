"""Where the robots are told to go, and how that becomes harder: faster commands, rougher tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.legged.snapshot import Snapshot, restore
from sim.legged.state import Array
from sim.legged.terrain import Terrain

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class CommandRanges:
    """What is asked of the robots; drawn uniformly from symmetric ranges.

    Attributes:
        forward, left: largest velocity, m/s.
        turn: largest yaw rate, rad/s.
        standing: share of the commands that are to stand still.
        start: share of the ranges that is asked for at first; it grows by
        growth: whenever finished episodes reached, on average,
        mastered: of the best tracking reward of the velocity.
    """

    forward: float = 1.0
    left: float = 1.0
    turn: float = 1.0
    standing: float = 0.1
    start: float = 1.0
    growth: float = 0.1
    mastered: float = 0.75


class Commands:
    """A velocity command for each of `count` robots, drawn anew on demand.

    Attributes:
        velocity: forward and left, m/s, and turning, rad/s, in the robots' headings, [N, 3].
        share: of the ranges, what is asked for now.
    """

    MEMORY = 0.99  # of the running mean of finished episodes' tracking, an episode

    def __init__(self, count: int, ranges: CommandRanges) -> None:
        self.ranges = ranges
        self.velocity: Array = np.zeros((count, 3))
        self.share = ranges.start
        self._tracking = 0.0

    def draw(self, rng: np.random.Generator, rows: Indices) -> None:
        """New commands for `rows` [K]."""
        limits = self.share * np.array([self.ranges.forward, self.ranges.left, self.ranges.turn])
        drawn = rng.uniform(-limits, limits, (len(rows), 3))
        drawn[rng.random(len(rows)) < self.ranges.standing] = 0.0
        self.velocity[rows] = drawn

    def finished(self, tracking: Array) -> None:
        """Episodes ended: the means of their velocity terms as shares of the best, [K]. May widen the ranges."""
        for value in tracking:
            self._tracking = self.MEMORY * self._tracking + (1 - self.MEMORY) * float(value)
        if self._tracking > self.ranges.mastered and self.share < 1.0:
            self.share = min(1.0, self.share + self.ranges.growth)
            self._tracking *= 0.9  # mastered anew, at the wider ranges, before the next widening

    def snapshot(self) -> Snapshot:
        """All that `restore` needs."""
        return {"velocity": self.velocity.copy(), "curriculum": np.array([self.share, self._tracking])}

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot. Raises ValueError if it is of another number of robots."""
        restore(self.velocity, snapshot["velocity"], "commands")
        self.share, self._tracking = (float(number) for number in snapshot["curriculum"])


class TerrainLevels:
    """Each robot keeps its kind of ground; the level rises when it leaves its tile as told, and falls when it lags.

    Attributes:
        kind: index into the terrain's kinds, [N].
        level: difficulty, in [0, levels), [N].
    """

    FIRST_LEVELS = 3  # robots start within these
    MASTERED = 0.7  # share of what was asked that must be walked for the next level

    def __init__(self, count: int, terrain: Terrain, rng: np.random.Generator) -> None:
        self.terrain = terrain
        self.kind: Indices = np.arange(count) % max(1, len(terrain.kinds))
        self.level: Indices = rng.integers(min(self.FIRST_LEVELS, terrain.levels), size=count)

    def finished(self, rng: np.random.Generator, rows: Indices, distance: Array, walked: Array, asked: Array) -> None:
        """Episodes of `rows` ended.

        Args:
            rng: draws a level for those that have mastered the last one.
            rows: [K].
            distance: from where they started, m, [K].
            walked: in the direction of the command, m, [K].
            asked: that the command would have led them, m, [K].
        """
        up = (distance > self.terrain.tile / 2) & (walked > self.MASTERED * asked)  # and was not pushed out of it
        down = ~up & (walked < asked / 2)
        level = self.level[rows] + up - down
        mastered = level >= self.terrain.levels
        level[mastered] = rng.integers(self.terrain.levels, size=int(mastered.sum()))
        self.level[rows] = np.maximum(level, 0)

    def centres(self, rows: Indices) -> Array:
        """Of their tiles, m, [K, 2]."""
        return self.terrain.centre(self.kind[rows], self.level[rows])

    def outside(self, position: Array, margin: float) -> NDArray[np.bool_]:
        """Which positions [N, 2 or 3], m, are beyond the ground's border or nearer to it than `margin`; [N]."""
        if self.terrain.heights is None:
            return np.zeros(len(position), dtype=bool)
        half = np.array([self.terrain.levels, len(self.terrain.kinds)]) * self.terrain.tile / 2 - margin
        middle = np.array(self.terrain.origin) + half + margin
        beyond: NDArray[np.bool_] = np.abs(position[:, :2] - middle) > half
        return beyond[:, 0] | beyond[:, 1]

    def snapshot(self) -> Snapshot:
        """All that `restore` needs."""
        return {"level": self.level.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot. Raises ValueError if it is of another number of robots."""
        restore(self.level, snapshot["level"], "terrain levels")
