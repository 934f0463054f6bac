"""Open a trained policy, whatever form it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from policies.runtime import BundleError, Runtime
from policies.runtime.backends import Backend
from policies.runtime.bundle import is_bundle


def load_runtime(
    path: Path | str,
    backend: Backend = "openvino",
    execute: int | None = None,
    device: str = "cpu",
    sampling: Mapping[str, str] | None = None,
) -> Runtime:
    """A bundle, run by `backend`; or a checkpoint, run by PyTorch, which is imported only then; on one thread.

    Args:
        path: of either.
        backend: of a bundle.
        execute: actions carried out before the policy looks again; None: as its contract says.
        device: `cpu`, or of a checkpoint also `cuda`.
        sampling: of a checkpoint, choices to be made otherwise than in training; a bundle's are made.

    Raises:
        ValueError: `execute` is not within the horizon, or a device or sampling for a bundle.
        BundleError: `path` is neither, or a bundle that cannot be used.
        CheckpointError: a checkpoint that cannot be used.
    """
    path = Path(path)
    if is_bundle(path):
        if device != "cpu" or sampling:
            raise ValueError(f"{path} is a bundle: --device and --sampling are for checkpoints, which PyTorch runs")
        runtime = Runtime.load(path, backend=backend)
    elif (path / "model.safetensors").is_file():
        from policies.torch_runtime import torch_runtime

        runtime = torch_runtime(path, device=device, sampling=sampling)
    else:
        raise BundleError(f"{path} is neither a bundle (manifest.json) nor a checkpoint (model.safetensors)")
    if execute is not None:
        runtime.contract = msgspec.structs.replace(runtime.contract, execute=execute)
    return runtime
