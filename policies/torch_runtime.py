"""A checkpoint behind the runtime's interface: the same sessions, with PyTorch to run the graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from policies.base import Graph
from policies.parts import load_parts
from policies.runtime import Runtime
from policies.runtime.graphs import Array, GraphRunner, TensorType
from policies.tensors import CheckpointError


class TorchGraph(GraphRunner):
    """A graph that is run as it was trained, on a device of PyTorch's."""

    def __init__(self, graph: Graph, device: str = "cpu") -> None:
        self._module, self._device = graph.module.eval().to(device), device
        self.inputs = {name: _type(example, graph.batched) for name, example in graph.inputs.items()}
        with torch.no_grad():
            self.outputs = tuple(_type(value, graph.batched) for value in self._run(tuple(graph.inputs.values())))

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        with torch.no_grad():
            values = self._run(tuple(torch.from_numpy(inputs[name]) for name in self.inputs))
            return [value.cpu().numpy() for value in values]

    def _run(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        result = self._module(*(value.to(self._device) for value in inputs))
        return result if isinstance(result, tuple) else (result,)


def torch_runtime(
    checkpoint: Path | str, threads: int = 1, device: str = "cpu", sampling: Mapping[str, str] | None = None
) -> Runtime:
    """The runtime of a checkpoint.

    Args:
        checkpoint: its directory.
        threads: PyTorch's, of the whole process.
        device: `cpu` or `cuda`.
        sampling: choices to be made otherwise than in training (`CheckpointConfig.with_sampling`).

    Raises:
        CheckpointError: the checkpoint cannot be used, or not so.
        ValueError: there is no such device here.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"no {device} here: PyTorch {torch.__version__} sees no GPU; leave --device out")
    torch.set_num_threads(threads)
    parts = load_parts(checkpoint, sampling)
    try:
        runners = {name: TorchGraph(graph, device) for name, graph in parts.graphs.items()}
        return Runtime(parts.contract, parts.sampler, runners)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None


def _type(tensor: torch.Tensor, batched: bool) -> TensorType:
    shape = (-1, *tensor.shape[1:]) if batched else tuple(tensor.shape)
    return TensorType(shape, str(tensor.dtype).removeprefix("torch."))
