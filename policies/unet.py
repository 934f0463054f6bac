"""The conditional 1-D UNet of Diffusion Policy (arXiv 2303.04137, section 3.1 and appendix A).

All actions of a chunk may share one diffusion step, or each has its own (Streaming Diffusion Policy): FiLM then differs
from action to action, and the weights know nothing of the horizon.

SiLU stands in for the paper's Mish, a curve of the same shape: Mish was a fifth of the training time on a CPU, and
OpenVINO 2026.4 cannot compile it behind a GroupNorm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from policies.config import GROUPS


class TimestepEmbedding(nn.Module):
    """Sinusoids of the diffusion step, then a two-layer MLP."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        """Steps [...] to embeddings [..., width]."""
        angle = timestep.to(self.frequencies.dtype)[..., None] * self.frequencies
        return self.mlp(torch.cat((angle.sin(), angle.cos()), dim=-1))


class ConvBlock(nn.Module):
    """Conv1d, GroupNorm, SiLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels_in, channels_out, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(GROUPS, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels_in, time] to [batch, channels_out, time]."""
        return nn.functional.silu(self.norm(self.convolution(x)))


class ResidualBlock(nn.Module):
    """Two convolutions; between them the condition scales and shifts every channel (FiLM)."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels_in, channels_out, kernel_size)
        self.second = ConvBlock(channels_out, channels_out, kernel_size)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor]) -> Tensor:
        """[batch, channels_in, time] to [batch, channels_out, time].

        film: scale and shift [batch, channels_out, time], or [batch, channels_out, 1] for all of the time.
        """
        scale, shift = film
        return self.second(self.first(x) * scale + shift) + self.shortcut(x)


class Level(nn.Module):
    """The two residual blocks of one level of the UNet."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.first = ResidualBlock(channels_in, channels_out, kernel_size)
        self.second = ResidualBlock(channels_out, channels_out, kernel_size)

    def forward(self, x: Tensor, films: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """[batch, channels_in, time] to [batch, channels_out, time]; takes two of `films`."""
        return self.second(self.first(x, next(films)), next(films))


class ConditionalUNet1d(nn.Module):
    """Predicts the noise in a chunk of actions, whose length each level but the last must be able to halve."""

    def __init__(
        self, action_dim: int, condition_dim: int, widths: tuple[int, ...], kernel_size: int, timestep_dim: int
    ) -> None:
        super().__init__()
        self.timestep = TimestepEmbedding(timestep_dim)
        pairs = list(zip((action_dim, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(Level(i, o, kernel_size) for i, o in pairs)
        self.downsample = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = Level(widths[-1], widths[-1], kernel_size)
        self.up = nn.ModuleList(Level(2 * o, i, kernel_size) for i, o in reversed(pairs[1:]))
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(w, w, 4, stride=2, padding=1) for w in reversed(widths[:-1]))
        self.head = nn.Sequential(ConvBlock(widths[0], widths[0], kernel_size), nn.Conv1d(widths[0], action_dim, 1))
        # FiLM's scales and shifts of all blocks in one product: the same function as a Linear a block, but on CPU one
        # large matrix product instead of a dozen small ones.
        blocks = [module for module in self.modules() if isinstance(module, ResidualBlock)]
        self.film_widths = [block.second.norm.num_channels for block in blocks]
        self.film = nn.Linear(timestep_dim + condition_dim, 2 * sum(self.film_widths))
        levels = [*range(len(widths)), len(widths) - 1, *reversed(range(1, len(widths)))]
        self.film_strides = [2**level for level in levels for _ in range(2)]  # actions that a block's position is for

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Noise in `sample`.

        Args:
            sample: noisy normalised actions [batch, horizon, action_dim].
            timestep: diffusion step of all actions [batch], or of each [batch, horizon].
            condition: encoded observation [batch, condition_dim].

        Returns:
            [batch, horizon, action_dim].
        """
        return self.denoise(sample, self.timestep_film(timestep), condition)

    def timestep_film(self, timestep: Tensor) -> Tensor:
        """What diffusion steps [...] add to FiLM's scales and shifts: [..., 2 * sum(film_widths)]."""
        embedding = nn.functional.silu(self.timestep(timestep))
        return nn.functional.linear(embedding, self.film.weight[:, : embedding.shape[-1]])

    def denoise(self, sample: Tensor, timestep_film: Tensor, condition: Tensor) -> Tensor:
        """`forward`, with `timestep_film` [batch, ...] or [batch, horizon, ...] for the steps."""
        films = self._films(timestep_film, condition)
        x = sample.transpose(1, 2)
        skips = []
        for index, level in enumerate(self.down):
            x = level(x, films)
            skips.append(x)
            if index < len(self.downsample):
                x = self.downsample[index](x)
        x = self.middle(x, films)
        for level, upsample in zip(self.up, self.upsample, strict=True):
            x = upsample(level(torch.cat((x, skips.pop()), dim=1), films))
        return self.head(x).transpose(1, 2)

    def _films(self, timestep_film: Tensor, condition: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        weight = self.film.weight[:, -condition.shape[-1] :]
        flat = nn.functional.linear(nn.functional.silu(condition), weight, self.film.bias).unsqueeze(-1)
        flat = flat + (timestep_film.unsqueeze(-1) if timestep_film.dim() == 2 else timestep_film.transpose(1, 2))
        halves = (half.split(self.film_widths, dim=1) for half in flat.chunk(2, dim=1))
        for scale, shift, stride in zip(*halves, self.film_strides, strict=True):
            if stride > 1 and flat.shape[-1] > 1:
                scale, shift = (value.unflatten(-1, (-1, stride)).mean(-1) for value in (scale, shift))
            yield 1 + scale, shift
