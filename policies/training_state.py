"""All that training needs to go on exactly where it stopped, in one file that is never half written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from contracts.serialization import Contract
from policies.ema import ExponentialMovingAverage
from policies.tensors import CheckpointError, load_strictly, part, read_tensors, write_tensors

STATE_FILE = "training_state.safetensors"
PROGRESS = "progress"  # in the file's metadata, which safetensors keeps as text
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's running means of the gradient and of its square

P = TypeVar("P", bound=Contract)


class Progress(Contract, frozen=True, kw_only=True):
    """How far training has come: optimiser steps done, and seconds they took."""

    step: int = 0
    elapsed_s: float = 0.0


def save_state(
    path: Path,
    policy: nn.Module,
    average: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write weights, averaged weights, the optimiser's moments and the progress, atomically."""
    tensors = {f"weights.{name}": value for name, value in policy.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.shadow.items()}
    for name, parameter in trained_parameters(policy):
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    write_tensors(path / STATE_FILE, tensors, {PROGRESS: progress.to_json()})


def load_state(
    path: Path, policy: nn.Module, average: ExponentialMovingAverage, optimizer: torch.optim.Optimizer
) -> Progress:
    """Put a saved state back into all of them.

    Raises:
        CheckpointError: the file is damaged, or belongs to another network.
    """
    file = path / STATE_FILE
    tensors, metadata = read_tensors(file)
    progress = progress_of(Progress, metadata, file)
    load_strictly(policy, part(tensors, "weights."), f"{file}: weights")
    average.load(part(tensors, "average."), str(file))
    for moment in MOMENTS:
        values = part(tensors, f"{moment}.")
        for name, parameter in trained_parameters(policy):
            if name not in values or values[name].shape != parameter.shape:
                raise CheckpointError(f"{file}: has no {moment} for {name} of shape {tuple(parameter.shape)}")
            state = optimizer.state[parameter]
            state[moment] = values[name].to(parameter.device)
            state["step"] = torch.tensor(float(progress.step), device=parameter.device)
    return progress


def trained_parameters(policy: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the optimiser changes, by name: those of an earlier stage are fixed."""
    return [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]


def progress_of(kind: type[P], metadata: Mapping[str, str], file: Path) -> P:
    """What the metadata of a state file says. Raises CheckpointError."""
    try:
        return kind.from_json(metadata.get(PROGRESS, ""), source=f"{file}: {PROGRESS}")
    except ValueError as error:
        raise CheckpointError(str(error)) from None
