"""From observations to one condition vector: states pass through, pictures through a small ResNet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from contracts import PolicyContract
from policies.config import GROUPS
from policies.normalization import OBSERVATION_LIMIT, MinMaxNormalizer, normalize_image
from policies.runtime.graphs import TASK


class BasicBlock(nn.Module):
    """ResNet's basic block (arXiv 1512.03385) with GroupNorm for BatchNorm, which does not go with EMA weights."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, channels_out)
        self.convolution2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.GroupNorm(GROUPS, channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels_in, height, width] to [batch, channels_out, height / stride, width / stride]."""
        y = torch.relu(self.norm1(self.convolution1(x)))
        return torch.relu(self.norm2(self.convolution2(y)) + self.shortcut(x))


class SpatialSoftmax(nn.Module):
    """Where each feature map looks: the mean position under its softmax (arXiv 1504.00702, section 5.2)."""

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, 1)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to [batch, 2 * keypoints]: x then y, each within [-1, 1]."""
        maps = self.maps(x).float()
        height, width = maps.shape[-2:]
        weights = torch.softmax(maps.flatten(2) / self.temperature, dim=-1).unflatten(2, (height, width))
        columns = torch.linspace(-1, 1, width, device=x.device)
        rows = torch.linspace(-1, 1, height, device=x.device)
        return torch.cat(((weights.sum(2) * columns).sum(-1), (weights.sum(3) * rows).sum(-1)), dim=-1)


class ImageEncoder(nn.Module):
    """ResNet18 with GroupNorm and a spatial softmax in place of the average: positions are what a policy needs.

    The last stage keeps its stride at 1: from 96 px that leaves 6 x 6 cells for the spatial softmax instead of 3 x 3.
    """

    def __init__(self, width: int, keypoints: int) -> None:
        """`width`: channels of the first stage (64 in the paper), doubled by each of the next three."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks = []
        channels = width
        for stage, stride in enumerate((1, 2, 2, 1)):
            out = width * 2**stage
            blocks += [BasicBlock(channels, out, stride), BasicBlock(out, out, 1)]
            channels = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = SpatialSoftmax(channels, keypoints)
        self.output_dim = 2 * keypoints

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [batch, height, width, 3] to [batch, output_dim]."""
        x = normalize_image(image).contiguous()  # channels first: in bf16 on a CPU, GroupNorm is ten times faster so
        return self.pool(self.blocks(self.stem(x)))


class ObservationEncoder(nn.Module):
    """All observations of a policy to one vector.

    States are normalised and stand next to each other, oldest first; each camera has its own network. A policy of
    several tasks is told which one: a one-hot vector at the end.

    Attributes:
        keys: of a batch, in the order in which `forward` takes them.
        output_dim: length of the condition.
    """

    def __init__(self, contract: PolicyContract, image_width: int, keypoints: int) -> None:
        super().__init__()
        self.observed = tuple(o.feature.key for o in contract.observations)
        self.image_keys = tuple(o.feature.key for o in contract.observations if o.feature.is_image)
        self.tasks = len(contract.instructions) if len(contract.instructions) > 1 else 0
        self.keys = (*self.observed, TASK) if self.tasks else self.observed
        self.encoders = nn.ModuleDict()
        self.output_dim = self.tasks
        for observation in contract.observations:
            feature = observation.feature
            encoder: ImageEncoder | MinMaxNormalizer
            if feature.is_image:
                encoder = ImageEncoder(image_width, keypoints)
                self.output_dim += observation.history * encoder.output_dim
            else:
                encoder = MinMaxNormalizer(feature.shape[0], limit=OBSERVATION_LIMIT)
                self.output_dim += observation.history * feature.shape[0]
            self.encoders[_module_name(feature.key)] = encoder

    def fit(self, statistics: Mapping[str, Mapping]) -> None:
        """Take the ranges of all states. Raises ValueError like `MinMaxNormalizer.fit`."""
        for key in self.observed:
            encoder = self.encoders[_module_name(key)]
            if isinstance(encoder, MinMaxNormalizer):
                encoder.fit(statistics[key])

    def forward(self, *values: Tensor) -> Tensor:
        """One [batch, history, *feature shape] an observation, in the contract's order, to [batch, output_dim].

        Of several tasks, the last value is the index of the instruction, int64 [batch].
        """
        encoded = []
        for key, value in zip(self.keys, values, strict=True):
            if key == TASK:
                encoded.append(nn.functional.one_hot(value, self.tasks).to(torch.float32))
                continue
            flat = self.encoders[_module_name(key)](value.flatten(0, 1))
            encoded.append(flat.unflatten(0, value.shape[:2]).flatten(1))
        return torch.cat(encoded, dim=-1)

    def encode(self, batch: Mapping[str, Tensor], shift_pixels: int, generator: torch.Generator) -> Tensor:
        """The observations of a training batch, their pictures shifted at random (`random_shift`)."""
        values = {key: batch[key] for key in self.keys}
        for key in self.image_keys:
            values[key] = random_shift(values[key], shift_pixels, generator)
        return self(*values.values())


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift each sample's pictures by up to `pixels` along both axes, edges repeated (DrQ, arXiv 2004.13649).

    Args:
        images: uint8 [batch, history, height, width, 3]; the pictures of one sample move together.
        pixels: largest shift; 0 returns the pictures as they are.
        generator: of the shifts, on the CPU.
    """
    if pixels == 0:
        return images
    batch, _, height, width, _ = images.shape
    shift = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator)
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1).to(images.device)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1).to(images.device)
    sample = torch.arange(batch, device=images.device)[:, None, None]
    return images.movedim(1, 3)[sample, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def _module_name(key: str) -> str:
    return key.replace(".", "_")  # PyTorch does not allow a dot in a module's name
