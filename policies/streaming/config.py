"""Streaming Diffusion Policy's choices."""

from __future__ import annotations

import math
from typing import Literal

from contracts.serialization import require, require_finite
from policies.config import PolicyConfig, require_width


class StreamingConfig(PolicyConfig, frozen=True, kw_only=True):
    """The network, the staircase of noise levels, and how the buffer is rolled.

    Defaults are the streaming setting: an action and one run of a small network a control period. The paper's setting
    is `execute=8, evaluations=50, scheduler="ddpm", prediction="epsilon", reset="zero"`, with widths (256, 512, 1024).

    Attributes:
        horizon: actions in the buffer.
        execute: actions carried out before the policy looks again. A step of the staircase is as many actions wide.
        widths: channels of the UNet's levels, each but the last halving the time axis.
        kernel_size: of the convolutions over time.
        level_dim: width of the embedding of a noise level.
        noise_levels: the highest noise level, nothing but noise; level 0 is a clean action.
        prediction: what the network gives: the noise (`epsilon`, as in the paper), the clean action (`sample`), or
            their mixture whose error weighs alike at every level (`v_prediction`, arXiv 2202.00512).
        chunkwise: share of the training samples with a staircase of noise levels, as when the buffer rolls.
        constant: share with one level for the whole chunk, as when a buffer is denoised from nothing.
        independent: share with a level of its own for each action. The paper's shares are 0.8, 0.2 and 0.
        scheduler: how the buffer is denoised: `ddim` (deterministic) or `ddpm` (fresh noise in each step).
        evaluations: runs of the network per observation; together they lead one step down the staircase.
        reset: what the buffer is at the start of an episode: noise added to zeros (`zero`) or to `reset_action`
            (`constant`), or a chunk denoised from pure noise, with noise added again (`denoised`).
        reset_action: the action of `--reset constant`, in the contract's units; all zeros if empty.
        reset_evaluations: runs of the network for `--reset denoised`.
    """

    horizon: int = 20
    execute: int = 1
    widths: tuple[int, ...] = (16, 48, 96)
    kernel_size: int = 3
    level_dim: int = 32
    noise_levels: int = 100
    prediction: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
    chunkwise: float = 0.8
    constant: float = 0.2
    independent: float = 0.0
    scheduler: Literal["ddim", "ddpm"] = "ddim"
    evaluations: int = 1
    reset: Literal["zero", "constant", "denoised"] = "denoised"
    reset_action: tuple[float, ...] = ()
    reset_evaluations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.widths), "widths needs at least one level")
        for width in self.widths:
            require_width("a width", width)
        halvings = 2 ** (len(self.widths) - 1)
        require(
            self.horizon > 0 and self.horizon % halvings == 0,
            f"horizon {self.horizon} must be a multiple of {halvings}: {len(self.widths)} levels",
        )
        require(
            1 <= self.execute <= self.horizon,
            f"execute must be within [1, horizon ({self.horizon})], not {self.execute}",
        )
        require(self.kernel_size > 0 and self.kernel_size % 2 == 1, f"kernel_size must be odd, not {self.kernel_size}")
        require(self.level_dim >= 4 and self.level_dim % 2 == 0, "level_dim must be even and at least 4")
        steps = self.horizon // self.execute
        require(
            steps <= self.noise_levels <= 10_000,
            f"noise_levels {self.noise_levels} must be within [{steps}, 10000]: the staircase has {steps} steps",
        )
        require_finite("a weight of the training levels", *self.level_weights)
        require(
            min(self.level_weights) >= 0 and math.isclose(sum(self.level_weights), 1),
            f"chunkwise, constant and independent must be positive and sum to 1, not {sum(self.level_weights):g}",
        )
        highest = self.noise_levels // steps
        require(
            1 <= self.evaluations <= highest,
            f"evaluations must be within [1, {highest}] (noise levels of a step), not {self.evaluations}",
        )
        require(
            1 <= self.reset_evaluations <= self.noise_levels,
            f"reset_evaluations must be within [1, noise_levels ({self.noise_levels})], not {self.reset_evaluations}",
        )
        require_finite("reset_action", *self.reset_action)

    @property
    def level_weights(self) -> tuple[float, float, float]:
        """How often each kind of levels is learned from, in the order of `StreamingScheduler.training_levels`."""
        return (self.chunkwise, self.constant, self.independent)
