"""Meta-World's environment of one task, made to repeat itself: a seed gives the same episode, bit for bit."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from ctypes.util import find_library
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt

from sim.tasks import instruction

if TYPE_CHECKING:
    import mujoco

DRAWER = "drawer-open"
MOVABLE = ("push", "pick-place", DRAWER)
"""Tasks whose object `World.move_object` can displace: a puck, or a drawer with its cabinet."""

NOT_COPIED = ("model", "data", "mujoco_renderer")  # native memory, put back by other means


class MissingMetaWorld(ImportError):
    """Meta-World is not installed."""


def import_metaworld() -> tuple[dict[str, type], dict[str, type]]:
    """Meta-World's environment classes and expert policies, by `<task>-v3`.

    Raises:
        MissingMetaWorld: it is not installed; says what to install.
    """
    choose_offscreen_gl()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ModuleNotFoundError as error:
        raise MissingMetaWorld(
            f"this needs Meta-World ({error.name!r} is missing): pip install 'visuomotor[metaworld]'"
        ) from None
    # The experts ask for more than full speed on purpose and rely on the clip.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", module="metaworld")
    return dict(ALL_V3_ENVIRONMENTS), dict(ENV_POLICY_MAP)


def choose_offscreen_gl() -> None:
    """Let MuJoCo render without a screen: EGL, else OSMesa, unless MUJOCO_GL says otherwise. Before mujoco's import."""
    if sys.platform != "linux" or "MUJOCO_GL" in os.environ or "mujoco" in sys.modules:
        return
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return


