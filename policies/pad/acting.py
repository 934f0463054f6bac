"""PAD's graphs for the runtime; see `PadSampler`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from policies.pad.poses import PoseNormalizer
from policies.pad.vae import ImageLatents
from policies.runtime.graphs import TASK

if TYPE_CHECKING:
    from policies.pad.policy import PadPolicy

NOW = "now_"  # before the name of a modality: what is known of it


class Encoder(nn.Module):
    """Observations to what is known of the present, a tensor a modality, and the instruction's vector.

    Attributes:
        gives: the names of its outputs.
    """

    def __init__(self, policy: PadPolicy, keys: tuple[str, ...]) -> None:
        """`keys`: of the observations, in order; of a policy of several tasks also `task`."""
        super().__init__()
        self.policy, self.keys = policy, keys
        self.gives = (*(NOW + m.name for m in policy.modalities), "text")

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        observations = dict(zip(self.keys, values, strict=True))
        only = torch.zeros(1, dtype=torch.int64)
        known = self.policy.present(observations)
        frames = tuple(known[m.name] for m in self.policy.modalities)
        return (*frames, self.policy.text(observations.get(TASK, only)))


class Denoiser(nn.Module):
    """The noisy future, the timestep and the present to what the transformer makes of them."""

    def __init__(self, policy: PadPolicy, names: tuple[str, ...]) -> None:
        """`names`: of the inputs, in order."""
        super().__init__()
        self.transformer, self.names = policy.transformer, names

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, values, strict=True))
        clean = {name.removeprefix(NOW): value for name, value in given.items() if name.startswith(NOW)}
        noisy = {name: value for name, value in given.items() if name in clean}
        noisy["poses"] = noisy["poses"][..., None, None]  # a frame of a pose is [size, 1, 1]
        outputs = self.transformer(noisy, given["timestep"], clean, given["text"])
        return tuple(outputs[name].flatten(2) if name == "poses" else outputs[name] for name in noisy)


class PoseDecoder(nn.Module):
    """Predicted poses to the units of the observation."""

    def __init__(self, poses: PoseNormalizer) -> None:
        super().__init__()
        self.poses = poses

    def forward(self, poses: Tensor, now: Tensor) -> Tensor:
        return self.poses.inverse(poses, now)


class PictureDecoder(nn.Module):
    """Predicted latents to pictures."""

    def __init__(self, vae: ImageLatents) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor) -> Tensor:
        return self.vae.decode(pictures)
