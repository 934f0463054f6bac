"""How the graphs of a bundle become actions: `sampler.json`, whose `kind` says which session runs it."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import msgspec

from contracts.locomotion import LocomotionContract
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


class StreamingSampler(Contract, frozen=True, kw_only=True, tag_field="kind", tag="streaming"):
    """Keep a buffer of actions, noisier the later they are, and denoise it a little for every observation.

    Graphs: `encoder` (observations -> condition), `denoiser` (sample, levels, condition -> prediction), `decoder`
    (sample -> actions). Every action has a noise level: at level l, clean action x0 and standard normal noise e make
    sqrt(alphas[l]) x0 + sqrt(1 - alphas[l]) e.

    Attributes:
        scheduler: `ddim` (deterministic) or `ddpm` (fresh noise in each evaluation).
        prediction: what the denoiser gives: e (`epsilon`), x0 (`sample`) or sqrt(alpha) e - sqrt(1 - alpha) x0
            (`v_prediction`).
        clip: the estimate of the clean actions is clipped to this, so no action leaves the range of the data.
        alphas: the signal's share of the variance at each level; 1 at level 0.
        execute: actions of a step of the staircase: so many are clean after the evaluations.
        evaluations: of the network an observation.
        reset_sample: normalised action that stands in the whole buffer at the start of an episode, before noise.
        reset_levels: if there are any, the buffer is not `reset_sample` but denoised from pure noise, all of it through
            these levels, down to 0.
    """

    scheduler: Literal["ddim", "ddpm"]
    prediction: Literal["epsilon", "sample", "v_prediction"]
    clip: float
    alphas: tuple[float, ...]
    execute: int
    evaluations: int
    reset_sample: tuple[float, ...]
    reset_levels: tuple[int, ...]

    def __post_init__(self) -> None:
        require_finite("a figure of the streaming sampler", self.clip, *self.alphas, *self.reset_sample)
        require(self.clip > 0, "clip must be positive")
        require(2 <= len(self.alphas) <= 10_001, f"{len(self.alphas)} alphas; 2 to 10001 would be right")
        require(self.alphas[0] == 1, "alphas must begin with 1, for a clean action")
        require(all(0 < b < a for a, b in pairwise(self.alphas)), "alphas must fall and stay positive")
        highest = len(self.alphas) - 1
        require(1 <= self.execute <= highest, f"execute must be within [1, {highest}], not {self.execute}")
        require(1 <= self.evaluations <= highest, f"evaluations must be within [1, {highest}], not {self.evaluations}")
        if self.reset_levels:
            ends = (self.reset_levels[0], self.reset_levels[-1])
            require(ends == (highest, 0), f"reset_levels must begin with {highest} and end with 0")
            require(all(a > b for a, b in pairwise(self.reset_levels)), "reset_levels must fall")


class PadStep(Contract, frozen=True, kw_only=True):
    """One step of PAD's sampling, as the numbers that a solver comes down to.

    With the noisy sample x, the network's output o, and the estimate of the clean sample in the step before:

        clean = clip(clean_sample * x + clean_output * o, -clip, clip)
        x <- next_sample * x + next_clean * clean + next_previous * (clean of the step before)

    Attributes:
        timestep: what the network is told.
    """

    timestep: int
    clean_sample: float
    clean_output: float
    next_sample: float
    next_clean: float
    next_previous: float

    def __post_init__(self) -> None:
        require_finite("a coefficient of a step", self.clean_sample, self.clean_output, self.next_sample)
        require_finite("a coefficient of a step", self.next_clean, self.next_previous)


class PadSample(Contract, frozen=True, kw_only=True):
    """One modality that is sampled: `pictures` (as latents), `depth` or `poses`.

    Attributes:
        name: of the denoiser's input and output.
        shape: of it, the batch of 1 included.
        clip: estimates of the clean sample are clipped to this.
    """

    name: Literal["pictures", "depth", "poses"]
    shape: tuple[int, ...]
    clip: float

    def __post_init__(self) -> None:
        require(len(self.shape) >= 2 and self.shape[0] == 1, f"{self.name}: impossible shape {self.shape}")
        require(all(0 < size <= 100_000 for size in self.shape), f"{self.name}: impossible shape {self.shape}")
        require_finite("clip", self.clip)
        require(self.clip > 0, "clip must be positive")


class PadChannel(Contract, frozen=True, kw_only=True):
    """How one command channel follows the predicted poses.

    Attributes:
        element: of the pose that it moves.
        kind: `velocity`, which moves that element; or `gripper`, `max` closes it and `min` opens it.
        min, max: the limits of the command.
    """

    element: int
    kind: Literal["velocity", "gripper"]
    min: float
    max: float

    def __post_init__(self) -> None:
        require(self.element >= 0, "element cannot be negative")
        require_finite("a limit", self.min, self.max)
        require(self.min < self.max, f"min {self.min} is not below max {self.max}")


class PadSampler(Contract, frozen=True, kw_only=True, tag_field="kind", tag="pad"):
    """Denoise future pictures and poses together from pure noise, and follow the poses (PAD).

    Graphs: `encoder` (observations -> what is known of the present, and what the instruction tells in each step),
    `denoiser` (the noisy future, timestep, the present -> its estimate), `decoder` (poses -> poses in the contract's
    units) and `picture` (pictures as latents -> uint8).

    Attributes:
        solver: name of the schedule, for people.
        steps: in the order in which they are done.
        samples: what is denoised, in the order in which its noise is drawn.
        conditions: what the encoder gives, in order.
        future: periods from the observation to each predicted pose.
        pose_key: the observation that measures the pose.
        channels: of the command, in order.
        gripper_threshold: predicted opening under which a gripper closes.
    """

    solver: str
    steps: tuple[PadStep, ...]
    samples: tuple[PadSample, ...]
    conditions: tuple[str, ...]
    future: tuple[int, ...]
    pose_key: str
    channels: tuple[PadChannel, ...]
    gripper_threshold: float

    def __post_init__(self) -> None:
        require(1 <= len(self.steps) <= 10_000, f"{len(self.steps)} denoising steps; 1 to 10000 would be right")
        require(bool(self.samples) and self.samples[-1].name == "poses", "the last of the samples must be poses")
        require(len({sample.name for sample in self.samples}) == len(self.samples), "a sample stands twice")
        require(bool(self.future) and self.future[0] > 0, "future must begin after the present")
        require(all(a < b for a, b in pairwise(self.future)), f"future must rise, not {self.future}")
        require_finite("gripper_threshold", self.gripper_threshold)


class LocomotionSampler(Contract, frozen=True, kw_only=True, tag_field="kind", tag="locomotion"):
    """Walk as told: one action for what was seen lately, as joint positions.

    Graph: `actor` (`observation`, float32 [batch, history * observation_size] -> `action`, float32 [batch, joints]), of
    any batch. The observed elements are found by their names: joints by their own, and these:

    Attributes:
        locomotion: what the actor sees and what its actions mean.
        command_limits: it was trained for commands of so much forward, to the left (m/s) and turning (rad/s), either
            way; what is asked for beyond is cut.
        command: of the velocity command, in the same order.
        orientation: x y z w of the trunk.
        angular_velocity: x y z of the trunk, in its frame.
    """

    locomotion: LocomotionContract
    command_limits: tuple[float, float, float]
    command: tuple[str, str, str]
    orientation: tuple[str, str, str, str]
    angular_velocity: tuple[str, str, str]

    def __post_init__(self) -> None:
        require_finite("a limit of the command", *self.command_limits)
        require(min(self.command_limits) >= 0, f"command_limits cannot be negative: {self.command_limits}")


Sampler = DiffusionSampler | CarpSampler | StreamingSampler | PadSampler | LocomotionSampler


def sampler_from_json(text: bytes) -> Sampler:
    """Read `sampler.json`.

    Raises:
        ValueError: it is not the description of a sampler of a known kind; says where.
    """
    try:
        return msgspec.json.decode(text, type=Sampler)
    except RecursionError as error:
        raise ValueError(str(error)) from None
