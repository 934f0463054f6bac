"""PAD's graphs for the runtime; see `PadSampler`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from policies.pad.poses import PoseNormalizer
from policies.pad.schedule import pad_steps
from policies.pad.vae import ImageLatents
from policies.runtime.graphs import TASK

if TYPE_CHECKING:
    from policies.pad.policy import PadPolicy

NOW = "now_"  # before the name of a modality: what is known of it
TOLD = "told"
EXTRA = {"details": "pictures", "keypoints": "poses"}  # what the eye sees -> the modality that it goes with


def joined(known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Modality -> clean frames, what the eye sees (if there is one) after their own channels."""
    found = {name: frames for name, frames in known.items() if name not in EXTRA}
    for extra, name in EXTRA.items():
        if extra in known:
            found[name] = torch.cat((found[name], known[extra]), dim=2)
    return found


def timesteps(policy: PadPolicy) -> list[int]:
    """Of the steps of the sampling."""
    return [step.timestep for step in pad_steps(policy.config)]


def gives(policy: PadPolicy) -> tuple[str, ...]:
    """The names of what the encoder gives."""
    seen = (*(m.name for m in policy.modalities), *(EXTRA if policy.eye is not None else ()))
    return (*(NOW + name for name in seen), TOLD)


class Encoder(nn.Module):
    """Observations to what is known of the present, and what the transformer is told in each step of the sampling.

    The latter depends on the instruction alone, so it is worked out here and now: a bundle needs no network for it.

    Attributes:
        gives: the names of its outputs.
        told: [instructions, steps, size].
    """

    told: Tensor

    def __init__(self, policy: PadPolicy, keys: tuple[str, ...]) -> None:
        """`keys`: of the observations, in order; of a policy of several tasks also `task`."""
        super().__init__()
        self.policy, self.keys, self.gives = policy, keys, gives(policy)
        steps = torch.tensor(timesteps(policy))
        with torch.no_grad():
            told = [
                policy.transformer.told(steps, text.expand(len(steps), -1))
                for text in policy.text(torch.arange(len(policy.contract.instructions)))
            ]
        self.register_buffer("told", torch.stack(told), persistent=False)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        observations = dict(zip(self.keys, values, strict=True))
        only = torch.zeros(1, dtype=torch.int64)
        known = {NOW + name: value for name, value in self.policy.present(observations).items()}
        known[TOLD] = self.told[observations.get(TASK, only)]
        return tuple(known[name] for name in self.gives)


class Denoiser(nn.Module):
    """The noisy future, the timestep and the present to what the transformer makes of them."""

    steps: Tensor

    def __init__(self, policy: PadPolicy, names: tuple[str, ...]) -> None:
        """`names`: of the inputs, in order."""
        super().__init__()
        self.transformer, self.names = policy.transformer, names
        self.register_buffer("steps", torch.tensor(timesteps(policy)), persistent=False)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, values, strict=True))
        clean = {name.removeprefix(NOW): value for name, value in given.items() if name.startswith(NOW)}
        noisy = {name: value for name, value in given.items() if name in clean}
        noisy["poses"] = noisy["poses"][..., None, None]  # a frame of a pose is [size, 1, 1]
        step = (self.steps == given["timestep"]).to(torch.int64).argmax()
        outputs = self.transformer.denoise(noisy, joined(clean), given[TOLD][:, step])
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
