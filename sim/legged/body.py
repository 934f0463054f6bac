"""One quadruped as its robot contract describes it, in the simulation that policies are trained in.

The same models, ground, position control (in the actuators, at 200 Hz) and commands (at 50 Hz) as `sim.legged.task`,
with the published figures and without randomisation, delay or measurement noise. Beyond training, trunk and thighs
touch the ground too: a robot that sinks or falls must come to rest on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contracts import RobotContract
from contracts.robot import VELOCITY
from sim.legged.batch import BatchedQuadruped
from sim.legged.episode import TaskConfig, gone_astray, sunk, tilted
from sim.legged.figures import JOINTS, QuadrupedFigures, legs_pose, load_figures
from sim.legged.randomization import NOMINAL
from sim.legged.state import Array, QuadrupedState
from sim.legged.terrain import named_terrain

IMU = "sensor_msgs/msg/Imu"
JOINT_STATE = "sensor_msgs/msg/JointState"

GROUND_SEED = 0  # the ground of a terrain is always the same; an episode's seed draws the place on it
CROUCH = legs_pose(0.4, 1.36, 1.36, -2.65)
LOWER_TICKS, SETTLE_TICKS = 50, 100  # from the default pose down to the crouch; then limp, until it lies still
STOOD = 0.8  # of the standing height: who was never so high has not stood up, and cannot fall down
LOST_M = 1.0  # below the ground: it fell off the border of the world

ONE = np.zeros(1, dtype=np.int64)


class Quadruped:
    """The robot of a contract on one of `terrain.TERRAINS`; at an episode's start it lies on its belly, limp.

    The same robot, terrain, seed, targets and forces give the same states, bit for bit.

    Args:
        robot: its contract; joints and fields are found by name, in whatever order.
        terrain: where it walks.
        seed: of the first episode.

    Attributes:
        fallen: it lay on its side, or sank after it had stood, or the physics went astray, since the start.
        stood: it has stood up since the start.

    Raises:
        ValueError: no such terrain, no figures of this robot, or a contract that this simulation does not fit.
    """

    def __init__(self, robot: RobotContract, terrain: str, seed: int) -> None:
        self.robot, self.terrain = robot, terrain
        self.figures = load_figures(robot.name)
        self.ground = named_terrain(terrain, GROUND_SEED)
        _check_sensors(robot)
        _check_gains(robot, self.figures)
        self._order = _order(robot)
        self._batch = BatchedQuadruped(self.figures, self.ground, 1, 0, NOMINAL, pool=1, threads=1, body_contacts=True)
        if abs(robot.control_period_s - self._batch.period_s) > 1e-9:
            rate = 1 / self._batch.period_s
            self.close()
            raise ValueError(f"robot {robot.name!r}: {robot.control_rate_hz} Hz; this simulation takes {rate:g} Hz")
        self._limits = TaskConfig()
        self.reset(seed)

    @property
    def state(self) -> QuadrupedState:
        """Of the whole robot, one row."""
        return self._batch.state

    def reset(self, seed: int) -> None:
        """Begin the episode of a seed: put the robot down at a place that it draws, and let it lie down."""
        rng = np.random.default_rng(seed)
        tile = rng.integers(max(1, len(self.ground.kinds))), rng.integers(self.ground.levels)
        self._place = self.ground.centre(int(tile[0]), int(tile[1])) + rng.uniform(-0.5, 0.5, 2)
        self._yaw = rng.uniform(-np.pi, np.pi)
        self.seed = seed
        self._lie_down()
        self.fallen = self.stood = False

    def measurements(self) -> dict[str, Array]:
        """What every sensor measures now: its name -> values in the order of its fields; without requests."""
        fields = self.fields()
        sensors = [sensor for sensor in self.robot.sensors if not sensor.is_request]
        return {sensor.name: np.array([fields[name] for name in sensor.fields]) for sensor in sensors}

    def fields(self) -> dict[str, float]:
        """What is measured now, by the name of the contract's field."""
        state = self.state
        values = dict(zip(JOINTS, state.joint_position[0], strict=True))
        values |= {name + VELOCITY: v for name, v in zip(JOINTS, state.joint_velocity[0], strict=True)}
        turned = np.roll(state.orientation[0], -1)  # x y z w, as ROS has it
        imu = np.concatenate((turned, state.angular_velocity[0], state.acceleration[0]))
        for sensor in self.robot.sensors:
            if sensor.type == IMU:
                values |= zip(sensor.fields, imu, strict=True)
        return values

    def step(self, target: ArrayLike, force: ArrayLike = (0.0, 0.0, 0.0)) -> None:
        """One control period.

        Args:
            target: joint positions to go to, in the order of the contract's channels, rad, [12]; rounded to float32,
                which is what recordings and datasets keep.
            force: on the trunk's centre of mass, in the world, N, [3].

        Raises:
            ValueError: a number that is not finite, or another shape; nothing moved.
        """
        rounded = np.asarray(target, dtype=np.float32).astype(np.float64)
        self._batch.step(rounded[None, self._order], np.asarray(force, dtype=np.float64)[None])
        self._judge()

    def close(self) -> None:
        """Free the simulation."""
        self._batch.close()

    def _lie_down(self) -> None:
        """Stand, crouch, and let go: what it lies like is physics, not a guess."""
        self._batch.reset(ONE, self._place[None], np.array([self._yaw]))
        still = np.zeros((1, 3))
        standing, crouch = np.array([self.figures.default_pose]), np.array([CROUCH])
        for tick in range(LOWER_TICKS):
            self._batch.step(standing + (tick + 1) / LOWER_TICKS * (crouch - standing), still)
        for _ in range(SETTLE_TICKS):
            self._batch.step(self.state.joint_position, still)

    def _judge(self) -> None:
        """Has it stood up, has it fallen? As in training, but for the way up. Who is lost begins again, fallen."""
        state, limits, standing_height = self.state, self._limits, self.figures.standing_height
        lost = bool(gone_astray(state)[0]) or not state.height[0] > -LOST_M
        self.stood |= bool(state.height[0] > STOOD * standing_height) and not lost
        low = self.stood and bool(sunk(state, limits, standing_height)[0])
        self.fallen |= lost or low or bool(tilted(state, limits)[0])
        if lost:
            self._lie_down()


