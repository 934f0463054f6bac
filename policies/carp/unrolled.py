"""CARP as one straight line from observation to actions: what the exported graph is made of.

It computes what `CarpPolicy.generate` does with the most likely tokens and nothing committed, in fewer and larger
operators, since on one CPU core a network of this size spends its time on operators, not on arithmetic:

- All that is linear between two choices of tokens (stretching, phi, shrinking, embedding) is multiplied out beforehand.
- A convolution over a handful of time steps becomes one small matrix an action dimension.
- Tokens and latents stand in an order in which nothing need be transposed in between.
- A code is chosen by comparison and product; engines make a sort of argmax and a loop of gather.

Axes: D action dimensions, T latent positions, C channels, k positions of a scale, L = D * k tokens, W width. Batch is
1 and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.adaln import modulated
from policies.carp.tokenizer import Decoder, ResidualBlock
from policies.carp.transformer import EPSILON, TINY, Block

if TYPE_CHECKING:
    from policies.carp.policy import CarpPolicy


class UnrolledCarp(nn.Module):
    """Observations [1, history, *feature shape], in the encoder's order, to actions [1, horizon, D] in their units."""

    @torch.no_grad()
    def __init__(self, policy: CarpPolicy) -> None:
        super().__init__()
        quantizer, transformer = policy.tokenizer.quantizer, policy.transformer
        self.encoder, self.transformer, self.actions = policy.encoder, transformer, policy.actions
        self.dims, _, channels = quantizer.codebook.shape
        self.codebook = _constant(quantizer.codebook)  # [D, codes, C]
        codes = self.codebook.shape[1]
        self.order = _constant(torch.arange(codes, 0, -1, dtype=self.codebook.dtype))  # falls from the first code on
        self.blocks = nn.ModuleList(UnrolledBlock(block) for block in transformer.blocks if isinstance(block, Block))
        # Of each scale: what its codes [D, 1, k * C] add to f_hat [D, 1, T * C], and how its tokens are embedded.
        self.contributions = nn.ModuleList()
        self.embeddings = nn.ParameterList()  # of f_hat: [T * C, k * W]; none for the first
        self.places = nn.ParameterList()  # [L, W]
        for index, (scale, length) in enumerate(zip(quantizer.scales, transformer.lengths, strict=True)):
            shape = (self.dims, scale, channels)
            self.contributions.append(AffineByDimension(partial(quantizer.contribution, index=index), shape))
            first = sum(transformer.lengths[:index])
            place = transformer.position[first : first + length] + transformer.level[index]
            if index:
                shrink = quantizer.get_buffer(f"shrink{index}")
                self.embeddings.append(
                    _constant(torch.kron(shrink.T.contiguous(), transformer.embed.weight.T.contiguous()))
                )
                place = place + transformer.embed.bias
            self.places.append(_constant(place))
        self.decoder = UnrolledDecoder(policy.tokenizer.decoder, (self.dims, quantizer.length, channels))

    def forward(self, *observations: Tensor) -> Tensor:
        """One call from observation to chunk."""
        start, modulation, final = (value[0] for value in self.transformer.start(self.encoder(*observations)))
        scales, shifts, gates = modulation.unbind(1)  # each [depth, 1, W]
        scales = 1 + scales
        cache: list[Tensor | None] = [None] * len(self.blocks)
        f_hat: Tensor | None = None
        for index, place in enumerate(self.places):
            given = start if f_hat is None else (f_hat @ self.embeddings[index - 1]).view(place.shape)
            x = given + place
            for number, block in enumerate(self.blocks):
                x, cache[number] = block(x, scales[number], shifts[number], gates[number], cache[number])
            x = modulated(x, scale=final[0], shift=final[1], epsilon=EPSILON)
            logits = self.transformer.head(x).unflatten(0, (self.dims, -1))
            added = self.contributions[index](self._likeliest(logits).flatten(1).unsqueeze(1))
            added = added + 0 * logits.sum()  # a NaN has no likeliest code, and must not come out as an action
            f_hat = added if f_hat is None else f_hat + added
        return self.actions.inverse(self.decoder(f_hat)[:, 0].T)[None]

    def _likeliest(self, logits: Tensor) -> Tensor:
        """Entries [D, k, C] of the codebooks that have the largest of logits [D, k, codes]; of equals the first."""
        ranked = (logits >= logits.amax(dim=-1, keepdim=True)).to(logits.dtype) * self.order
        return (ranked >= ranked.amax(dim=-1, keepdim=True)).to(logits.dtype) @ self.codebook


