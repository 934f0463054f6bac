"""CARP's action tokeniser (arXiv 2412.06782, section 3.1): a residual VQ-VAE over several time scales.

Every action dimension has its own encoder, codebook and decoder. They run side by side as grouped convolutions, so that
a chunk of any number of dimensions costs one pass. Axes: B batch, D action dimensions, T latent positions, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.carp.config import CarpConfig

COMMITMENT = 0.25  # weight of what pulls the encoder to its codes (arXiv 1711.00937, equation 3)
USE_DECAY = 0.99  # of the running count of how often a code is chosen
RARE = 0.02  # a code chosen less often than this fraction of the average is given a new place
REVIVE_EVERY = 25  # training steps
REVIVING = 0.5  # fraction of the training; then the codes settle


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, beside a shortcut; each action dimension for itself."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        width = dims * channels
        self.norm1, self.norm2 = nn.GroupNorm(dims, width), nn.GroupNorm(dims, width)
        self.convolution1 = nn.Conv1d(width, width, 3, padding=1, groups=dims)
        self.convolution2 = nn.Conv1d(width, width, 3, padding=1, groups=dims)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D * channels, time] to the same."""
        y = self.convolution1(functional.silu(self.norm1(x)))
        return x + self.convolution2(functional.silu(self.norm2(y)))


