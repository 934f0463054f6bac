"""CARP (arXiv 2412.06782): tokens of a demonstrated chunk are learned scale after scale, and chosen so when acting."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts import PolicyContract
from policies.base import Batch, Graph, Policy, Stage, example_observations
from policies.carp.config import DOWNSAMPLING, CarpConfig
from policies.carp.tokenizer import Tokenizer
from policies.carp.transformer import KeysValues, NextScaleTransformer
from policies.carp.unrolled import UnrolledCarp
from policies.config import TrainingConfig
from policies.encoders import ObservationEncoder
from policies.normalization import MinMaxNormalizer
from policies.runtime.sampler import CarpSampler

TOKENIZER_BETAS = (0.5, 0.9)  # of AdamW, as in the paper


class CarpPolicy(Policy):
    """A tokeniser of action chunks, and a transformer that predicts its tokens from the observation, coarse to fine."""

    family = "carp"
    config_type = CarpConfig
    sampling = ("top_k", "temperature")
    config: CarpConfig

    def __init__(self, config: CarpConfig, contract: PolicyContract) -> None:
        super().__init__(config, contract)
        action_dim = contract.action.shape[0]
        self.encoder = ObservationEncoder(contract, config.image_width, config.keypoints)
        self.actions = MinMaxNormalizer(action_dim)
        self.tokenizer = Tokenizer(action_dim, config)
        self.transformer = NextScaleTransformer(self.encoder.output_dim, action_dim, config)

    def stages(self, training: TrainingConfig) -> Iterator[Stage]:
        """The tokeniser first, on chunks alone; then, with the tokeniser fixed, the transformer."""
        config = self.config
        first = msgspec.structs.replace(
            training,
            steps=config.tokenizer_steps,
            batch_size=config.tokenizer_batch_size,
            learning_rate=config.tokenizer_learning_rate,
            final_learning_rate=0.0,
            adam_betas=TOKENIZER_BETAS,
            precision="fp32",  # the choice of a code is a comparison of near equals
        )
        yield Stage("tokenizer", _TokenizerStage(self.actions, self.tokenizer), first, observes=False)
        self.tokenizer.requires_grad_(False)
        yield Stage("", self, training)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of every token, given the observation and the true tokens of the coarser scales.

        Args:
            batch: observations [batch, history, ...] and `action` [batch, horizon, action_dim].
            generator: of image shifts; on the CPU, so that every device learns from the same.
        """
        condition = self.encoder.encode(batch, self.config.shift_pixels, generator)
        tokens, coarser = self.targets(batch["action"])
        logits = self.transformer(condition, coarser).float()
        wanted = _in_order(tokens)
        each = functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        by_scale = each.detach().mean(0).split(self.transformer.lengths)
        figures = {f"scale_{k}": part.mean() for k, part in zip(self.config.scales, by_scale, strict=True)}
        return each.mean(), figures

    @torch.no_grad()
    def targets(self, actions: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What the transformer learns from actions [B, horizon, D].

        Returns:
            Tokens [B, D, k] of each scale; and for each scale but the first the latent of the scales before it, shrunk
            to it [B, D, k, C].
        """
        quantizer = self.tokenizer.quantizer
        with torch.autocast(actions.device.type, enabled=False):
            tokens = self.tokenizer.encode(self.actions(actions))
            sums = quantizer.accumulate(tokens)
            return tokens, [quantizer.shrink(f_hat, index + 1) for index, f_hat in enumerate(sums[:-1])]

    def generate(
        self,
        condition: Tensor,
        noise: Tensor | None = None,
        committed: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Choose all tokens, with a KV cache, and decode them.

        Args:
            condition: [B, condition_dim].
            noise: standard Gumbel [B, tokens, codes] for a random choice among the top_k; None: the most likely.
            committed: actions [B, horizon, D] in the contract's units, of which the first are to be kept.
            prefix: how many, int64 [1]. A token all of whose time lies within them is not chosen but forced: it is the
                one nearest to what the committed chunk has left over after the coarser tokens.

        Returns:
            Actions [B, horizon, D] in the contract's units, and the tokens [B, D, k] of each scale.
        """
        quantizer = self.tokenizer.quantizer
        known = None if committed is None else self.tokenizer.latent(self.actions(committed))
        begun = self.transformer.start(condition)
        cache: list[KeysValues] = []
        chosen: list[Tensor] = []
        f_hat: Tensor | None = None
        noises = None if noise is None else noise.split(self.transformer.lengths, dim=1)
        for index, scale in enumerate(self.config.scales):
            coarser = None if f_hat is None else quantizer.shrink(f_hat, index)
            logits = self.transformer.next_scale(index, begun, coarser, cache)
            tokens = self._choose(logits, None if noises is None else noises[index])
            tokens = tokens.unflatten(1, (self.tokenizer.dims, scale))
            if known is not None and prefix is not None:
                left = known if f_hat is None else known - f_hat
                end = self.config.horizon * torch.arange(1, scale + 1)  # of each token's time, times the scale
                tokens = torch.where(end <= prefix * scale, quantizer.nearest(quantizer.shrink(left, index)), tokens)
            added = quantizer.contribution(quantizer.codes(tokens), index)
            added = added + 0 * logits.sum()  # a NaN has no code, and must not come out as an action
            f_hat = added if f_hat is None else f_hat + added
            chosen.append(tokens)
        assert f_hat is not None  # there is at least one scale
        return self.actions.inverse(self.tokenizer.decode(f_hat)), chosen

    def _choose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """A code for each token: [B, L, codes] to [B, L]. Gumbel noise makes argmax a draw from the softmax."""
        if noise is None:
            return logits.argmax(-1)
        values, codes = logits.topk(self.config.top_k, dim=-1)
        best = (values / self.config.temperature + noise.gather(-1, codes)).argmax(-1, keepdim=True)
        return codes.gather(-1, best)[..., 0]

    @property
    def random(self) -> bool:
        """Whether tokens are drawn rather than the most likely taken."""
        return self.config.top_k > 1

    def graphs(self) -> dict[str, Graph]:
        """`policy` and `continuation`, as `CarpSampler` describes them."""
        inputs = example_observations(self.contract)
        if self.random:
            inputs["noise"] = torch.zeros((1, self._tokens, self.config.codes))
        chunk = torch.zeros((1, self.contract.horizon, self.contract.action.shape[0]))
        more = {"committed": chunk, "prefix": torch.zeros(1, dtype=torch.int64)}
        return {
            "policy": Graph(_Acting(self) if self.random else UnrolledCarp(self), inputs, ("actions",)),
            "continuation": Graph(_Acting(self), inputs | more, ("actions",)),
        }

    def sampler(self) -> CarpSampler:
        """What the runtime must know to feed the graphs."""
        return CarpSampler(
            tokens=self._tokens, codes=self.config.codes, random=self.random, prefix_multiple=DOWNSAMPLING
        )

    @property
    def _tokens(self) -> int:
        return self.config.positions * self.contract.action.shape[0]


class _Acting(nn.Module):
    """From observations to actions, by position: observations, then noise if random, then what is committed."""

    def __init__(self, policy: CarpPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *values: Tensor) -> Tensor:
        policy, seen = self.policy, len(self.policy.encoder.keys)
        condition = policy.encoder(*values[:seen])
        noise = values[seen] if policy.random else None
        committed, prefix = values[seen + policy.random :] or (None, None)
        return policy.generate(condition, noise, committed, prefix)[0]


class _TokenizerStage(nn.Module):
    """The tokeniser as the trainer sees it: it learns from the actions of a batch alone."""

    def __init__(self, actions: MinMaxNormalizer, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.actions, self.tokenizer = actions, tokenizer

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.tokenizer.loss(self.actions(batch["action"]), generator)


def _in_order(tokens: list[Tensor]) -> Tensor:
    """Tokens [B, D, k] of each scale as one sequence [B, L], in the transformer's order."""
    return torch.cat([scale.flatten(1) for scale in tokens], dim=1)
