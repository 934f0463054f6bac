"""PAD's diffusion transformer (arXiv 2411.18179): pictures, depth and poses in one sequence.

Every modality is a few tokens. Those of the future are noisy; what is known of the present stands clean beside them, on
the channel axis. A token sees those of its own modality and of the ones before it: pictures see only pictures, depth
also those, and the one action token sees everything. So what is predicted of pictures can be learned from video.
With the present `apart` it also stands in tokens of its own, and what acts sees these instead of the imagined pictures.
Axes: B batch, F frames (of the past, clean, or of the future, noisy), L tokens, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from policies.adaln import modulated

FREQUENCIES = 256  # of the timestep's sinusoidal embedding, as in DiT
MLP_RATIO = 4
EPSILON = 1e-6  # of the layer norms, as in DiT
PRESENT = "present"  # the name of what embeds the present of the pictures alone
MODULATIONS = 6  # shift, scale and gate, of the attention and of the MLP


class Modality(NamedTuple):
    """One kind of what is predicted.

    Attributes:
        name: `pictures` (as latents), `depth` or `poses`.
        channels, height, width: of a frame; a pose is [size, 1, 1].
        patch: positions along each side of a token.
        past: clean frames; future: noisy frames.
        extra: channels that clean frames have more than noisy ones, after those of `channels`.
    """

    name: str
    channels: int
    height: int
    width: int
    patch: int
    past: int
    future: int
    extra: int = 0

    @property
    def tokens(self) -> int:
        """How many."""
        return self.height // self.patch * (self.width // self.patch)

    @property
    def frame_size(self) -> int:
        """Numbers that a token holds of each noisy frame."""
        return self.channels * self.patch**2

    @property
    def seen(self) -> int:
        """Numbers that a token holds of all frames."""
        return self.future * self.frame_size + self.past * (self.channels + self.extra) * self.patch**2


class Block(nn.Module):
    """DiT's block with adaLN-Zero (arXiv 2212.09748, section 3.2); it begins as the identity.

    With `shared` modulation (adaLN-single, arXiv 2310.00426, section 2.3) all blocks are told the same, each to its own
    offset: a third fewer parameters.
    """

    def __init__(self, width: int, heads: int, shared: bool = False) -> None:
        super().__init__()
        self.heads = heads
        if shared:
            self.offset = nn.Parameter(torch.zeros(MODULATIONS * width))
        else:
            self.modulation = nn.Linear(width, MODULATIONS * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.expand = nn.Linear(width, MLP_RATIO * width)
        self.contract = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, W]; condition [B, W], shared [B, 6 W]; mask: what a token sees, bool [L, L]."""
        shared = hasattr(self, "offset")
        told = condition + self.offset if shared else self.modulation(functional.silu(condition))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = told.unsqueeze(1).chunk(MODULATIONS, dim=-1)
        qkv = self.qkv(modulated(x, scale=scale, shift=shift, epsilon=EPSILON)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v, mask)
        x = x + gate * self.project(attended.transpose(1, 2).flatten(2))
        seen = modulated(x, scale=scale_mlp, shift=shift_mlp, epsilon=EPSILON)
        hidden = functional.gelu(self.expand(seen), approximate="tanh")
        return x + gate_mlp * self.contract(hidden)


class PadTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' own bases disagree
    """Predicts the noise in all modalities together, from the timestep and the instruction.

    Attributes:
        modalities: in the order of their tokens.
        shared_modulation: whether all blocks share one (see `Block`).
        apart: the present of the pictures stands in tokens of its own too, the first ones. All see them; of the others,
            pictures are seen by pictures alone. So what acts does not look through noise, but gets no imagination.
    """

    mask: Tensor

    @register_to_config
    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        text_dim: int,
        modalities: Sequence[Modality],
        shared_modulation: bool = False,
        apart: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.modalities = tuple(Modality(*modality) for modality in modalities)  # plain lists in diffusers' JSON
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=1)
        self.timestep = TimestepEmbedding(FREQUENCIES, width)
        self.text = nn.Linear(text_dim, width)
        self.embed, self.head = nn.ModuleDict(), nn.ModuleDict()
        for m in self.modalities:
            self.embed[m.name] = nn.Linear(m.seen, width)
            if m.future:
                self.head[m.name] = nn.Linear(width, m.future * m.frame_size)
            self.register_buffer(f"place_{m.name}", _places(m, width), persistent=False)
        self.modulation_of_all = nn.Linear(width, MODULATIONS * width) if shared_modulation else None
        self.blocks = nn.ModuleList(Block(width, heads, shared_modulation) for _ in range(layers))
        self.final_modulation = nn.Linear(width, 2 * width)
        owner = torch.tensor([number for number, m in enumerate(self.modalities) for _ in range(m.tokens)])
        mask = owner[None] <= owner[:, None]
        self.present = self._apart() if apart else 0
        if apart:
            mask &= (owner[None] > 0) | (owner[:, None] == 0)
            mask = functional.pad(mask, (self.present, 0), value=True)
            mask = functional.pad(mask, (0, 0, self.present, 0), value=False)
            mask[: self.present, : self.present] = True
        self.register_buffer("mask", mask, persistent=False)
        self._begin()

    def _apart(self) -> int:
        """Make what embeds the present of the pictures alone; how many tokens that are."""
        pictures = self.modalities[0]
        self.embed[PRESENT] = nn.Linear(pictures._replace(future=0).seen, self.width)
        return pictures.tokens

    def forward(
        self, noisy: dict[str, Tensor], timestep: Tensor, clean: dict[str, Tensor], text: Tensor
    ) -> dict[str, Tensor]:
        """One evaluation.

        Args:
            noisy: modality -> [B, F, channels, height, width], the future; missing where there is nothing to predict.
            timestep: int64 [B], one for all modalities.
            clean: the same of the present.
            text: vector of the instruction [B, text_dim].

        Returns:
            Modality -> what is predicted, of the shape of `noisy`.
        """
        return self.denoise(noisy, clean, self.told(timestep, text))

    def told(self, timestep: Tensor, text: Tensor) -> Tensor:
        """What a timestep [B] and an instruction [B, text_dim] amount to, the same for all tokens: [B, size]."""
        condition = self.timestep(self.frequencies(timestep).to(text.dtype)) + self.text(text)
        if self.modulation_of_all is None:
            return condition
        active = functional.silu(condition)
        return torch.cat((self.modulation_of_all(active), self.final_modulation(active)), dim=-1)

    def denoise(self, noisy: dict[str, Tensor], clean: dict[str, Tensor], told: Tensor) -> dict[str, Tensor]:
        """`forward` with what `told` gave."""
        if self.modulation_of_all is None:
            last = self.final_modulation(functional.silu(told))
        else:
            told, last = told.split((MODULATIONS * self.width, 2 * self.width), dim=-1)
        tokens = [self._tokens(m, noisy.get(m.name), clean[m.name]) for m in self.modalities]
        if self.present:
            pictures = self.modalities[0]
            tokens.insert(0, self._tokens(pictures, None, clean[pictures.name], PRESENT))
        x = torch.cat(tokens, dim=1)
        for block in self.blocks:
            x = block(x, told, self.mask)
        shift, scale = last.unsqueeze(1).chunk(2, dim=-1)
        x = modulated(x[:, self.present :], scale=scale, shift=shift, epsilon=EPSILON)
        parts = x.split([m.tokens for m in self.modalities], dim=1)
        return {
            m.name: _frames(self.head[m.name](part), m)
            for m, part in zip(self.modalities, parts, strict=True)
            if m.future
        }

    def _tokens(self, m: Modality, noisy: Tensor | None, clean: Tensor, embed: str = "") -> Tensor:
        parts = [_patches(frames, m.patch) for frames in (noisy, clean) if frames is not None]
        return self.embed[embed or m.name](torch.cat(parts, dim=-1)) + getattr(self, f"place_{m.name}")

    def _begin(self) -> None:
        """First weights, as DiT's: nothing is added to the residual stream, and nothing predicted."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.timestep.linear_1, self.timestep.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        silent = [module for name, module in self.named_modules() if "modulation" in name or name.startswith("head.")]
        for module in silent:
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)


def _places(m: Modality, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions [tokens, width]; a single token needs none."""
    if m.tokens == 1:
        return torch.zeros(1, width)
    rows, columns = m.height // m.patch, m.width // m.patch
    return get_2d_sincos_pos_embed(width, (rows, columns), base_size=rows, output_type="pt").float()


def _patches(frames: Tensor, patch: int) -> Tensor:
    """[B, F, C, H, W] to [B, tokens, F * C * patch^2]."""
    folded = frames.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))  # [B, F, C, rows, patch, columns, patch]
    return folded.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)


def _frames(tokens: Tensor, m: Modality) -> Tensor:
    """[B, tokens, F * C * patch^2] to [B, F, C, H, W]: `_patches` undone."""
    rows = m.height // m.patch
    folded = tokens.unflatten(-1, (m.future, m.channels, m.patch, m.patch)).unflatten(1, (rows, -1))
    return folded.permute(0, 3, 4, 1, 5, 2, 6).flatten(-2).flatten(-3, -2)
