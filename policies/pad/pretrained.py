"""Weights that others trained, from a local directory as diffusers saves it: safetensors alone, never pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from policies.pad.vae import ImageLatents
from policies.tensors import CheckpointError, load_strictly, read_tensors

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FACTOR = 0.18215  # sd-vae's scaling_factor where config.json gives none: diffusers' own default

# A block of diffusers' DiTTransformer2DModel -> of ours; its queries, keys and values are one matrix here.
DIT_BLOCK = {
    "norm1.linear": "modulation",
    "attn1.to_out.0": "project",
    "ff.net.0.proj": "expand",
    "ff.net.2": "contract",
}
DIT_EMBEDDING = "transformer_blocks.0.norm1.emb.timestep_embedder."  # each block has a copy of it


def load_vae(latents: ImageLatents, directory: Path | str) -> None:
    """Take the weights and the scale of an AutoencoderKL, such as sd-vae-ft-mse.

    Raises:
        CheckpointError: the directory does not hold one, or one of another shape than the configuration says.
    """
    directory = Path(directory)
    config = _config(directory, "AutoencoderKL")
    own = latents.autoencoder.config
    names = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels")
    wrong = [
        f"{name} {config.get(name)}, here {list(own[name]) if isinstance(own[name], tuple) else own[name]}"
        for name in (*names, "norm_num_groups")
        if name in config and config[name] != (list(own[name]) if isinstance(own[name], tuple) else own[name])
    ]
    if wrong:
        raise CheckpointError(
            f"{directory}: another autoencoder than vae_patch, vae_channels, vae_layers, vae_groups and "
            f"latent_channels say: it has {'; '.join(wrong)}"
        )
    tensors = {_renamed_attention(name): value.float() for name, value in _tensors(directory).items()}
    load_strictly(latents.autoencoder, tensors, str(directory / WEIGHTS_FILE))
    latents.mean.fill_(config.get("shift_factor") or 0.0)
    latents.std.fill_(1 / (config.get("scaling_factor") or FACTOR))


def load_dit(transformer: nn.Module, directory: Path | str) -> list[str]:
    """Take what fits of a DiTTransformer2DModel, such as that of DiT-XL-2-256: blocks and the timestep's embedding.

    Returns:
        The names of the tensors that were taken.

    Raises:
        CheckpointError: the directory does not hold one, or nothing of it fits.
    """
    directory = Path(directory)
    _config(directory, "DiTTransformer2DModel")
    own = transformer.state_dict()
    theirs = _dit_tensors(_tensors(directory))
    found = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    if not found:
        raise CheckpointError(f"{directory}: nothing of it has the shape of this transformer: is its width another?")
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    return sorted(found)


def _dit_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A DiTTransformer2DModel's tensors under our names."""
    found = {}
    blocks = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("transformer_blocks.")})
    for kind in ("weight", "bias"):
        for layer in ("linear_1", "linear_2"):
            found[f"timestep.{layer}.{kind}"] = tensors.get(f"{DIT_EMBEDDING}{layer}.{kind}")
        for index in blocks:
            theirs, ours = f"transformer_blocks.{index}.", f"blocks.{index}."
            for before, after in DIT_BLOCK.items():
                found[f"{ours}{after}.{kind}"] = tensors.get(f"{theirs}{before}.{kind}")
            parts = [tensors.get(f"{theirs}attn1.to_{part}.{kind}") for part in "qkv"]
            found[f"{ours}qkv.{kind}"] = None if any(p is None for p in parts) else torch.cat([*parts])  # type: ignore[list-item]
    return {name: value for name, value in found.items() if value is not None}


def _renamed_attention(name: str) -> str:
    """Autoencoders saved before 2023 name their attention's layers otherwise."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    return name


def _config(directory: Path, kind: str) -> dict[str, Any]:
    """`config.json` of a model that diffusers saved."""
    file = directory / "config.json"
    try:
        config = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); {kind}.save_pretrained writes it") from None
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{file}: is not JSON ({error})") from None
    if not isinstance(config, dict) or config.get("_class_name") != kind:
        found = config.get("_class_name") if isinstance(config, dict) else config
        raise CheckpointError(f"{file}: describes {found!r}; {kind} would be right")
    return config


def _tensors(directory: Path) -> dict[str, Tensor]:
    file = directory / WEIGHTS_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{file}: is not there; only safetensors are read, never pickle (.bin, .pt): load the model with diffusers "
            "and save it with save_pretrained"
        )
    return read_tensors(file)[0]