class UnrolledBlock(nn.Module):
    """`Block` for the tokens of one scale, with the keys and values of those before."""

    @torch.no_grad()
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.width, self.heads = block.width, block.heads
        self.expand, self.contract = block.expand, block.contract
        # Queries get a learned length and keys a length of 1; values pass through the same line as they are: each is
        # multiplied by wanted / (length * measured + unmeasured). All three are [3, heads, 1].
        log_scale = block.log_scale.view(self.heads, 1)
        one, zero = torch.ones_like(log_scale), torch.zeros_like(log_scale)
        self.wanted = _constant(torch.stack((log_scale.exp(), one, one)))
        self.measured = _constant(torch.stack((one, one, zero)))
        self.unmeasured = _constant(torch.stack((TINY**0.5 * one, TINY**0.5 * one, one)))

    def forward(
        self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [L, W]; scale (its 1 included), shift, gate [1, W]; keys and values of tokens [2, heads, L, W / heads]."""
        seen = functional.layer_norm(x, (self.width,), eps=EPSILON) * scale + shift
        qkv, hidden = self.expand(seen).split((3 * self.width, self.expand.out_features - 3 * self.width), dim=1)
        qkv = qkv.unflatten(1, (3, self.heads, -1))
        length = torch.linalg.vector_norm(qkv, dim=-1, keepdim=True)
        qkv = qkv * (self.wanted / (length * self.measured + self.unmeasured))
        q, kv = qkv.permute(1, 2, 0, 3).split((1, 2))
        if before is not None:
            kv = torch.cat((before, kv), dim=2)
        k, v = kv.split(1)
        attended = (torch.softmax(q @ k.mT, dim=-1) @ v).transpose(1, 2).flatten(2)[0]
        both = torch.cat((attended, functional.gelu(hidden, approximate="tanh")), dim=1)
        return x + gate * self.contract(both), kv


class UnrolledDecoder(nn.Module):
    """The tokeniser's decoder: f_hat [D, 1, T * C] to normalised actions [D, 1, horizon]."""

    def __init__(self, decoder: Decoder, shape: tuple[int, int, int]) -> None:
        """`shape`: D, T and C of f_hat."""
        super().__init__()
        dims, length, channels = shape
        # Convolutions have channels before time; f_hat has them behind it: the first matrix sees to that too.
        first, *layers = decoder.layers
        entry = AffineByDimension(lambda x: _convolved(first, x.transpose(2, 3)), shape)
        steps: list[nn.Module] = [entry]
        inside = _shape_after(first, (dims, channels, length))
        for layer in layers:
            steps.append(
                UnrolledResidualBlock(layer, inside)
                if isinstance(layer, ResidualBlock)
                else AffineByDimension(partial(_convolved, layer), inside)
            )
            inside = _shape_after(layer, inside)
        self.layers = nn.Sequential(*steps)

    def forward(self, f_hat: Tensor) -> Tensor:
        return self.layers(f_hat)


class UnrolledResidualBlock(nn.Module):
    """`ResidualBlock` of [D, 1, channels * time]; its GroupNorm, a group a dimension, is a LayerNorm here."""

    @torch.no_grad()
    def __init__(self, block: ResidualBlock, shape: tuple[int, int, int]) -> None:
        super().__init__()
        dims, channels, length = shape

        def spread(value: Tensor) -> nn.Parameter:
            """A value a channel to one an element [D, 1, channels * time]."""
            return _constant(value.view(dims, channels, 1).expand(-1, -1, length).reshape(dims, 1, -1))

        self.weight1, self.bias1 = spread(block.norm1.weight), spread(block.norm1.bias)
        self.weight2, self.bias2 = spread(block.norm2.weight), spread(block.norm2.bias)
        self.convolution1 = AffineByDimension(partial(_convolved, block.convolution1), shape)
        self.convolution2 = AffineByDimension(partial(_convolved, block.convolution2), shape)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution1(functional.silu(functional.layer_norm(x, x.shape[-1:]) * self.weight1 + self.bias1))
        return x + self.convolution2(
            functional.silu(functional.layer_norm(y, y.shape[-1:]) * self.weight2 + self.bias2)
        )


class AffineByDimension(nn.Module):
    """A function that is affine in each action dimension, as matrices: [D, 1, elements in] to [D, 1, elements out]."""

    @torch.no_grad()
    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> None:
        """`function`: [batch, D, ...] to [batch, D, ...]; `shape`: that of its input without the batch."""
        super().__init__()
        dims, *inside = shape
        size = inside[0] * inside[1]
        unit = torch.eye(size).view(size, 1, *inside).expand(-1, dims, *inside)  # one element alone, in every dimension
        bias = function(torch.zeros(1, *shape)).flatten(2)
        self.bias = _constant(bias.transpose(0, 1))
        self.matrix = _constant((function(unit).flatten(2) - bias).transpose(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.bias


def _convolved(convolution: nn.Module, x: Tensor) -> Tensor:
    """A grouped convolution [batch, D, channels, time] of each dimension."""
    return convolution(x.flatten(1, 2)).unflatten(1, (x.shape[1], -1))


@torch.no_grad()
def _shape_after(layer: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    dims, channels, length = _convolved(layer, torch.zeros(1, *shape)).shape[1:]
    return dims, channels, length


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=False)
