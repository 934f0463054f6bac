"""A scripted expert in the place of a trained policy: the ceiling of an evaluation, and nothing to train."""

from __future__ import annotations

import numpy as np

from contracts import PolicyContract, PolicyObservation, RobotContract, load_robot
from execution.chunk import ActionChunk
from execution.observation import Observation
from sim.cameras import ROBOT
from sim.experts import Expert
from sim.tasks import instruction

STATE = "observation.state"
HORIZON = 8
"""The expert knows only its next action; it is repeated for as long as a late successor may need."""


class ExpertRuntime:
    """The expert of `task` behind the interface of a loaded policy; it sees the state set and decides every step.

    Raises:
        ValueError: no such task.
        MissingMetaWorld: Meta-World is not installed.
    """

    residual_noise = None

    def __init__(self, task: str, robot: RobotContract | None = None) -> None:
        robot = robot or load_robot(ROBOT)
        self._expert = Expert(task, robot)
        self._contract = PolicyContract(
            policy="expert",
            robot=robot.name,
            observation_set="state",
            task=instruction(task),
            observations=tuple(PolicyObservation(feature=f) for f in robot.observation_features("state")),
            action=robot.action_feature,
            action_period_s=robot.control_period_s,
            horizon=HORIZON,
            execute=1,
        )

    @property
    def contract(self) -> PolicyContract:
        """State in, one action (repeated) out, every step."""
        return self._contract

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> ExpertRuntime:
        """An episode; the expert remembers nothing, draws nothing and knows one task only, whatever it is told.

        Raises:
            ValueError: a prefix, which needs memory.
        """
        if prefix:
            raise ValueError("an expert cannot continue the chunk before: choose another stitching than prefix")
        return self

    def act(self, observation: Observation) -> ActionChunk:
        """The expert's action for the observed state."""
        state = observation.values[STATE][-1].astype(np.float64)
        action = self._expert.action(state)
        period_ns = round(self._contract.action_period_s * 1e9)
        return ActionChunk(np.tile(action, (HORIZON, 1)), observation.stamp_ns, period_ns, self._contract.action.names)