class World:
    """One task's physics, with nothing left over from earlier episodes.

    Meta-World's environments keep state between episodes in three places besides MjData: arrays of the compiled model
    (body and site positions), Python attributes, and random generators. A copy of the first two is taken after
    construction and put back at every reset.
    """

    def __init__(self, task: str) -> None:
        instruction(task)  # refuses an unknown task, naming near ones
        self.task = task
        environments, _ = import_metaworld()
        self.inner: Any = environments[f"{task}-v3"]()
        # As Meta-World's multi-task benchmarks do: the goal is in the observation. The space was cached without it.
        self.inner._partially_observable = False
        self.inner._set_task_called = True
        self.inner.seeded_rand_vec = True
        self.inner.__dict__.pop("sawyer_observation_space", None)
        self._low = np.asarray(self.inner.sawyer_observation_space.low)
        self._high = np.asarray(self.inner.sawyer_observation_space.high)
        self._prepare_rendering()
        self._pristine_model = _array_fields(self.model)
        self._pristine_attributes = copy.deepcopy(self._attributes())
        self.state: npt.NDArray[np.float64] = np.zeros(len(self._low))

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        return self.inner.model

    @property
    def data(self) -> mujoco.MjData:
        """The simulation state."""
        return self.inner.data

    @property
    def period_s(self) -> float:
        """Seconds of one control step."""
        return float(self.inner.dt)

    def reset(self, seed: int) -> npt.NDArray[np.float64]:
        """Start the episode of `seed`; returns Meta-World's 39-vector, the goal included.

        As in Meta-World's own benchmarks there are two passes: the first draws the positions, the second starts with
        everything in place and the draw frozen. Its resets read the observation before the last change of the state
        (a window stands 0.2 m from where it is shown), so it is read again after a forward pass, as its steps do.
        """
        import mujoco

        env = self.inner
        for field, value in self._pristine_model.items():
            getattr(self.model, field)[...] = value
        for name in set(self._attributes()) - set(self._pristine_attributes):
            del env.__dict__[name]
        env.__dict__.update(copy.deepcopy(self._pristine_attributes))
        mujoco.mj_resetData(self.model, self.data)
        env.seed(seed)
        env._freeze_rand_vec = False
        env.reset_model()
        env._freeze_rand_vec = True
        mujoco.mj_resetData(self.model, self.data)
        env.reset_model()
        mujoco.mj_forward(self.model, self.data)
        frame = np.asarray(env._get_curr_obs_combined_no_goal(), dtype=np.float64)
        env._prev_obs = frame.copy()
        self.state = np.clip(np.hstack((frame, frame, env._get_pos_goal())), self._low, self._high)
        return self.state

    def step(self, action: npt.NDArray[np.float64]) -> tuple[float, bool]:
        """One control period under Meta-World's own action (4 numbers in [-1, 1]); returns (reward, success)."""
        self.inner.curr_path_length = 0  # time limits are the caller's: a robot's body runs on
        self.state, reward, _, _, info = self.inner.step(action)
        return float(reward), bool(info["success"])

    @property
    def object_place(self) -> npt.NDArray[np.float64]:
        """Where the task's object stands, [2] m in the base frame, as its resets draw it. Raises as `move_object`."""
        self._check_movable()
        body = "drawer" if self.task == DRAWER else "obj"
        return np.array(self.data.body(body).xpos[:2])

    @property
    def object_range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Lowest and highest `object_place` that a reset draws, [2] m each. Raises as `move_object`."""
        self._check_movable()
        space = self.inner._random_reset_space
        return np.array(space.low[:2]), np.array(space.high[:2])

    def move_object(self, offset: npt.NDArray[np.float64]) -> None:
        """Displace the task's object by `offset` [2] m in the base frame, at once; it stands still there.

        A drawer's goal moves with its cabinet, as its resets place it; a puck's goal stays. `state` shows it at once.

        Raises:
            ValueError: the task has no object that can be moved so.
        """
        import mujoco

        self._check_movable()
        env, displacement = self.inner, np.array([*offset, 0.0])
        if self.task == DRAWER:
            self.model.body("drawer").pos += displacement
            env._target_pos = env._target_pos + displacement
            self.model.site("goal").pos = env._target_pos
            self.data.joint("goal_slidey").qvel[:] = 0.0
            mujoco.mj_forward(self.model, self.data)
        else:
            env._set_obj_xyz(env.get_body_com("obj") + displacement)
        frame = np.asarray(env._get_curr_obs_combined_no_goal(), dtype=np.float64)
        env._prev_obs = frame.copy()  # of the next step: the frame before it is what is measured now
        state = np.hstack((frame, self.state[len(frame) : 2 * len(frame)], env._get_pos_goal()))
        self.state = np.clip(state, self._low, self._high)

    def close(self) -> None:
        """Free what Meta-World holds."""
        self.inner.close()

    def _check_movable(self) -> None:
        if self.task not in MOVABLE:
            raise ValueError(f"the object of {self.task!r} cannot be moved; that of {', '.join(MOVABLE)} can")

    def _attributes(self) -> dict[str, Any]:
        """The environment's Python state: everything but native memory and spaces, which never change."""
        return {
            name: value
            for name, value in self.inner.__dict__.items()
            if name not in NOT_COPIED and not isinstance(value, gymnasium.Space)
        }

    def _prepare_rendering(self) -> None:
        """Fast pictures the right way up; must come before the first rendering context is made.

        Meta-World's shadows (4096 x 4096) and anti-aliasing cost 80 of its 85 ms a picture in software GL. Its cameras
        that hang in the room are mounted upside down; they are turned by half a turn about their optical axis.
        """
        import mujoco

        self.model.vis.quality.shadowsize = 0
        self.model.vis.quality.offsamples = 0
        self.model.mat_reflectance[:] = 0.0
        mujoco.mj_forward(self.model, self.data)
        for camera in range(self.model.ncam):
            up = self.data.cam_xmat[camera].reshape(3, 3)[:, 1]
            fixed_to_world = self.model.cam_bodyid[camera] == 0
            if fixed_to_world and up[2] < 0:
                half_turn = np.array([0.0, 0.0, 0.0, 1.0])
                mujoco.mju_mulQuat(self.model.cam_quat[camera], self.model.cam_quat[camera].copy(), half_turn)


def _array_fields(model: mujoco.MjModel) -> dict[str, npt.NDArray[Any]]:
    """Copies of the arrays of the model that an environment could change (kinematics, sizes, colours, equality)."""
    prefixes = ("body_", "geom_", "site_", "jnt_", "eq_", "cam_", "light_", "dof_", "qpos", "actuator_", "mat_")
    fields = {}
    for name in dir(model):
        if name.startswith(prefixes):
            value = getattr(model, name)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
                fields[name] = value.copy()
    return fields
