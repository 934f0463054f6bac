"""Many quadrupeds stepped together by `mujoco.rollout`, each with its own model, delay, disturbance and resets."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from sim.legged.figures import JOINTS, QuadrupedFigures
from sim.legged.mjcf import TIMESTEP, TRUNK
from sim.legged.randomization import HIMLOCO, Randomization, sample_models
from sim.legged.snapshot import Snapshot, generator_from_array, generator_to_array, restore
from sim.legged.state import (
    POSITIONS,
    STATE_SIZE,
    VELOCITIES,
    Array,
    QuadrupedState,
    read_state,
    replace_rows,
    turn,
    yaw_quaternion,
)
from sim.legged.terrain import Terrain

CHUNK = 8  # robots that a thread steps before it takes the next ones: none waits long for another at the end
SUBSTEPS = 4  # of 5 ms: commands at 50 Hz, position control at 200 Hz
CLEARANCE_M = 0.005  # between the highest ground under a robot and its feet when it is put down
REACH_M = 0.1  # the ground is looked at this far around each hip

Indices = NDArray[np.int64]


MODELS = 64  # that robots are drawn from: so many differ enough, and their grounds take half a gigabyte


class BatchedQuadruped:
    """`count` robots of one kind on one terrain, at the default pose in the middle of the first tile until `reset`.

    What is drawn comes from `seed` in the order of the calls, and no environment sees another's numbers: the same
    calls give the same results, bit for bit, with any number of threads. Use it in a `with` statement, or `close()` it.

    Args:
        figures: which robot.
        terrain: the ground.
        count: environments.
        seed: of models, delays and what `reset` draws.
        randomization: ranges of what differs.
        pool: models to draw from; an environment draws another one at each reset.
        threads: that step at the same time.
        body_contacts: trunks and thighs touch the ground too.

    Raises:
        ValueError: no environment, no thread, or a delay that is longer than a command.
    """

    def __init__(
        self,
        figures: QuadrupedFigures,
        terrain: Terrain,
        count: int,
        seed: int = 0,
        randomization: Randomization = HIMLOCO,
        pool: int = MODELS,
        threads: int = 2,
        body_contacts: bool = False,
    ) -> None:
        import mujoco
        from mujoco.rollout import Rollout

        if count < 1 or threads < 1:
            raise ValueError(f"{count} environments, {threads} threads: at least 1 of each")
        if not 0 <= randomization.delay[0] <= randomization.delay[1] <= SUBSTEPS:
            raise ValueError(f"a delay of {randomization.delay} steps does not fit a command of {SUBSTEPS}")
        self.figures, self.terrain, self.randomization = figures, terrain, randomization
        self.count, self.period_s = count, SUBSTEPS * TIMESTEP
        self._rng = np.random.default_rng(seed)
        model_seed = int(self._rng.integers(2**31))
        self.pool = sample_models(figures, terrain, randomization, pool, model_seed, body_contacts)
        first = self.pool.models[0]
        self._data = [mujoco.MjData(first) for _ in range(threads)]
        self._rollout = Rollout(nthread=threads if threads > 1 else 0)
        self._spec = mujoco.mjtState.mjSTATE_CTRL.value
        self._spec_with_force = self._spec | mujoco.mjtState.mjSTATE_XFRC_APPLIED.value
        trunk = len(JOINTS) + 6 * first.body(TRUNK).id
        self._force = slice(trunk, trunk + 3)
        commands_and_forces = len(JOINTS) + 6 * first.nbody
        self._control = np.zeros((count, SUBSTEPS, commands_and_forces))
        self._states = np.zeros((count, SUBSTEPS, STATE_SIZE))
        self._sensors = np.zeros((count, SUBSTEPS, first.nsensordata))
        self._warmstart = np.zeros((count, first.nv))
        self._state: QuadrupedState | None = None
        self.model_index: Indices = np.zeros(count, dtype=np.int64)
        self.delay: Indices = np.zeros(count, dtype=np.int64)
        self._models = [first] * count
        self._target = np.tile(np.array(figures.default_pose), (count, 1))
        self._corners = _corners(figures)
        self.reset(np.arange(count))

    @property
    def state(self) -> QuadrupedState:
        """All environments after the last `step` and `reset`."""
        if self._state is None:
            self._state = self._read(np.s_[:])
        return self._state

    def reset(
        self,
        environments: Indices,
        xy: Array | None = None,
        yaw: Array | None = None,
        joint_position: Array | None = None,
        velocity: Array | None = None,
    ) -> None:
        """Put some environments down at a place, each with a newly drawn model and delay; the others stay as they are.

        Args:
            environments: their indices, [K].
            xy: where, in the world, m, [K, 2]; None: the middle of the first tile.
            yaw: heading, rad, [K]; None: 0.
            joint_position: rad, [K, 12]; None: the default pose.
            velocity: of the trunk, in the world, linear (m/s) and angular (rad/s), [K, 6]; None: at rest.
        """
        count = len(environments)
        heading = np.zeros(count) if yaw is None else np.asarray(yaw, dtype=np.float64)
        place = np.tile(self.terrain.centre(0, 0), (count, 1)) if xy is None else np.asarray(xy, dtype=np.float64)
        low, high = self.randomization.delay
        self.model_index[environments] = self._rng.integers(len(self.pool.models), size=count)
        self.delay[environments] = self._rng.integers(low, high + 1, size=count)
        physics = np.zeros((count, STATE_SIZE))
        qpos, qvel = physics[:, POSITIONS], physics[:, VELOCITIES]
        qpos[:, :2] = place
        qpos[:, 2] = self._highest_ground(place, heading) + self.figures.unloaded_height + CLEARANCE_M
        qpos[:, 3:7] = yaw_quaternion(heading)
        qpos[:, 7:] = self.figures.default_pose if joint_position is None else joint_position
        if velocity is not None:
            qvel[:, :3] = velocity[:, :3]
            qvel[:, 3:6] = turn(velocity[:, 3:], -heading)
        self._target[environments] = qpos[:, 7:]
        self._states[environments, -1] = physics
        self._warmstart[environments] = 0.0
        for environment in environments:
            self._models[environment] = self.pool.models[self.model_index[environment]]
            self._measure(int(environment))
        if self._state is not None:
            self._state = replace_rows(self._state, environments, self._read(environments))

    def step(self, target: Array, force: Array | None = None) -> QuadrupedState:
        """One command period.

        Args:
            target: joint positions to go to, rad, [N, 12]. An environment obeys its last one until its delay is over.
            force: on the trunks' centres of mass during the whole period, in the world, N, [N, 3]; None: none.

        Raises:
            ValueError: an array of another shape, or a number that is not finite; nothing moved.
        """
        _check("target", target, (self.count, len(JOINTS)))
        delayed = np.arange(SUBSTEPS) < self.delay[:, None]
        self._control[:, :, : len(JOINTS)] = np.where(delayed[:, :, None], self._target[:, None], target[:, None])
        spec, control = self._spec, self._control[:, :, : len(JOINTS)]
        if force is not None:
            _check("force", force, (self.count, 3))
            self._control[:, :, self._force] = force[:, None]
            spec, control = self._spec_with_force, self._control
        before = self._states[:, -1].copy()
        self._rollout.rollout(
            self._models,
            self._data,
            before,
            np.ascontiguousarray(control),
            control_spec=spec,
            skip_checks=True,
            chunk_size=CHUNK,
            nstep=SUBSTEPS,
            initial_warmstart=self._warmstart,
            state=self._states,
            sensordata=self._sensors,
        )
        last, one_before = self._states[:, -1, VELOCITIES], self._states[:, -2, VELOCITIES]
        self._warmstart = (last - one_before) / TIMESTEP  # Euler: exact
        self._target[:] = target
        self._state = None
        return self.state

    def snapshot(self) -> Snapshot:
        """All that `restore` needs to go on from here bit for bit; the models come from the seed."""
        names = ("states", "sensors", "warmstart", "target")
        arrays = {name: getattr(self, f"_{name}").copy() for name in names}
        arrays |= {"model_index": self.model_index.copy(), "delay": self.delay.copy()}
        return arrays | {"rng": generator_to_array(self._rng)}

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot of a batch made with the same arguments. Raises ValueError if it does not fit."""
        for name in ("states", "sensors", "warmstart", "target"):
            restore(getattr(self, f"_{name}"), snapshot[name], name)
        restore(self.model_index, snapshot["model_index"], "model_index")
        restore(self.delay, snapshot["delay"], "delay")
        generator_from_array(self._rng, snapshot["rng"])
        self._models = [self.pool.models[index] for index in self.model_index]
        self._state = None

    def close(self) -> None:
        """End the threads."""
        self._rollout.close()

    def __enter__(self) -> BatchedQuadruped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, rows: Indices | slice) -> QuadrupedState:
        return read_state(self._states[rows, -1], self._sensors[rows, -1], self.terrain, self.figures.foot_radius)

    def _measure(self, environment: int) -> None:
        """The sensors of one environment at its state, for which no step has been made."""
        import mujoco

        model, data = self._models[environment], self._data[0]
        mujoco.mj_resetData(model, data)
        mujoco.mj_setState(model, data, self._states[environment, -1], mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        data.ctrl[:] = self._target[environment]
        mujoco.mj_forward(model, data)
        self._sensors[environment, -1] = data.sensordata

    def _highest_ground(self, place: Array, heading: Array) -> Array:
        """Under the feet of robots put down at `place` [K, 2] with `heading` [K], m, [K]."""
        corners = turn(self._corners[None], heading)
        return self.terrain.height(place[:, None] + corners).max(axis=1)


def _corners(figures: QuadrupedFigures) -> Array:
    """Points in the trunk's plane around the four feet, m, [36, 2]."""
    x, y, _ = figures.hip_position
    feet = np.array([(sx * x, sy * (y + figures.thigh_offset)) for sx in (1, -1) for sy in (1, -1)])
    around = np.array([(dx, dy) for dx in (-REACH_M, 0, REACH_M) for dy in (-REACH_M, 0, REACH_M)])
    return (feet[:, None] + around[None]).reshape(-1, 2)


def _check(what: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{what} is {array.dtype} {array.shape}; finite numbers of shape {shape} would be right")
