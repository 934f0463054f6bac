"""What a policy costs to compute, counted in its graphs: the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

from policies.runtime.bundle import read_bundle
from policies.runtime.locomotion import ACTOR
from policies.runtime.sampler import DiffusionSampler, LocomotionSampler, PadSampler, Sampler, StreamingSampler

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Work:
    """What one chunk costs, whatever engine computes it.

    Attributes:
        params: trained numbers, those of an image encoder left out; of a bundle, which does not say what was trained,
            all numbers in the graphs that are called.
        flop: floating-point operations of all matrix products and convolutions, two a multiply-add.
    """

    params: int
    flop: int


def graph_calls(sampler: Sampler) -> dict[str, int]:
    """How often each graph runs for one chunk."""
    if isinstance(sampler, DiffusionSampler | PadSampler):
        return {"encoder": 1, "denoiser": len(sampler.steps), "decoder": 1}
    if isinstance(sampler, StreamingSampler):
        return {"encoder": 1, "denoiser": sampler.evaluations, "decoder": 1}
    if isinstance(sampler, LocomotionSampler):
        return {ACTOR: 1}
    return {"policy": 1}


def evaluations(sampler: Sampler) -> int:
    """How often the network runs for one chunk: once a denoising step; CARP's scales are all in one run."""
    return max(graph_calls(sampler).values())


def work_of(bundle: Path) -> Work:
    """Count what a bundle's graphs hold and compute for one chunk. Raises BundleError."""
    files = read_bundle(bundle)
    params = flop = 0
    for name, times in graph_calls(files.sampler).items():
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(files.graphs[name]))
        params += _numbers(model.graph)
        flop += times * _flop(model.graph)
    return Work(params, flop)


def _numbers(graph: onnx.GraphProto) -> int:
    """Elements of the constant arrays.

    PyTorch's export writes a transposed matrix as one copy a use, each under a name of its own (`val_1`, `val_2`, ...):
    equal ones count once.
    """
    arrays = [tensor for tensor in graph.initializer if tensor.data_type in FLOATS and tensor.dims]
    distinct = {(tensor.raw_data if tensor.name.startswith("val_") else tensor.name): tensor for tensor in arrays}
    return sum(prod(tensor.dims) for tensor in distinct.values())


def _flop(graph: onnx.GraphProto) -> int:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = tuple(size.dim_value or 1 for size in value.type.tensor_type.shape.dim)  # a batch of 1
    total = 0
    for node in graph.node:
        if node.op_type in {"MatMul", "Gemm"}:
            flags = {attribute.name: attribute.i for attribute in node.attribute}
            inner = shapes[node.input[0]][-2 if flags.get("transA") else -1]
            total += 2 * prod(shapes[node.output[0]]) * inner
        elif node.op_type in {"Conv", "ConvTranspose"}:  # the weight's first axis: that which every product adds to
            over = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
            total += 2 * prod(over) * prod(shapes[node.input[1]][1:])
    return total
