"""Meta-World's scripted experts, in contract units."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from contracts import RobotContract, load_robot
from sim.cameras import ROBOT
from sim.environments import MetaWorldEnv, contract_units
from sim.tasks import instruction
from sim.world import import_metaworld


class Expert:
    """The scripted policy of one task; it has no memory between steps.

    Args:
        task: name without `-v3`.
        robot: contract whose limits the actions keep; None is the project's.

    Raises:
        ValueError: no such task.
        MissingMetaWorld: Meta-World is not installed.
    """

    def __init__(self, task: str, robot: RobotContract | None = None) -> None:
        instruction(task)
        _, policies = import_metaworld()
        self._policy = policies[f"{task}-v3"]()
        channels = (robot or load_robot(ROBOT)).command.channels
        self._low = np.array([c.min for c in channels])
        self._high = np.array([c.max for c in channels])

    def act(self, env: MetaWorldEnv) -> npt.NDArray[np.float32]:
        """The expert's action for the environment's current state, float32 [4].

        It reads the full state, whatever the environment's observation set shows a policy.
        """
        return self.action(env.state)

    def action(self, state: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """The expert's action for Meta-World's 39-vector, float32 [4] in contract units, within the limits."""
        full_command = np.clip(np.asarray(self._policy.get_action(state), dtype=np.float64), -1.0, 1.0)
        return np.clip(contract_units(full_command), self._low, self._high).astype(np.float32)
