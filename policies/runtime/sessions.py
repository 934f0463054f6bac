"""What lives from one observation to the next: a session is one episode of one policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from contracts import PolicyContract
from execution.chunk import ActionChunk
from execution.observation import Observation
from policies.runtime.errors import PolicyOutputError
from policies.runtime.graphs import Array, GraphRunner

NANOSECONDS = 1_000_000_000


class Session(ABC):
    """One episode: give it an observation, get an action chunk.

    Attributes:
        graphs: names of the graphs that this kind of session calls.
    """

    graphs: ClassVar[tuple[str, ...]]

    def __init__(self, contract: PolicyContract, runners: Mapping[str, GraphRunner], seed: int) -> None:
        self.contract = contract
        self.runners = runners
        self.random = np.random.default_rng(seed)
        self._period_ns = round(contract.action_period_s * NANOSECONDS)

    def act(self, observation: Observation) -> ActionChunk:
        """Actions for the `horizon` periods from the observation's stamp on, in the contract's units.

        Raises:
            ValueError: the observation is not what the contract asks for; says which feature and why.
            PolicyOutputError: the network answered NaN or infinity.
        """
        actions = self.infer(checked_inputs(self.contract, observation))
        if not np.isfinite(actions).all():
            bad = int(np.count_nonzero(~np.isfinite(actions)))
            raise PolicyOutputError(f"{bad} of {actions.size} numbers of the action chunk are not finite")
        return ActionChunk(
            actions=actions.astype(np.float64),
            start_ns=observation.stamp_ns,
            period_ns=self._period_ns,
            names=self.contract.action.names,
        )

    @classmethod
    @abstractmethod
    def check_graphs(cls, contract: PolicyContract, runners: Mapping[str, GraphRunner]) -> None:
        """Refuse graphs that do not fit the contract or each other. Raises ValueError."""

    @abstractmethod
    def infer(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """Actions [horizon, action_dim] for checked observations, key -> [1, history, *shape]."""


def checked_inputs(contract: PolicyContract, observation: Observation) -> dict[str, Array]:
    """The observation as [1, history, *shape] arrays of the contract's dtypes.

    Raises:
        ValueError: a feature is missing, or has another shape or kind of number, or is not finite.
    """
    inputs = {}
    for wanted in contract.observations:
        feature = wanted.feature
        if feature.key not in observation.values:
            raise ValueError(f"the observation lacks {feature.key!r}; it has {sorted(observation.values)}")
        value = np.asarray(observation.values[feature.key])
        shape = (wanted.history, *feature.shape)
        if value.shape != shape:
            raise ValueError(f"{feature.key}: has shape {value.shape}, the policy needs {shape} (history first)")
        if value.dtype != np.uint8 if feature.is_image else value.dtype.kind not in "fiu":
            raise ValueError(f"{feature.key}: has dtype {value.dtype}, the policy needs {feature.dtype}")
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(value, dtype=feature.dtype)[None]
        if not np.isfinite(array).all():
            raise ValueError(f"{feature.key}: has a number that is not finite")
        inputs[feature.key] = array
    return inputs
