"""Meta-World's 50 tasks as Gymnasium environments that speak the robot contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from contracts import Feature, RobotContract, load_robot
from sim.cameras import ROBOT, with_cameras
from sim.fields import field_indices
from sim.rendering import CameraRenderer
from sim.tasks import EPISODE_STEPS, instruction
from sim.world import World

CHANNELS = ("ee_velocity_x", "ee_velocity_y", "ee_velocity_z", "gripper_effort")
GRIPPER_OPEN = -1.0  # gripper_effort; what a Meta-World reset leaves commanded
VIDEO_SIZE = (480, 480)
SEED_RANGE = 2**31

FULL_COMMAND = np.array([0.8, 0.8, 0.8, 1.0])
"""Meta-World's action 1.0 in contract units: its target moves 1/100 m a step (SawyerXYZEnv.action_scale) at 80 Hz."""

Observation = dict[str, npt.NDArray[Any]]


class MetaWorldEnv(gymnasium.Env[Observation, npt.NDArray[np.float32]]):
    """One Meta-World task behind the robot contract, 80 steps a second.

    Observations: a dict, feature key -> float32 [elements] in the contract's order, or uint8 [height, width, 3].
    Actions: float32 [4] in contract units: end-effector velocity in the base frame (m/s, x y z; Meta-World's action 1.0
    is 0.8 m/s), and gripper effort in [-1, 1] (+1 closes). Outside the contract's limits they are clipped to them.
    The reward is Meta-World's, in [0, 10]. An episode terminates at success and is truncated after 500 steps; it may be
    stepped on beyond both.

    Args:
        task: name without `-v3`, such as "drawer-open".
        observation_set: one of the contract's.
        robot: contract; None is the project's `metaworld_sawyer`.
        cameras: show these of Meta-World's cameras instead of the contract's.
        image_size: (height, width) of every picture instead of the contract's.
        render_mode: "rgb_array" for `render()`.

    Raises:
        ValueError: no such task, observation set or camera, or a robot that this world does not simulate.
        MissingMetaWorld: Meta-World is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        task: str,
        observation_set: str = "state",
        robot: RobotContract | None = None,
        cameras: tuple[str, ...] | None = None,
        image_size: tuple[int, int] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = task
        self.instruction = instruction(task)
        self.observation_set = observation_set
        self.robot = with_cameras(robot or load_robot(ROBOT), cameras, image_size)
        self.features: tuple[Feature, ...] = self.robot.observation_features(observation_set)
        self.render_mode = render_mode
        self.world = World(task)
        self._check_robot()
        self._renderer = CameraRenderer(self.world.model)
        self._make_spaces()
        self._index_fields()
        self._applied = np.zeros(len(CHANNELS), dtype=np.float32)
        self._steps = 0
        self.episode_seed: int | None = None
        self.success = False

    # -- Gymnasium ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the same seed gives the same one, bit for bit, in any process and after any other episode.

        Without a seed, the next one is drawn from the generator that the last seed left. There are no options.
        """
        super().reset(seed=seed)
        self.begin(int(self.np_random.integers(SEED_RANGE)) if seed is None else seed)
        return self.observe(), self._info()

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control period: `advance`, then `observe`."""
        reward = self.advance(action)
        truncated = self._steps >= EPISODE_STEPS
        return self.observe(), reward, self.success, truncated, self._info()

    def render(self) -> npt.NDArray[np.uint8]:
        """The first camera, 480 x 480, for `render_mode="rgb_array"`."""
        return self.render_camera(self.robot.cameras[0].name, *VIDEO_SIZE)

    def close(self) -> None:
        """Free the GL contexts."""
        self._renderer.close()
        self.world.close()

    # -- the robot's body --------------------------------------------------------------------------------------------

    def begin(self, seed: int) -> None:
        """Put everything where the episode of `seed` starts, nothing rendered: `reset` without the observation."""
        self.world.reset(seed)
        self._applied[:] = (0.0, 0.0, 0.0, GRIPPER_OPEN)
        self._steps = 0
        self.success = False
        self.episode_seed = seed

    def advance(self, action: npt.NDArray[Any]) -> float:
        """One control period of physics, nothing rendered; returns the reward, sets `success` and `applied_action`.

        Raises:
            ValueError: not 4 finite numbers; nothing moved.
        """
        command = np.asarray(action, dtype=np.float32)
        if command.shape != (len(CHANNELS),) or not np.isfinite(command).all():
            raise ValueError(f"an action is {len(CHANNELS)} finite numbers ({', '.join(CHANNELS)}), not {action!r}")
        self._applied = np.clip(command, self._action_space.low, self._action_space.high)
        reward, self.success = self.world.step(self._applied / FULL_COMMAND)
        self._steps += 1
        return reward

    def move_object(self, offset: npt.NDArray[np.float64]) -> None:
        """Displace the task's object in mid-episode by `offset`, (x, y) or (x, y, 0) m in the base frame, at once.

        It then stands still. Observations show it and success is judged by it: the goal of drawer-open moves along,
        that of push and pick-place stays. The next episode knows nothing of it.

        Raises:
            ValueError: another task, or an offset that is not horizontal and finite; nothing moved.
        """
        moved = np.asarray(offset, dtype=np.float64)
        if moved.shape not in ((2,), (3,)) or not np.isfinite(moved).all() or moved[2:].any():
            raise ValueError(f"an offset is (x, y) or (x, y, 0), finite, not {offset!r}")
        self.world.move_object(moved[:2])

    def hold_action(self) -> npt.NDArray[np.float32]:
        """Stand still, as the contract's channels hold: no velocity, the gripper as last commanded; float32 [4]."""
        return np.where([c.hold == "last" for c in self.robot.command.channels], self._applied, 0.0).astype(np.float32)

    @property
    def applied_action(self) -> npt.NDArray[np.float32]:
        """What the last step really applied, float32 [4] in contract units; after a reset: still, gripper open."""
        return self._applied.copy()

    @property
    def state(self) -> npt.NDArray[np.float64]:
        """Meta-World's 39-vector, the goal included, whatever the observation set: for experts and checks only."""
        return self.world.state.copy()

    @property
    def qpos(self) -> npt.NDArray[np.float64]:
        """Copy of MuJoCo's generalised positions, [nq]."""
        return self.world.data.qpos.copy()

    @property
    def qvel(self) -> npt.NDArray[np.float64]:
        """Copy of MuJoCo's generalised velocities, [nv]."""
        return self.world.data.qvel.copy()

    def measurements(self) -> dict[str, npt.NDArray[np.float64]]:
        """What every sensor measures now: sensor name -> values in the order of its fields, in its units."""
        values = self._values()
        return {name: values[indices] for name, indices in self._sensor_indices.items()}

    def observe(self, features: Sequence[Feature] | None = None) -> Observation:
        """The observation set now, or only these features of it: key -> float32 vector or uint8 picture."""
        values = self._values()
        observation: Observation = {}
        for feature in self.features if features is None else features:
            if feature.is_image:
                observation[feature.key] = self.render_camera(feature.camera)
            else:
                observation[feature.key] = values[self._feature_indices[feature.key]].astype(np.float32)
        return observation

    def render_camera(self, camera: str, height: int | None = None, width: int | None = None) -> npt.NDArray[np.uint8]:
        """Upright RGB picture of any of the world's cameras, uint8 [height, width, 3].

        Without a size, the contract's. What is drawn is Meta-World's standard: see `CameraRenderer`.

        Raises:
            ValueError: the world has no such camera, or neither the call nor the contract gives its size.
        """
        if height is None or width is None:
            in_contract = self.robot.camera(camera)
            height, width = in_contract.height, in_contract.width
        return self._renderer.render(self.world.data, camera, height, width)

    # -- construction ------------------------------------------------------------------------------------------------

    def _check_robot(self) -> None:
        """Refuse a contract that this world does not simulate, saying why."""
        names = self.robot.action_feature.names
        rate_hz = 1.0 / self.world.period_s
        if self.robot.body != "metaworld":
            raise ValueError(f"robot {self.robot.name!r} has the body {self.robot.body!r}; this world is 'metaworld'")
        if names != CHANNELS:
            raise ValueError(f"robot {self.robot.name!r} is commanded by {names}, Meta-World by {CHANNELS}")
        if abs(self.robot.control_rate_hz - rate_hz) > 1e-6 * rate_hz:
            raise ValueError(f"Meta-World steps at {rate_hz:g} Hz, the contract says {self.robot.control_rate_hz:g} Hz")
        have = {self.world.model.joint(i).name for i in range(self.world.model.njnt)}
        missing = [name for name in self.robot.joint_names if name not in have]
        if missing:
            raise ValueError(f"Meta-World's Sawyer has no joints {missing}")

    def _make_spaces(self) -> None:
        channels = self.robot.command.channels
        self._action_space = spaces.Box(
            np.array([c.min for c in channels], dtype=np.float32), np.array([c.max for c in channels], dtype=np.float32)
        )
        self.action_space = self._action_space
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                f.key: spaces.Box(0, 255, f.shape, np.uint8) if f.is_image else spaces.Box(-np.inf, np.inf, f.shape)
                for f in self.features
            }
        )

    def _index_fields(self) -> None:
        indices = field_indices(self.robot)
        joints = [self.world.model.joint(name) for name in self.robot.joint_names]
        self._joint_positions = np.array([joint.qposadr[0] for joint in joints])
        self._sensor_indices = {s.name: np.array([indices[f] for f in s.fields]) for s in self.robot.sensors}
        self._feature_indices = {
            f.key: np.array([indices[name] for name in f.names]) for f in self.features if not f.is_image
        }

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, "seed": self.episode_seed}

    def _values(self) -> npt.NDArray[np.float64]:
        """All that can be measured, in the order of `field_indices`."""
        return np.concatenate((self.world.state, self.world.data.qpos[self._joint_positions]))


def contract_units(action: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Meta-World's action [4] as a command of the contract: m/s, and gripper effort as it is."""
    return action * FULL_COMMAND
