"""From a checkpoint to a bundle: graphs, contracts and sampler, for a robot that has no torch."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

from policies.base import Graph
from policies.model_card import model_card
from policies.parts import Parts, load_parts
from policies.runtime.bundle import (
    CARD_FILE,
    CONTRACT_FILE,
    ROBOT_FILE,
    SAMPLER_FILE,
    not_of_the_bundle,
    write_manifest,
)
from policies.runtime.runtime import Runtime

HALF_FROM = 1000  # numbers in a tensor: smaller ones are not worth rounding


def export(
    checkpoint: Path | str,
    output: Path | str,
    sampling: Mapping[str, str] | None = None,
    robot: Path | str | None = None,
) -> Path:
    """Write the bundle of a checkpoint, then load it to see that it runs.

    A bundle that is already there is replaced, but for its model card (README.md); where there is none, one is begun.
    Nothing else is ever replaced.

    Args:
        checkpoint: of any policy.
        output: the bundle's directory.
        sampling: choices to be made otherwise than in training (`CheckpointConfig.with_sampling`).
        robot: name or path of the contract that a walking policy is exported for (`load_parts`).

    Returns:
        The bundle's directory.

    Raises:
        CheckpointError: the checkpoint cannot be used, or not so.
        ContractError: the policy cannot drive that robot.
        FileExistsError: something else than a bundle is in the directory.
    """
    output = Path(output)
    work, replaced = (output.with_name(f".{output.name}.{what}") for what in ("writing", "replaced"))
    if replaced.exists() and not output.exists():  # an export was killed between the two
        replaced.rename(output)
    _check_replaceable(output)
    parts = load_parts(checkpoint, sampling, robot)
    shutil.rmtree(work, ignore_errors=True)
    try:
        _write(parts, work, output)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    work.rename(output)
    shutil.rmtree(replaced, ignore_errors=True)
    return output


def _write(parts: Parts, work: Path, output: Path) -> None:
    """Make the directory `work`, all that is to stand in `output`, and see that it runs as on a robot."""
    work.mkdir(parents=True)
    for name, graph in parts.graphs.items():
        write_graph(graph, work / f"{name}.onnx")
    (work / CONTRACT_FILE).write_text(parts.contract.to_json() + "\n", encoding="utf-8")
    (work / ROBOT_FILE).write_text(parts.robot.to_json() + "\n", encoding="utf-8")
    (work / SAMPLER_FILE).write_text(parts.sampler.to_json() + "\n", encoding="utf-8")
    write_manifest(work)
    Runtime.load(work)
    card = output / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else model_card(parts, output, work)
    (work / CARD_FILE).write_text(text, encoding="utf-8")


def _check_replaceable(output: Path) -> None:
    """Raises FileExistsError unless nothing but a bundle would be lost."""
    if output.is_dir():
        if not (others := not_of_the_bundle(output)):
            return
        held = f"{', '.join(others[:3])}{' and more' if len(others) > 3 else ''}"
        raise FileExistsError(
            f"{output} holds {held}, which is not a bundle's; an export replaces only bundles: name a directory that "
            "is not there yet, or move that away"
        )
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{output} is no directory; name one for the bundle, which need not be there yet")


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a function to ONNX, its weights inside the file."""
    names = list(graph.inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not there ...
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # ... and of its own internals
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            input_names=names,
            output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in names) if graph.batched else None,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is, with dynamo=True
    model = without_origin(program.model_proto)
    path.write_bytes((with_half_weights(model) if graph.half_weights else model).SerializeToString())


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, but its large weights are stored as fp16; they become fp32 again when it is loaded."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < HALF_FROM:
            continue
        with np.errstate(over="ignore"):
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            continue
        casts.append(onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{tensor.name}_half"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def without_origin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without the lines of which files it was traced from: paths of the machine that made it."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        graphs += [attribute.g for attribute in attributes if attribute.HasField("g")]
    return model