def _order(robot: RobotContract) -> NDArray[np.int64]:
    """Where each of JOINTS stands among the contract's command channels, [12]."""
    names = [channel.name for channel in robot.command.channels]
    if robot.command.kind != "joint_position" or sorted(names) != sorted(JOINTS):
        given = f"{robot.command.kind} of {', '.join(names)}"
        raise ValueError(
            f"robot {robot.name!r}: this simulation takes joint_position of {', '.join(JOINTS)}, not {given}"
        )
    return np.array([names.index(joint) for joint in JOINTS])


def _check_sensors(robot: RobotContract) -> None:
    """Refuse what is not measured here."""
    if robot.cameras:
        raise ValueError(f"robot {robot.name!r}: this simulation has no camera {robot.cameras[0].name!r}")
    joints = {*JOINTS, *(joint + VELOCITY for joint in JOINTS)}
    for sensor in robot.sensors:
        known = sensor.type == IMU or sensor.is_request
        strange = [f for f in sensor.fields if not known and (sensor.type != JOINT_STATE or f not in joints)]
        if strange:
            raise ValueError(f"robot {robot.name!r}: this simulation does not measure {', '.join(strange)}")


def _check_gains(robot: RobotContract, figures: QuadrupedFigures) -> None:
    """Refuse another position control than the simulation's."""
    stated = robot.command.position_control
    if stated is not None and (stated.kp, stated.kd) != (figures.stiffness, figures.damping):
        right = f"kp {figures.stiffness}, kd {figures.damping} would be right"
        raise ValueError(f"robot {robot.name!r}: position control with kp {stated.kp}, kd {stated.kd}; {right}")