class Encoder(nn.Module):
    """[B, D, horizon] to [B, D * code_dim, horizon / 4]."""

    def __init__(self, dims: int, channels: tuple[int, int], code_dim: int) -> None:
        super().__init__()
        fine, coarse = channels
        self.layers = nn.Sequential(
            nn.Conv1d(dims, dims * fine, 3, padding=1, groups=dims),
            ResidualBlock(dims, fine),
            nn.Conv1d(dims * fine, dims * coarse, 4, stride=2, padding=1, groups=dims),
            ResidualBlock(dims, coarse),
            nn.Conv1d(dims * coarse, dims * coarse, 4, stride=2, padding=1, groups=dims),
            ResidualBlock(dims, coarse),
            nn.Conv1d(dims * coarse, dims * code_dim, 3, padding=1, groups=dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    """[B, D * code_dim, horizon / 4] to [B, D, horizon]."""

    def __init__(self, dims: int, channels: tuple[int, int], code_dim: int) -> None:
        super().__init__()
        fine, coarse = channels
        self.layers = nn.Sequential(
            nn.Conv1d(dims * code_dim, dims * coarse, 3, padding=1, groups=dims),
            ResidualBlock(dims, coarse),
            nn.ConvTranspose1d(dims * coarse, dims * coarse, 4, stride=2, padding=1, groups=dims),
            ResidualBlock(dims, coarse),
            nn.ConvTranspose1d(dims * coarse, dims * fine, 4, stride=2, padding=1, groups=dims),
            ResidualBlock(dims, fine),
            nn.Conv1d(dims * fine, dims, 3, padding=1, groups=dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Quantizer(nn.Module):
    """Residual quantisation over scales: each scale encodes what the coarser ones left over.

    A latent is [B, D, T, C] here. The sum of the scales' contributions, `f_hat`, is what the decoder sees.

    Attributes:
        scales: positions of each scale.
        codebook: [D, codes, C].
    """

    codebook: nn.Parameter
    uses: Tensor

    def __init__(self, dims: int, scales: tuple[int, ...], codes: int, code_dim: int, lookup: str) -> None:
        super().__init__()
        self.scales = scales
        self.length = scales[-1]
        self.lookup = lookup
        self.codebook = nn.Parameter(torch.randn(dims, codes, code_dim) / code_dim**0.5)
        self.phi = nn.ModuleList(nn.Conv1d(dims * code_dim, dims * code_dim, 3, padding=1, groups=dims) for _ in scales)
        self.register_buffer("uses", torch.ones(dims, codes))
        for index, scale in enumerate(scales):  # resampling is linear: two small matrices a scale
            self.register_buffer(f"shrink{index}", resampling_matrix(self.length, scale, "area"), persistent=False)
            self.register_buffer(f"stretch{index}", resampling_matrix(scale, self.length, "bicubic"), persistent=False)

    def shrink(self, latent: Tensor, index: int) -> Tensor:
        """[B, D, T, C] to [B, D, scale, C] by area averages."""
        return self.get_buffer(f"shrink{index}") @ latent

    def nearest(self, vectors: Tensor) -> Tensor:
        """The codes nearest to vectors [B, D, k, C], as int64 [B, D, k]."""
        if self.lookup == "cosine":
            scores = functional.normalize(vectors, dim=-1) @ functional.normalize(self.codebook, dim=-1).mT
        else:
            scores = vectors @ self.codebook.mT - 0.5 * self.codebook.square().sum(-1)[:, None]
        return scores.argmax(dim=-1)

    def codes(self, tokens: Tensor) -> Tensor:
        """Entries of the codebooks [B, D, k, C] for tokens [B, D, k]."""
        dims, size, channels = self.codebook.shape
        first = torch.arange(dims, device=tokens.device)[:, None] * size  # one table: one gather
        return functional.embedding(tokens + first, self.codebook.view(dims * size, channels))

    def contribution(self, codes: Tensor, index: int) -> Tensor:
        """What codes [B, D, k, C] of a scale add to f_hat [B, D, T, C]: phi(x) = .5 x + .5 conv(x), x stretched."""
        stretched = self.get_buffer(f"stretch{index}") @ codes
        batch, dims, length, channels = stretched.shape
        mixed = self.phi[index](stretched.transpose(2, 3).reshape(batch, dims * channels, length))
        return 0.5 * stretched + 0.5 * mixed.view(batch, dims, channels, length).transpose(2, 3)

    def encode(self, latent: Tensor) -> list[Tensor]:
        """Tokens [B, D, k] of each scale."""
        return self._walk(latent)[0]

    def accumulate(self, tokens: list[Tensor]) -> list[Tensor]:
        """f_hat [B, D, T, C] after each of the scales given."""
        batch, dims, _ = tokens[0].shape
        f_hat = self.codebook.new_zeros(batch, dims, self.length, self.codebook.shape[-1])
        sums = []
        for index, chosen in enumerate(tokens):
            f_hat = f_hat + self.contribution(self.codes(chosen), index)
            sums.append(f_hat)
        return sums

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """f_hat with the gradient of the latent (straight-through), the quantisation loss, and the tokens."""
        tokens, _, sums = self._walk(latent.detach())
        errors = [
            COMMITMENT * functional.mse_loss(latent, f_hat.detach()) + functional.mse_loss(f_hat, latent.detach())
            for f_hat in sums
        ]
        if self.training:
            self._count(tokens)
        return latent + (sums[-1] - latent).detach(), torch.stack(errors).mean(), tokens

    def _walk(self, latent: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Choose tokens from what is left over: each scale's tokens, the vectors they stand for, f_hat after it."""
        f_hat = torch.zeros_like(latent)
        tokens, vectors, sums = [], [], []
        for index in range(len(self.scales)):
            vectors.append(self.shrink(latent - f_hat.detach(), index))
            tokens.append(self.nearest(vectors[-1]))
            f_hat = f_hat + self.contribution(self.codes(tokens[-1]), index)
            sums.append(f_hat)
        return tokens, vectors, sums

    @torch.no_grad()
    def _count(self, tokens: list[Tensor]) -> None:
        """Keep the running count of each code's uses, per step."""
        chosen = torch.cat(tokens, dim=-1).transpose(0, 1).flatten(1)  # [D, all uses in the batch]
        counts = torch.zeros_like(self.uses).scatter_add_(1, chosen, torch.ones_like(chosen, dtype=self.uses.dtype))
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        self.uses.lerp_(counts, 1 - USE_DECAY)

    @torch.no_grad()
    def revive(self, latent: Tensor, generator: torch.Generator) -> None:
        """Give codes that are hardly ever chosen a new place: that of a residual somewhere in this batch.

        Without it most of a codebook that learns by gradient is never chosen, and never learns.
        """
        _, vectors, _ = self._walk(latent)
        found = torch.cat([v.transpose(0, 1).flatten(1, 2) for v in vectors], dim=1)  # [D, all residuals, C]
        dims, codes, channels = self.codebook.shape
        picks = torch.randint(found.shape[1], (dims, codes), generator=generator).to(found.device)
        new = found.gather(1, picks[..., None].expand(-1, -1, channels)).to(self.codebook.dtype)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(new, src=0)
        rare = self.uses < RARE * self.uses.mean(dim=1, keepdim=True)
        self.codebook.copy_(torch.where(rare[..., None], new, self.codebook))
        self.uses.copy_(torch.where(rare, self.uses.mean(dim=1, keepdim=True), self.uses))  # time to prove itself


class Tokenizer(nn.Module):
    """Normalised action chunks to tokens and back."""

    step: Tensor

    def __init__(self, action_dim: int, config: CarpConfig) -> None:
        super().__init__()
        self.dims = action_dim
        self.reviving_steps = round(REVIVING * config.tokenizer_steps)
        self.encoder = Encoder(action_dim, config.tokenizer_channels, config.code_dim)
        self.quantizer = Quantizer(action_dim, config.scales, config.codes, config.code_dim, config.lookup)
        self.decoder = Decoder(action_dim, config.tokenizer_channels, config.code_dim)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def latent(self, actions: Tensor) -> Tensor:
        """[B, horizon, D] to [B, D, T, C]."""
        encoded = self.encoder(actions.transpose(1, 2))
        return encoded.unflatten(1, (self.dims, -1)).transpose(2, 3)

    def decode(self, f_hat: Tensor) -> Tensor:
        """[B, D, T, C] to [B, horizon, D]."""
        return self.decoder(f_hat.transpose(2, 3).flatten(1, 2)).transpose(1, 2)

    def encode(self, actions: Tensor) -> list[Tensor]:
        """Tokens [B, D, k] of each scale for actions [B, horizon, D]."""
        return self.quantizer.encode(self.latent(actions))

    def reconstructions(self, actions: Tensor) -> list[Tensor]:
        """Actions [B, horizon, D] as decoded from the scales up to each."""
        return [self.decode(f_hat) for f_hat in self.quantizer.accumulate(self.encode(actions))]

    def loss(self, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and quantisation of normalised chunks [B, horizon, D]; `generator`: of revived codes."""
        latent = self.latent(actions)
        if self.training:
            if self.step < self.reviving_steps and self.step % REVIVE_EVERY == REVIVE_EVERY - 1:
                self.quantizer.revive(latent.detach(), generator)
            self.step += 1
        f_hat, quantization, _ = self.quantizer(latent)
        error = functional.mse_loss(self.decode(f_hat), actions)
        return error + quantization, {"reconstruction": error.detach(), "quantization": quantization.detach()}


def resampling_matrix(length_in: int, length_out: int, mode: str) -> Tensor:
    """[length_out, length_in]: `area` averages, or `bicubic` interpolation as torch's, over time."""
    unit = torch.eye(length_in)[:, None, :, None]  # each position alone, as a picture one pixel wide
    keep = None if mode == "area" else False
    return functional.interpolate(unit, size=(length_out, 1), mode=mode, align_corners=keep)[:, 0, :, 0].T.contiguous()
