"""What a policy promises: what it must see, what it gives, and when its actions are meant for."""

from __future__ import annotations

from contracts.feature import Feature
from contracts.robot import PositionControl
from contracts.serialization import Contract, require, require_finite, require_unique


class PolicyObservation(Contract, frozen=True, kw_only=True):
    """One observed feature and how many of its latest values the policy looks at, `action_period_s` apart."""

    feature: Feature
    history: int = 1

    def __post_init__(self) -> None:
        require(1 <= self.history <= 1000, f"{self.feature.key}: history {self.history} is not within [1, 1000]")


class PolicyContract(Contract, frozen=True, kw_only=True):
    """A trained policy's side of the promise; lies in every checkpoint and bundle.

    Attributes:
        policy: family (`diffusion`, `carp`, ...).
        robot: name of the robot whose data it was trained on.
        observation_set: that robot's set of what it may see.
        task: what it was trained to do, as text; of several, one a line.
        observations: features, in order, with histories.
        action: the action vector; element names are the robot's command channels.
        action_period_s: seconds between two actions of a chunk.
        horizon: actions in a chunk. Action k of a chunk is meant for (time of its observation) + k * action_period_s.
        execute: actions carried out before the next observation is asked for (receding horizon).
        position_control: that it was trained with, if that matters to it.
    """

    policy: str
    robot: str
    observation_set: str
    task: str
    observations: tuple[PolicyObservation, ...]
    action: Feature
    action_period_s: float
    horizon: int
    execute: int
    position_control: PositionControl | None = None

    def __post_init__(self) -> None:
        require(bool(self.observations), "a policy must observe something")
        require_unique("observation", tuple(o.feature.key for o in self.observations))
        require(self.action.key == "action", f"the action's key is 'action', not {self.action.key!r}")
        require_finite("action_period_s", self.action_period_s)
        require(0 < self.action_period_s <= 10, f"action_period_s {self.action_period_s} is not within (0, 10]")
        require(1 <= self.execute <= self.horizon <= 10_000, "need 1 <= execute <= horizon <= 10000")

    @property
    def instructions(self) -> tuple[str, ...]:
        """The tasks that it was trained to do, each as text."""
        return tuple(self.task.splitlines()) or ("",)

    def observation(self, key: str) -> PolicyObservation:
        """The observation of that key. Raises KeyError."""
        for observation in self.observations:
            if observation.feature.key == key:
                return observation
        raise KeyError(key)
