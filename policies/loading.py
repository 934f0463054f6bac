"""Open a trained policy, whatever form it has."""

from __future__ import annotations

from pathlib import Path

from policies.runtime import BundleError, Runtime
from policies.runtime.backends import Backend
from policies.runtime.bundle import is_bundle


def load_runtime(path: Path | str, backend: Backend = "openvino", threads: int = 1) -> Runtime:
    """A bundle, run by `backend`; or a checkpoint, run by PyTorch, which is imported only then.

    Raises:
        BundleError: `path` is neither, or a bundle that cannot be used.
        CheckpointError: a checkpoint that cannot be used.
    """
    path = Path(path)
    if is_bundle(path):
        return Runtime.load(path, backend=backend, threads=threads)
    if (path / "model.safetensors").is_file():
        from policies.torch_runtime import torch_runtime

        return torch_runtime(path, threads)
    raise BundleError(f"{path} is neither a bundle (manifest.json) nor a checkpoint (model.safetensors)")
