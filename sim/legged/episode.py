"""What an episode of the walking task is, what a step of it brings, and how well episodes went."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.legged.commands import CommandRanges, Indices
from sim.legged.rewards import RewardWeights
from sim.legged.snapshot import Snapshot, restore
from sim.legged.state import Array, QuadrupedState

BROKEN_SPEED = 100.0  # rad/s: no joint turns a third as fast

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class TaskConfig:
    """What an episode is.

    Attributes:
        episode_s: longest, s.
        command_s: between two commands, s.
        commands: what is asked for.
        weights: of the rewards.
        shaping_start: share of the penalties that counts at first: all of them from the start outweigh what the first
            clumsy steps earn, so that robots learn to stand still (the curriculum of arXiv 1901.08652, section S3). It
            grows to 1: its logarithm halves every
        shaping_half_life_s: seconds of a robot.
        noise: factor of the measurement noise; 0 for none.
        tilt: largest angle of the trunk to the vertical, rad; beyond it the robot has fallen.
        lowest: height of the trunk above the ground, as a share of its standing height; below it the robot has fallen.
        start_speed: largest velocity of the trunk at the start, m/s and rad/s, along and about each axis.
        start_joints: largest distance of a joint from the default pose at the start, rad.
        random_ages: the first episodes are as long as if they had been going on for a while.
    """

    episode_s: float = 20.0
    command_s: float = 10.0
    commands: CommandRanges = field(default_factory=CommandRanges)
    weights: RewardWeights = field(default_factory=RewardWeights)
    shaping_start: float = 0.2
    shaping_half_life_s: float = 120.0
    noise: float = 1.0
    tilt: float = 1.0
    lowest: float = 0.5
    start_speed: float = 0.5
    start_joints: float = 0.1
    random_ages: bool = True


@dataclass(frozen=True, eq=False)
class TaskStep:
    """What a step brought; one row an environment. Where an episode ended, the next one has begun already.

    Attributes:
        reward: [N].
        cost: what the task's terms fell short of their bound, [N]; 0 where the physics went astray.
        fell: the episode ended in a fall, [N].
        timed_out: it ended otherwise: too long, at the ground's border, or because the physics went astray, [N].
        broken: the physics went astray, [N].
        final_privileged: what the critic would have seen next; meaningful where `timed_out`, [N, P].
        velocity_error: of the horizontal velocity, m/s, [N].
        figures: means over the environments, by name, to be logged.
    """

    reward: Float32
    cost: Float32
    fell: NDArray[np.bool_]
    timed_out: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    final_privileged: Float32
    velocity_error: Float32
    figures: dict[str, float]


def gone_astray(state: QuadrupedState) -> NDArray[np.bool_]:
    """Where the physics has, so that its numbers mean nothing, [N]."""
    return state.diverged | ~(np.abs(state.joint_velocity).max(axis=1) < BROKEN_SPEED)


def tilted(state: QuadrupedState, config: TaskConfig) -> NDArray[np.bool_]:
    """Whose trunk leans so far that the robot has fallen, [N]."""
    return state.projected_gravity[:, 2] > -np.cos(config.tilt)


def sunk(state: QuadrupedState, config: TaskConfig, standing_height: float) -> NDArray[np.bool_]:
    """Whose trunk is so low that the robot has fallen, of those that stood at `standing_height`, m; [N]."""
    return state.height < config.lowest * standing_height


class EpisodeBooks:
    """How well the episodes of `count` robots have gone so far, for the curricula."""

    def __init__(self, count: int) -> None:
        self._tracking = np.zeros(count)  # sum of the velocity's term
        self._steps = np.zeros(count)
        self._walked = np.zeros(count)
        self._asked = np.zeros(count)
        self._start = np.zeros((count, 2))

    def begin(self, rows: Indices, start: Array) -> None:
        """New episodes of `rows` [K] at `start`, m, [K, 2]."""
        for sums in (self._tracking, self._steps, self._walked, self._asked):
            sums[rows] = 0.0
        self._start[rows] = start

    def add(
        self, state: QuadrupedState, command: Array, tracking: Array, period_s: float, left_out: NDArray[np.bool_]
    ) -> None:
        """A step of all robots, but for those `left_out` [N]; `tracking`: the velocity's term, [N]."""
        asked = np.linalg.norm(command[:, :2], axis=1)
        along = np.einsum("ij,ij->i", state.linear_velocity[:, :2], command[:, :2]) / np.maximum(asked, 1e-6)
        counted = ~left_out
        self._tracking[counted] += tracking[counted]
        self._steps += counted
        self._walked[counted] += along[counted] * period_s
        self._asked += counted * asked * period_s

    def tracking(self, rows: Indices) -> Array:
        """Means of the velocity's term, [K]."""
        return self._tracking[rows] / np.maximum(self._steps[rows], 1)

    def distances(self, rows: Indices, position: Array) -> tuple[Array, Array, Array]:
        """From the start to `position` [K, 3]; walked in the commands' directions; asked for: m, [K] each."""
        away = np.linalg.norm(position[:, :2] - self._start[rows], axis=1)
        return away, self._walked[rows], self._asked[rows]

    def snapshot(self) -> Snapshot:
        """All that `restore` needs."""
        return {name: value.copy() for name, value in vars(self).items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot. Raises ValueError if it is of another number of robots."""
        for name, value in vars(self).items():
            restore(value, snapshot[name], name)
