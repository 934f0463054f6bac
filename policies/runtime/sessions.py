"""What lives from one observation to the next: a session is one episode of one policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from contracts import PolicyContract
from execution.chunk import ActionChunk
from execution.observation import Observation
from policies.runtime.errors import PolicyOutputError
from policies.runtime.graphs import TASK, Array, GraphRunner

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class EpisodeStart:
    """How an episode begins.

    Attributes:
        seed: of all randomness in it.
        task: index of the instruction to follow, in the policy's contract.
        prefix: first actions of each chunk that repeat what the chunk before it says for the same time, because they
            will be under way when the new chunk arrives.
    """

    seed: int
    task: int = 0
    prefix: int = 0


class Session(ABC):
    """One episode: give it an observation, get an action chunk.

    Attributes:
        graphs: names of the graphs that this kind of session calls.
        residual_noise: standard deviation of the noise left in each action of a chunk, of which 1 would be nothing but
            noise; None of a policy whose actions are all decided.
        imagines: control periods ahead of the pictures that it imagines with each chunk; empty if it imagines none.
        camera: key of the observed pictures that they continue.
    """

    graphs: ClassVar[tuple[str, ...]]
    residual_noise: tuple[float, ...] | None = None
    imagines: tuple[int, ...] = ()
    camera: str = ""

    def __init__(
        self, contract: PolicyContract, sampler: Any, runners: Mapping[str, GraphRunner], start: EpisodeStart
    ) -> None:
        """`sampler`: of the kind that this session runs; `start`: one that `check_start` accepts."""
        self.contract = contract
        self.sampler = sampler
        self.runners = runners
        self.random = np.random.default_rng(start.seed)
        self._task = start.task
        self._period_ns = round(contract.action_period_s * NANOSECONDS)

    @classmethod
    def check_start(cls, contract: PolicyContract, sampler: Any, start: EpisodeStart) -> None:
        """Refuse what this kind of policy cannot do. Raises ValueError."""
        if start.prefix:
            raise ValueError(
                f"a {contract.policy} policy cannot continue the chunk before: choose another stitching than prefix"
            )

    def act(self, observation: Observation) -> ActionChunk:
        """Actions for the `horizon` periods from the observation's stamp on, in the contract's units.

        Raises:
            ValueError: the observation is not what the contract asks for; says which feature and why.
            PolicyOutputError: the network answered NaN or infinity.
        """
        inputs = checked_inputs(self.contract, observation)
        if len(self.contract.instructions) > 1:
            inputs[TASK] = np.array([self._task], dtype=np.int64)
        actions = self.infer(inputs, observation.stamp_ns)
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
    def check_graphs(cls, contract: PolicyContract, sampler: Any, runners: Mapping[str, GraphRunner]) -> None:
        """Refuse graphs that do not fit the contract, the sampler or each other. Raises ValueError."""

    def imagination(self) -> Callable[[], NDArray[np.uint8]]:
        """What decodes the pictures that the last chunk goes with, uint8 [len(imagines), height, width, 3].

        It may be called later, when there are newer chunks, and in another thread, but in one at a time.

        Raises:
            ValueError: nothing was imagined.
        """
        raise ValueError(f"a {self.contract.policy} policy imagines no pictures")

    @abstractmethod
    def infer(self, inputs: Mapping[str, Array], stamp_ns: int) -> NDArray[np.float32]:
        """Actions [horizon, action_dim] for checked observations, key -> [1, history, *shape], made at `stamp_ns`."""


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
