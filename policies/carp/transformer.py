"""CARP's next-scale transformer (arXiv 2412.06782, section 3.2): every scale is predicted in one pass from the coarser.

Tokens stand scale after scale; within a scale, which is predicted as a whole, action dimension after action dimension.
Axes: B batch, D action dimensions, L tokens, W width, C channels of the latent.

Attention and MLP of a block stand side by side (arXiv 2204.02311, section 2), not one behind the other as in the paper:
the same weights in half as many operators, and operators are what a network of this size spends its time on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.adaln import modulated
from policies.carp.config import CarpConfig

KeysValues = tuple[Tensor, Tensor]  # of one block [B, heads, L, W / heads]
INITIAL_ATTENTION_SCALE = 4.0  # of the product of unit vectors, as in VAR (arXiv 2404.02905)
INITIAL_GATE = 0.1  # a block begins close to the identity, yet learns at once
EPSILON = 1e-5  # of the layer norms
TINY = 1e-24  # under the square root of a length
MODULATIONS = 3  # scale, shift and gate


class Block(nn.Module):
    """Attention beside an MLP; the observation scales and shifts what they see and gates what they add (AdaLN)."""

    def __init__(self, config: CarpConfig) -> None:
        super().__init__()
        self.width, self.heads = config.width, config.heads
        self.hidden = config.mlp_ratio * config.width
        self.expand = nn.Linear(self.width, 3 * self.width + self.hidden)  # queries, keys, values; the MLP's inside
        self.log_scale = nn.Parameter(torch.full((self.heads, 1, 1), INITIAL_ATTENTION_SCALE).log())
        self.contract = nn.Linear(self.width + self.hidden, self.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, modulation: Tensor, mask: Tensor | None = None, before: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """One block.

        Args:
            x: [B, L, W].
            modulation: scale, shift and gate [B, 3, 1, W].
            mask: what each token may see, bool [L, L]; None: everything.
            before: keys and values of the tokens before x.

        Returns:
            [B, L, W], and keys and values of the tokens before and of x.
        """
        scale, shift, gate = modulation.unbind(1)
        expanded = self.expand(modulated(x, scale=scale, shift=shift, epsilon=EPSILON))
        qkv, hidden = expanded.split((3 * self.width, self.hidden), dim=-1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = unit(q) * self.log_scale.exp(), unit(k)
        if before is not None:
            k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)
        attended = functional.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), mask, scale=1.0)
        both = torch.cat((attended.transpose(1, 2).flatten(2), functional.gelu(hidden, approximate="tanh")), dim=-1)
        return x + gate * self.dropout(self.contract(both)), (k, v)


class NextScaleTransformer(nn.Module):
    """Logits of a scale's tokens, from the observation and the cumulative latent of the coarser scales."""

    mask: Tensor

    def __init__(self, condition_dim: int, action_dim: int, config: CarpConfig) -> None:
        super().__init__()
        width = config.width
        self.lengths = [scale * action_dim for scale in config.scales]
        self.condition = nn.Linear(condition_dim, width)
        self.embed = nn.Linear(config.code_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(sum(self.lengths), width))
        self.level = nn.Parameter(0.02 * torch.randn(len(self.lengths), width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        # One product for all blocks: the same function as a layer in each, but one large matrix on a CPU.
        layers = config.depth if config.modulation == "block" else 1
        self.modulation = nn.Linear(width, layers * MODULATIONS * width)
        self.own_modulation = nn.Parameter(torch.zeros(config.depth, MODULATIONS, width))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.codes)
        for modulation in (self.modulation, self.final_modulation):
            nn.init.normal_(modulation.weight, std=0.02 / width**0.5)
            nn.init.zeros_(modulation.bias)
        with torch.no_grad():
            self.own_modulation[:, -1] = INITIAL_GATE
        level = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        self.register_buffer("mask", level[None] <= level[:, None], persistent=False)

    def start(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What an observation [B, condition_dim] comes down to.

        Returns:
            The first scale's input [B, W]; modulations of the blocks [B, depth, 3, 1, W] and of the head [B, 2, 1, W].
        """
        start = self.condition(condition)
        seen = functional.silu(start)
        modulation = self.modulation(seen).unflatten(-1, (-1, MODULATIONS, start.shape[-1])) + self.own_modulation
        final = self.final_modulation(seen).unflatten(-1, (2, -1))
        return start, modulation.unsqueeze(-2), final.unsqueeze(-2)

    def inputs(self, index: int, start: Tensor, coarser: Tensor | None) -> Tensor:
        """Embedded tokens [B, D * k, W] of scale `index`, from the coarser latent, shrunk to it [B, D, k, C]."""
        first = sum(self.lengths[:index])
        place = self.position[first : first + self.lengths[index]] + self.level[index]
        return (start[:, None] if coarser is None else self.embed(coarser.flatten(1, 2))) + place

    def logits(self, x: Tensor, final: Tensor) -> Tensor:
        """[B, L, W] to [B, L, codes]."""
        scale, shift = final.unbind(1)
        return self.head(modulated(x, scale=scale, shift=shift, epsilon=EPSILON))

    def forward(self, condition: Tensor, coarser: list[Tensor]) -> Tensor:
        """Logits of all scales at once (teacher forcing) [B, L, codes].

        Args:
            condition: [B, condition_dim].
            coarser: for each scale but the first, the latent of the scales before it, shrunk to it [B, D, k, C].
        """
        start, modulation, final = self.start(condition)
        x = torch.cat([self.inputs(index, start, latent) for index, latent in enumerate([None, *coarser])], dim=1)
        length = x.shape[1]
        for index, block in enumerate(self.blocks):
            x, _ = block(x, modulation[:, index], self.mask[:length, :length])
        return self.logits(x, final)

    def next_scale(
        self,
        index: int,
        begun: tuple[Tensor, Tensor, Tensor],
        coarser: Tensor | None,
        cache: list[KeysValues],
    ) -> Tensor:
        """Logits [B, D * k, codes] of scale `index` alone.

        Args:
            index: of the scale.
            begun: what `start` gave.
            coarser: the latent of the scales before, shrunk to this one [B, D, k, C]; None for the first.
            cache: every block's keys and values of the scales before; this scale's are added.
        """
        start, modulation, final = begun
        x = self.inputs(index, start, coarser)
        for number, block in enumerate(self.blocks):
            x, seen = block(x, modulation[:, number], before=cache[number] if index else None)
            cache[number : number + 1] = [seen]
        return self.logits(x, final)


def unit(x: Tensor) -> Tensor:
    """x over its length along the last axis; cheaper to differentiate than torch's `normalize`."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + TINY)
