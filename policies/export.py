"""From a checkpoint to a bundle: graphs, contracts and sampler, for a robot that has no torch."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch

from policies.base import Graph
from policies.checkpoint import load_checkpoint
from policies.model_card import model_card
from policies.runtime.bundle import CARD_FILE, CONTRACT_FILE, ROBOT_FILE, SAMPLER_FILE, write_manifest
from policies.runtime.runtime import Runtime


def export(checkpoint: Path | str, output: Path | str, sampling: Mapping[str, str] | None = None) -> Path:
    """Write the bundle of a checkpoint, then load it to see that it runs.

    A bundle that is already there is replaced, but for its model card (README.md); where there is none, one is begun.

    `sampling`: choices to be made otherwise than in training (`CheckpointConfig.with_sampling`).

    Returns:
        The bundle's directory.

    Raises:
        CheckpointError: the checkpoint cannot be used, or not so.
    """
    policy, config = load_checkpoint(checkpoint, sampling)
    output = Path(output)
    work = output.with_name(f".{output.name}.writing")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name, graph in policy.graphs().items():
        write_graph(graph, work / f"{name}.onnx")
    (work / CONTRACT_FILE).write_text(config.contract.to_json() + "\n", encoding="utf-8")
    (work / ROBOT_FILE).write_text(config.robot.to_json() + "\n", encoding="utf-8")
    (work / SAMPLER_FILE).write_text(policy.sampler().to_json() + "\n", encoding="utf-8")
    write_manifest(work)
    Runtime.load(work, backend="onnxruntime")
    card = output / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else model_card(config, output, work)
    (work / CARD_FILE).write_text(text, encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    work.rename(output)
    return output


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
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is, with dynamo=True
    path.write_bytes(without_origin(program.model_proto).SerializeToString())


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
