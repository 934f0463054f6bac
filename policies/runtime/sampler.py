"""How the graphs of a bundle become actions: `sampler.json`, whose `kind` says which session runs it."""

from __future__ import annotations

import msgspec

from contracts.serialization import Contract, require, require_finite


class DenoisingStep(Contract, frozen=True, kw_only=True):
    """One step of a diffusion sampler, as the numbers that a noise schedule comes down to.

    With the noisy chunk x, the network's noise estimate e and fresh noise z:

        x0 = clip(x0_sample * x + x0_epsilon * e, -clip, clip)
        x <- next_x0 * x0 + next_sample * x + next_epsilon * e + next_noise * z

    Attributes:
        timestep: what the network is told.
    """

    timestep: int
    x0_sample: float
    x0_epsilon: float
    next_x0: float
    next_sample: float
    next_epsilon: float
    next_noise: float

    def __post_init__(self) -> None:
        require_finite("a coefficient of a denoising step", self.x0_sample, self.x0_epsilon, self.next_x0)
        require_finite("a coefficient of a denoising step", self.next_sample, self.next_epsilon, self.next_noise)


class DiffusionSampler(Contract, frozen=True, kw_only=True, tag_field="kind", tag="diffusion"):
    """Denoise a whole chunk from pure noise, for every observation (Diffusion Policy).

    Graphs: `encoder` (observations -> condition), `denoiser` (sample, timestep, condition -> epsilon),
    `decoder` (sample -> actions).

    Attributes:
        scheduler: name of the schedule, for people (`ddim`, `ddpm`).
        clip: the estimate of the clean chunk is clipped to this, so no action leaves the range of the data.
        steps: in the order in which they are done.
    """

    scheduler: str
    clip: float
    steps: tuple[DenoisingStep, ...]

    def __post_init__(self) -> None:
        require_finite("clip", self.clip)
        require(self.clip > 0, "clip must be positive")
        require(1 <= len(self.steps) <= 10_000, f"{len(self.steps)} denoising steps; 1 to 10000 would be right")


class CarpSampler(Contract, frozen=True, kw_only=True, tag_field="kind", tag="carp"):
    """Choose a chunk's tokens scale after scale, all inside one graph (CARP).

    Graphs: `policy` (observations -> actions) and `continuation`, which also takes the actions of the chunk before for
    the same time [1, horizon, action_dim], `committed`, and how many of them are to be kept, `prefix` [1]. If choices
    are `random`, both also take `noise` [1, tokens, codes], standard Gumbel.

    Attributes:
        tokens: of a chunk.
        codes: that each token chooses from.
        random: False takes the most likely code, always.
        prefix_multiple: actions that a token of the finest scale stands for: a prefix is a multiple of it.
    """

    tokens: int
    codes: int
    random: bool
    prefix_multiple: int

    def __post_init__(self) -> None:
        require(1 <= self.tokens <= 10_000 and 1 <= self.codes <= 100_000, "tokens and codes must be positive")
        require(1 <= self.prefix_multiple <= 10_000, "prefix_multiple must be positive")


Sampler = DiffusionSampler | CarpSampler


def sampler_from_json(text: bytes) -> Sampler:
    """Read `sampler.json`.

    Raises:
        ValueError: it is not the description of a sampler of a known kind; says where.
    """
    try:
        return msgspec.json.decode(text, type=Sampler)
    except RecursionError as error:
        raise ValueError(str(error)) from None
