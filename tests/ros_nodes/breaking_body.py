"""A process of the simulated body whose physics break after some periods, or at a reset."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from contracts import RobotContract
from ros_nodes import mujoco_node
from ros_nodes.body import Body

LASTS = 20  # control periods


class BreakingBody(Body):
    """Measures nothing but zeros; an episode with the seed 13 cannot be begun."""

    episode = {"task": "break", "task_name": "break", "seed": 1}  # noqa: RUF012 - never changed
    success = False

    def measurements(self) -> dict[str, Any]:
        return {sensor.name: np.zeros(len(sensor.fields)) for sensor in self.robot.sensors}

    def picture(self, camera: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _begin(self, task: str, seed: int) -> None:
        if seed == 13:
            raise RuntimeError("the model does not compile")

    def _step(self, command: Any, push: Any) -> None:
        if self._ticks >= LASTS:
            raise RuntimeError("the solver diverged")

    def _last_command(self) -> Any:
        return np.zeros(len(self.robot.command.channels))


def make(robot: RobotContract, task: str, seed: int) -> Body:
    return BreakingBody(robot)


if __name__ == "__main__":
    mujoco_node.make_body = make
    sys.exit(mujoco_node.main())
