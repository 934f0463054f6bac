"""CARP's choices."""

from __future__ import annotations

from typing import Literal

from contracts.serialization import require, require_finite
from policies.config import PolicyConfig

DOWNSAMPLING = 4  # actions that one position of the latent stands for: two convolutions of stride 2


class CarpConfig(PolicyConfig, frozen=True, kw_only=True):
    """The tokeniser, the transformer, and how tokens are chosen. Defaults are small enough to train on a CPU.

    Attributes:
        execute: actions carried out before the policy looks again. 8 in the paper; a chunk is so cheap that looking
            twice as often costs nothing.
        scales: positions over time of each scale, coarse to fine; the last is horizon / 4.
        codes: size of the codebook that each action dimension has, shared by its scales.
        code_dim: channels of the latent and length of a code.
        lookup: the nearest code by angle (`cosine`, as in the paper) or by distance (`euclidean`).
        tokenizer_channels: channels per action dimension of the tokeniser's convolutions, at full and half resolution.
        tokenizer_steps: optimiser steps of the first stage, which trains the tokeniser.
        tokenizer_batch_size: chunks per step in that stage.
        tokenizer_learning_rate: learning rate in that stage.
        depth: transformer blocks. 8 in the paper (state), with width 64.
        width: of the transformer.
        heads: of its attention.
        mlp_ratio: hidden width of a block's MLP, as a multiple of `width`. 4 in the paper.
        modulation: how the observation acts on the blocks: by one AdaLN layer for each (`block`, as in the paper), or
            one for all, to which every block adds its own constant (`shared`, arXiv 2310.00426): a fifth of the
            parameters.
        dropout: in the transformer, in training.
        top_k: how many of the most likely codes a token is drawn from; with 1 there is no randomness.
        temperature: of that draw.
    """

    execute: int = 4
    scales: tuple[int, ...] = (1, 2, 3, 4)
    codes: int = 64
    code_dim: int = 8
    lookup: Literal["cosine", "euclidean"] = "euclidean"
    tokenizer_channels: tuple[int, int] = (8, 16)
    tokenizer_steps: int = 2000
    tokenizer_batch_size: int = 128
    tokenizer_learning_rate: float = 4e-3
    depth: int = 4
    width: int = 64
    heads: int = 4
    mlp_ratio: int = 2
    modulation: Literal["block", "shared"] = "shared"
    dropout: float = 0.1
    top_k: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.horizon % DOWNSAMPLING == 0, f"horizon {self.horizon} must be a multiple of {DOWNSAMPLING}")
        latent = self.horizon // DOWNSAMPLING
        require(
            self.scales[-1:] == (latent,),
            f"the last of scales {self.scales} must be horizon / {DOWNSAMPLING}, which is {latent}",
        )
        require(
            list(self.scales) == sorted(set(self.scales)) and self.scales[0] > 0,
            f"scales must be positive and rise, not {self.scales}",
        )
        require(2 <= self.codes <= 100_000, f"codes must be within [2, 100000], not {self.codes}")
        require(self.code_dim > 0 and min(self.tokenizer_channels) > 0, "code_dim and channels must be positive")
        require(self.tokenizer_steps > 0 and self.tokenizer_batch_size > 0, "the tokeniser needs steps and a batch")
        require_finite("a figure", self.tokenizer_learning_rate, self.dropout, self.temperature)
        require(self.tokenizer_learning_rate > 0, "tokenizer_learning_rate must be positive")
        require(self.depth > 0 and self.mlp_ratio > 0, "depth and mlp_ratio must be positive")
        require(
            self.heads > 0 and self.width > 0 and self.width % self.heads == 0,
            f"width {self.width} must be a multiple of heads {self.heads}",
        )
        require(0 <= self.dropout < 1, f"dropout must lie within [0, 1), not {self.dropout}")
        require(1 <= self.top_k <= self.codes, f"top_k must be within [1, codes ({self.codes})], not {self.top_k}")
        require(self.temperature > 0, "temperature must be positive; for no randomness choose top_k 1")

    @property
    def positions(self) -> int:
        """Positions of all scales together; every action dimension has a token at each."""
        return sum(self.scales)
