"""Walking as told: one definition of the task, for training, for evaluation and, robot for robot, for the robot's body.

Observations, rewards and randomisation are HIMLoco's (arXiv 2312.11460) unless a line says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.locomotion import (
    ANGULAR_VELOCITY_SCALE,
    CLIP,
    JOINT_VELOCITY_SCALE,
    LocomotionContract,
    roll_history,
)
from contracts.reflection import Reflection
from sim.legged.batch import MODELS, BatchedQuadruped
from sim.legged.commands import Commands, Indices, TerrainLevels
from sim.legged.episode import EpisodeBooks, Float32, TaskConfig, TaskStep, gone_astray, sunk, tilted
from sim.legged.figures import JOINTS, QuadrupedFigures, load_figures
from sim.legged.mirror import mirror
from sim.legged.privileged import PRIVILEGED_SIZE, VELOCITY, privileged_observation
from sim.legged.randomization import HIMLOCO, Randomization
from sim.legged.rewards import reward_terms, weighted_terms
from sim.legged.snapshot import Snapshot, generator_from_array, generator_to_array, part, prefixed, restore
from sim.legged.state import Array, QuadrupedState, heading, take_rows, turn
from sim.legged.terrain import named_terrain

GROUPS = 2
"""Of robots that learn together: while one is in the physics another one acts, and more would only be smaller."""

NOISE = (  # largest error of what is measured, in the units of the scaled observation
    (0.0,) * 3
    + (0.2 * ANGULAR_VELOCITY_SCALE,) * 3
    + (0.05,) * 3
    + (0.01,) * len(JOINTS)
    + (1.5 * JOINT_VELOCITY_SCALE,) * len(JOINTS)
    + (0.0,) * len(JOINTS)
)
BORDER_M = 1.0  # an episode ends so far from the border of the ground


class LocomotionTask:
    """`count` robots that are told where to go.

    The same seed and the same actions give the same observations and rewards, bit for bit. Use it in a `with`
    statement, or `close()` it.

    Args:
        robots: what is stepped; the task resets it.
        seed: of commands, starts, ages and noise.
        config: of the episodes.
        restart: when an episode has ended, the next one begins. Without it the robot is put back to stand, and what it
            does and brings from then on means nothing: so the commands, the noise and the starts of all others are the
            same whatever any robot does, and policies can be compared in the same episodes.

    Attributes:
        contract: what the policy sees and what its actions mean.
        observation: what the actor sees now, the latest of its history first, [N, 6 * 45].
        privileged: what the critic sees now, [N, P].
    """

    def __init__(
        self, robots: BatchedQuadruped, seed: int = 0, config: TaskConfig | None = None, restart: bool = True
    ) -> None:
        self.robots, self.config, self.restart = robots, config or TaskConfig(), restart
        self.count, self.period_s = robots.count, robots.period_s
        self.contract = locomotion_contract(robots.figures, self.period_s)
        self.cost_bound = self.config.weights.task_bound * self.period_s
        self._rng = np.random.default_rng(seed)
        self._commands = Commands(self.count, self.config.commands)
        self._levels = TerrainLevels(self.count, robots.terrain, self._rng)
        self._parameters = robots.pool.scaled_parameters
        self._noise = np.array(NOISE, dtype=np.float32) * np.float32(self.config.noise)
        self._episode_steps = round(self.config.episode_s / self.period_s)
        self._command_steps = round(self.config.command_s / self.period_s)
        self._history = np.zeros((self.count, self.contract.history, self.contract.observation_size), dtype=np.float32)
        self._actions = np.zeros((self.count, 3, len(JOINTS)))  # the latest first
        self._force = np.zeros((self.count, 3))
        self._age: Indices = np.zeros(self.count, dtype=np.int64)
        self._steps = np.zeros(1, dtype=np.int64)  # since the task was made
        self._books = EpisodeBooks(self.count)
        self.privileged: Float32 = np.zeros((self.count, PRIVILEGED_SIZE), dtype=np.float32)
        self._begin(np.arange(self.count))
        if self.config.random_ages:
            self._age[:] = self._rng.integers(self._episode_steps, size=self.count)

    @property
    def observation(self) -> Float32:
        return self._history.reshape(self.count, -1)

    @property
    def velocity(self) -> slice:
        """Where the trunk's velocity stands in `privileged`."""
        return VELOCITY

    @property
    def mirror(self) -> dict[str, Reflection]:
        """Of `observation`, `privileged` and `action`, left and right exchanged."""
        return mirror(self.contract)

    @property
    def command(self) -> Array:
        """What is asked for now: forward and left, m/s, turning, rad/s, [N, 3]. Written to, it holds until redrawn."""
        return self._commands.velocity

    @property
    def shaping(self) -> float:
        """Share of the penalties that counts now."""
        halvings = float(self._steps[0]) * self.period_s / self.config.shaping_half_life_s
        return float(self.config.shaping_start ** (0.5**halvings))

    @property
    def description(self) -> dict[str, Any]:
        """What the task is, in plain data, to tell one run from another."""
        terrain = self.robots.terrain
        ground = {"kinds": list(terrain.kinds), "levels": terrain.levels, "friction": terrain.friction}
        randomization = asdict(self.robots.randomization)
        return asdict(self.config) | {"environments": self.count, "terrain": ground, "randomization": randomization}

    def step(self, action: Float32, force: Array | None = None) -> TaskStep:
        """One control period.

        Args:
            action: as the contract has it, [N, 12].
            force: on the trunks, in the frame of their heading (x forward, z up), N, [N, 3]; None: none.

        Raises:
            ValueError: an array of another shape, or a number that is not finite; nothing moved.
        """
        before = self.robots.state
        action = np.clip(action, -CLIP, CLIP)
        pushed = None if force is None else turn(force[:, None], heading(before.orientation))[:, 0]
        state = self.robots.step(self.contract.targets(action), pushed)
        self._actions[:, 1:] = self._actions[:, :-1].copy()
        self._actions[:, 0] = action
        self._force[:] = 0.0 if force is None else force
        self._age += 1
        self._steps += 1
        broken = gone_astray(state)
        terms = self._reward(before, state, broken)
        task = terms["velocity"] + terms["yaw_rate"]
        cost = np.where(broken, 0.0, self.config.weights.task_bound - task)
        velocity_error = np.linalg.norm(state.linear_velocity[:, :2] - self.command[:, :2], axis=1)
        self._books.add(state, self.command, terms["velocity"], self.period_s, broken)
        low = sunk(state, self.config, self.robots.figures.standing_height)
        fell = ~broken & (tilted(state, self.config) | low)
        outside = self._levels.outside(state.position, BORDER_M)
        timed_out = ~fell & (broken | outside | (self._age >= self._episode_steps))
        result = TaskStep(
            reward=(np.sum(list(terms.values()), axis=0) * self.period_s).astype(np.float32),
            cost=(cost * self.period_s).astype(np.float32),
            fell=fell,
            timed_out=timed_out,
            broken=broken,
            final_privileged=self._final(state, timed_out, broken),
            velocity_error=np.where(broken, 0.0, velocity_error).astype(np.float32),
            figures=self._figures(terms, broken),
        )
        self._go_on(np.flatnonzero(fell | timed_out), broken)
        return result

    def snapshot(self) -> Snapshot:
        """All that `restore` needs to go on from here bit for bit."""
        own = {name: getattr(self, name).copy() for name in self._ARRAYS} | {"rng": generator_to_array(self._rng)}
        for name, part_of_it in self._parts.items():
            own |= prefixed(part_of_it.snapshot(), name)
        return own

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot of a task made with the same arguments. Raises ValueError if it does not fit."""
        for name in self._ARRAYS:
            restore(getattr(self, name), snapshot[name], name)
        generator_from_array(self._rng, snapshot["rng"])
        for name, part_of_it in self._parts.items():
            part_of_it.restore(part(snapshot, name))

    def close(self) -> None:
        """End the threads."""
        self.robots.close()

    def __enter__(self) -> LocomotionTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what a step is made of ----------------------------------------------------------------------------------------

    _ARRAYS = ("_history", "_actions", "_force", "_age", "_steps", "privileged")

    @property
    def _parts(self) -> dict[str, BatchedQuadruped | Commands | TerrainLevels | EpisodeBooks]:
        return {"robots": self.robots, "commands": self._commands, "levels": self._levels, "books": self._books}

    def _reward(self, before: QuadrupedState, state: QuadrupedState, broken: NDArray[np.bool_]) -> dict[str, Array]:
        """Weighted terms per second, [N]; all 0 where the physics went astray."""
        figures, period_s = self.robots.figures, self.period_s
        with np.errstate(invalid="ignore", over="ignore"):
            terms = reward_terms(
                state, self.command, self._actions, before.joint_velocity, before.foot_position,
                figures.standing_height, period_s,
            )  # fmt: skip
        weighted = weighted_terms(terms, self.config.weights, self.shaping)
        if broken.any():
            weighted = {name: np.where(broken, 0.0, term) for name, term in weighted.items()}
        return weighted

    def _figures(self, terms: dict[str, Array], broken: NDArray[np.bool_]) -> dict[str, float]:
        figures = {f"reward/{name}": float(term.mean()) for name, term in terms.items()}
        figures["task/command_share"] = self._commands.share
        figures["task/shaping"] = self.shaping
        figures["task/terrain_level"] = float(self._levels.level.mean())
        figures["task/diverged"] = float(broken.mean())
        return figures

    def _final(self, state: QuadrupedState, timed_out: NDArray[np.bool_], broken: NDArray[np.bool_]) -> Float32:
        """What the critic would see of the episodes that timed out; where all is broken, what it saw last."""
        final = self.privileged.copy()
        rows = np.flatnonzero(timed_out & ~broken)
        if len(rows):
            final[rows] = self._look(take_rows(state, rows), rows)[1]
        return final

    def _go_on(self, ended: Indices, broken: NDArray[np.bool_]) -> None:
        """Draw commands, begin new episodes, and look at all robots."""
        if len(ended) and not self.restart:
            self.robots.reset(ended)
            ended = ended[:0]
        if len(ended):
            self._learn_from(ended[~broken[ended]])
        due = self._age % self._command_steps == 0
        due[ended] = False
        if due.any():
            self._commands.draw(self._rng, np.flatnonzero(due))
        if len(ended):
            self._begin(ended)
        observation, privileged = self._look(self.robots.state, np.arange(self.count))
        roll_history(self._history, self._measured(observation))
        self._history[ended] = self._history[ended, :1]
        self.privileged = privileged

    def _learn_from(self, ended: Indices) -> None:
        """The curricula see the episodes of `ended`."""
        self._commands.finished(self._books.tracking(ended) / self.config.weights.velocity)
        if self.robots.terrain.heights is not None:
            distances = self._books.distances(ended, self.robots.state.position[ended])
            self._levels.finished(self._rng, ended, *distances)

    def _begin(self, rows: Indices) -> None:
        """Put robots down for new episodes; their history holds what they see first, all along."""
        count, config, rng = len(rows), self.config, self._rng
        place = self._levels.centres(rows) + rng.uniform(-0.5, 0.5, (count, 2))
        pose = np.array(self.robots.figures.default_pose)
        joints = pose + rng.uniform(-config.start_joints, config.start_joints, (count, len(pose)))
        velocity = rng.uniform(-config.start_speed, config.start_speed, (count, 6))
        self.robots.reset(rows, place, rng.uniform(-np.pi, np.pi, count), joints, velocity)
        self._commands.draw(rng, rows)
        self._actions[rows] = 0.0
        self._force[rows] = 0.0
        self._age[rows] = 0
        self._books.begin(rows, place)
        if count == self.count:
            observation, self.privileged = self._look(self.robots.state, rows)
            self._history[:] = self._measured(observation)[:, None]

    # -- what is seen --------------------------------------------------------------------------------------------------

    def _measured(self, observation: Float32) -> Float32:
        """With measurement noise."""
        if not self.config.noise:
            return observation
        drawn = self._rng.random(observation.shape, dtype=np.float32)
        return observation + (2.0 * drawn - 1.0) * self._noise

    def _look(self, state: QuadrupedState, rows: Indices) -> tuple[Float32, Float32]:
        """What actor and critic see of `state`, whose environments are `rows` [K], without noise: [K, 45], [K, P]."""
        robots = self.robots
        observation = self.contract.observation(
            self.command[rows], state.angular_velocity, state.projected_gravity,
            state.joint_position, state.joint_velocity, self._actions[rows, 0],
        )  # fmt: skip
        privileged = privileged_observation(
            observation, state, self._force[rows], robots.delay[rows], self._parameters[robots.model_index[rows]],
            robots.figures.standing_height, robots.terrain,
        )  # fmt: skip
        return observation, privileged


def locomotion_contract(figures: QuadrupedFigures, period_s: float) -> LocomotionContract:
    """What a policy of this robot sees, and what its actions mean."""
    return LocomotionContract(
        joint_names=JOINTS,
        default_pose=figures.default_pose,
        action_scale=figures.action_scale,
        kp=figures.stiffness,
        kd=figures.damping,
        period_s=period_s,
    )


@contextmanager
def training_groups(
    robot: str, terrain: str, count: int, seed: int = 0, threads: int = 2
) -> Iterator[list[LocomotionTask]]:
    """`count` robots for training in GROUPS of about as many, each with random numbers of its own, on one ground.

    As many groups whatever `threads` is, so that what is learned does not depend on it. Raises ValueError as
    `make_task` does.
    """
    groups = max(1, min(GROUPS, count))  # of no robots, one: which says what is wrong
    with ExitStack() as stack:
        tasks = []
        for number in range(groups):
            own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            size = count * (number + 1) // groups - count * number // groups
            each, pool = -(-threads // groups), MODELS // groups
            tasks.append(stack.enter_context(make_task(robot, terrain, size, own, each, ground_seed=seed, pool=pool)))
        yield tasks


def make_task(
    robot: str,
    terrain: str,
    count: int,
    seed: int = 0,
    threads: int = 2,
    randomization: Randomization = HIMLOCO,
    config: TaskConfig | None = None,
    ground_seed: int | None = None,
    pool: int = MODELS,
) -> LocomotionTask:
    """Robots of one kind, drawn from `pool` models, on one of TERRAINS, whose ground has `seed` or one of its own.

    Raises ValueError naming what there is.
    """
    ground = named_terrain(terrain, seed if ground_seed is None else ground_seed)
    robots = BatchedQuadruped(load_figures(robot), ground, count, seed, randomization, pool, threads)
    return LocomotionTask(robots, seed, config)
