"""Weights in files: safetensors, read strictly and written whole; nothing in them can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from episodes.files import write_atomic


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which file and what is wrong with it."""


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `module` if, and only if, they are exactly its own.

    Raises:
        CheckpointError: lists every tensor that is missing, not known, of another shape or dtype, or not finite.
    """
    wanted = module.state_dict()
    found = [f"missing: {name}" for name in wanted if name not in tensors]
    found += [f"not of this network: {name}" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        if name not in wanted:
            continue
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            right = f"{wanted[name].dtype} {tuple(wanted[name].shape)}"
            found.append(f"{name}: is {tensor.dtype} {tuple(tensor.shape)}, must be {right}")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            found.append(f"{name}: has numbers that are not finite")
    if found:
        raise CheckpointError(f"{source}: not this network's weights:\n" + "\n".join(f"  - {f}" for f in found))
    module.load_state_dict(dict(tensors), strict=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that at any moment the old or the new one is there, whole."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(contiguous, dict(metadata)))
