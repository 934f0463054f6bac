"""A policy's stateless functions, whatever engine runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from contracts import PolicyContract

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorType:
    """Shape and NumPy dtype name of an input or output; a size of -1 is not fixed."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class GraphRunner(ABC):
    """One stateless function: named arrays in, arrays out; of batch 1, or of any where its first size is not fixed.

    Attributes:
        inputs: name -> type.
        outputs: types, in order.
    """

    inputs: dict[str, TensorType]
    outputs: tuple[TensorType, ...]

    @abstractmethod
    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run it; the outputs are the caller's own."""


TASK = "task"  # the input that says which of several instructions to follow


def observation_types(contract: PolicyContract) -> dict[str, TensorType]:
    """The inputs of a graph that takes a policy's observations: key -> [1, history, *shape].

    A policy of several tasks also takes `task` [1], the index of the instruction in the contract.
    """
    types = {
        o.feature.key: TensorType((1, o.history, *o.feature.shape), o.feature.dtype) for o in contract.observations
    }
    return types | ({TASK: TensorType((1,), "int64")} if len(contract.instructions) > 1 else {})


def chunk_type(contract: PolicyContract) -> TensorType:
    """An action chunk: float32 [1, horizon, action_dim]."""
    return TensorType((1, contract.horizon, contract.action.shape[0]))


def check_types(
    name: str, runner: GraphRunner, inputs: Mapping[str, TensorType], outputs: tuple[TensorType, ...]
) -> None:
    """Refuse a graph that does not take and give what its caller will hand it.

    Raises:
        ValueError: names the graph, and what it has and must have.
    """
    if runner.inputs != dict(inputs):
        raise ValueError(f"{name}: takes {_listed(runner.inputs)}; must take {_listed(inputs)}")
    if runner.outputs != outputs:
        raise ValueError(f"{name}: gives {[str(t) for t in runner.outputs]}; must give {[str(t) for t in outputs]}")


def _listed(types: Mapping[str, TensorType]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in sorted(types.items()))
