"""A checkpoint behind the runtime's interface: the same sessions, with PyTorch to run the graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from policies.base import Graph
from policies.checkpoint import CheckpointError
from policies.parts import load_parts
from policies.runtime import PolicyOutputError, Runtime
from policies.runtime.graphs import Array, GraphRunner, TensorType


class TorchGraph(GraphRunner):
    """A graph that is run as it was trained."""

    def __init__(self, graph: Graph) -> None:
        self._module = graph.module.eval()
        self.inputs = {name: _type(example, graph.batched) for name, example in graph.inputs.items()}
        with torch.no_grad():
            self.outputs = tuple(_type(value, graph.batched) for value in self._run(tuple(graph.inputs.values())))

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        with torch.no_grad():
            return [value.numpy() for value in self._run(tuple(torch.from_numpy(inputs[name]) for name in self.inputs))]

    def _run(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        result = self._module(*inputs)
        return result if isinstance(result, tuple) else (result,)


def torch_runtime(checkpoint: Path | str, threads: int = 1) -> Runtime:
    """The runtime of a checkpoint; `threads` are PyTorch's, of the whole process. Raises CheckpointError."""
    torch.set_num_threads(threads)
    parts = load_parts(checkpoint)
    runners = {name: TorchGraph(graph) for name, graph in parts.graphs.items()}
    try:
        return Runtime(parts.contract, parts.robot, parts.sampler, runners)
    except (ValueError, PolicyOutputError) as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None


def _type(tensor: torch.Tensor, batched: bool) -> TensorType:
    shape = (-1, *tensor.shape[1:]) if batched else tuple(tensor.shape)
    return TensorType(shape, str(tensor.dtype).removeprefix("torch."))
