"""The body of an arm in one of Meta-World's worlds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts import Camera, RobotContract
from ros_nodes.body import Body
from sim import MetaWorldEnv


class MetaWorldBody(Body):
    """See `Body`; its tasks are Meta-World's."""

    def __init__(self, robot: RobotContract, task: str, seed: int) -> None:
        super().__init__(robot)
        self._env: MetaWorldEnv | None = None
        self.reset(task, seed)

    @property
    def env(self) -> MetaWorldEnv:
        """The simulator."""
        assert self._env is not None  # reset() made it
        return self._env

    @property
    def episode(self) -> dict[str, str | int | None]:
        return {"task": self.env.instruction, "task_name": self.env.task, "seed": self.env.episode_seed}

    @property
    def success(self) -> bool:
        return bool(self.env.success)

    def measurements(self) -> dict[str, NDArray[np.float64]]:
        return self.env.measurements()

    def picture(self, camera: Camera) -> NDArray[np.uint8]:
        return self.env.render_camera(camera.name)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _begin(self, task: str, seed: int) -> None:
        if self._env is None or self._env.task != task:
            env = MetaWorldEnv(task, next(iter(self.robot.observation_sets)), self.robot)  # it is never asked for one
            self.close()
            self._env = env
        self.env.begin(seed)

    def _step(self, command: NDArray[np.float64], push: NDArray[np.float64] | None) -> None:
        self.env.advance(command)

    def _last_command(self) -> NDArray[np.float64]:
        return self.env.applied_action.astype(np.float64)
