"""The choices of locomotion training: PPO, the disturber, the constraint. Free of torch."""

from __future__ import annotations

import math
import os
from typing import Literal

from contracts.serialization import Contract, require, require_finite

STD = (0.02, 2.7)
"""Smallest and largest standard deviation, of actions and of the disturber's raw forces."""


class HInfinityConfig(Contract, frozen=True, kw_only=True):
    """How a walking policy is trained. PPO's figures are HIMLoco's (arXiv 2312.11460).

    Attributes:
        disturber: who pushes the robots: one that learns to (`hinfinity`), chance (`random`), or nobody (`none`).
        iterations: of collecting and learning.
        actor_widths, critic_widths, disturber_widths, estimator_widths: hidden layers; the estimator tells the actor
            how fast the trunk moves.
        initial_std: of the actions at first, within STD.
        rollout_steps: control periods of every environment an iteration.
        epochs, minibatches: of learning from them.
        gamma, lam: discount, and the decay of generalised advantage estimation (arXiv 1506.02438), a step.
        clip_ratio: of PPO (arXiv 1707.06347); values are clipped by it too.
        value_weight: of the values' loss.
        entropy_warmup, entropy: weight of the actor's entropy in the warm-up, and after it: finding out how to walk
            takes noise, but under pushes it makes robots fall that would have stood.
        learning_rate: at first; it then follows desired_kl, within LEARNING_RATES.
        desired_kl: between the policies before and after an update.
        gradient_clip: largest norm of the gradient.
        ema_decay: what is deployed is a running mean of the actor's weights, of which so much stays in an iteration:
            from one iteration to the next, how many pushes are survived changes more than it does in a hundred.
        fall: what a fall is worth in the warm-up, in reward. As much as falling costs the task (-3) keeps robots from
            trying to walk; 0 lets those fall that earn less than nothing.
        fall_pushed: what it is worth to a robot that chance pushes with up to force_max_n; evenly in between. Under
            strong pushes a step costs more than it earns, and a cheap fall would be a prize. Whoever pushes, it is
            worth the same to a robot, and with a disturber at work it costs that too, beside the task.
        mirror: networks are symmetric, left and right: what is learned on one side is learned on the other.
        eta: the constraint: what a newton may cause in cost (lost task reward a second), beyond what robots pay that
            nobody pushes, 1/N. It counts once a disturber is at work, and for forces by chance too: an H-infinity norm
            bounds what any disturbance causes. So low that it takes effort: lambda at 0 is PPO.
        lambda_start: the dual variable at first;
        lambda_rate: what it falls by in an iteration, a unit of the constraint's slack (lost task reward a second);
        lambda_max: and it stays below this.
        warmup: iterations without forces.
        chance_first: iterations after it in which only chance pushes: until forces are large, who makes them so teaches
            more than who aims them;
        turns: from then on, iterations in which each robot is with chance and with the disturber once. Were it with one
            of them for good, chance would be left with those that bear less, or fewer would learn what it can do;
        force_start_n, force_max_n: largest force on a robot after the warm-up, and ever. Each robot has its own by
            chance and by the disturber: it rises with every step and drops with every fall, so that forces are as large
            as can just be borne where the robot is, on a plane larger than on stairs;
        force_ramp: iterations from force_start_n to force_max_n without a fall. 0: all have force_max_n from the start;
        bearable_falls: falls a minute at which the force of a robot stays what it is.
        vertical: share of the vertical part that acts of a force by chance: in the field, trunks are pushed from the
            side;
        disturber_vertical: the same of the disturber's: lifting while pushing is what it finds where it may.
        hold: shortest and longest time of a force, steps.
        rest: the same of the time without any between two forces, by chance: were there none, walking with a steady
            push in the back would be what is learned. The disturber's hardly cease.
        settle: shortest and longest time from an episode's beginning to its first force, steps: a robot just put down
            does not walk yet.
        share_random: of the environments, those with forces by chance beside the disturber's, so that it does not have
            to show all of them and cannot make the policy forget them;
        share_none: of those without forces, whoever pushes the others.
        estimator_learning_rate, disturber_learning_rate: constant.
        disturber_entropy: weight of the entropy of the disturber's forces.
        disturber_mean, disturber_std: largest norm of their mean, and smallest deviation, before they are squashed;
            its largest deviation is that of chance, 1.
        disturber_lam: as `lam`, for the disturber: a force and what comes of it last longer than lam reaches.
        disturber_fall: what a fall is worth to the disturber, in what it costs the task: it is to bring robots down,
            and not to hold them up, which costs the task too.
        disturber_price: lost task reward a second that a newton must cause to be worth it to the disturber, 1/N. Not
            eta: the cost counts what is lost without any force too, so that the constraint is active where a newton
            more costs much less than eta, and who pays eta for it learns to push as little as it can.
        disturber_balance: weight of the square of its mean force over all that it sees, before squashing. Left to
            itself it ends with pushing from one side only, and robots learn to bear just that.
        device: that learns: `auto` is `cuda` where there is a GPU, else `cpu`. Steps are always collected on the CPU.
        precision: of the arithmetic: `auto` is bf16 where the CPU, which collects with the same networks, multiplies in
            it, else fp32. Weights and optimisers are always fp32.
        seed: of the first weights, the actions, the forces and the minibatches.
        checkpoint_every_s: seconds between two checkpoints.
        threads: that collect and learn, in turns; None: one for each core. What is learned does not depend on them.
    """

    disturber: Literal["hinfinity", "random", "none"] = "hinfinity"
    iterations: int = 1700
    actor_widths: tuple[int, ...] = (256, 128, 64)
    critic_widths: tuple[int, ...] = (256, 128, 64)
    disturber_widths: tuple[int, ...] = (128, 64)
    estimator_widths: tuple[int, ...] = (256, 128)
    initial_std: float = 1.0
    rollout_steps: int = 24
    epochs: int = 4
    minibatches: int = 4
    gamma: float = 0.99
    lam: float = 0.95
    clip_ratio: float = 0.2
    value_weight: float = 1.0
    entropy_warmup: float = 0.01
    entropy: float = 0.002
    learning_rate: float = 1e-3
    desired_kl: float = 0.015
    gradient_clip: float = 1.0
    ema_decay: float = 0.97
    fall: float = -0.6
    fall_pushed: float = -2.5
    mirror: bool = True
    eta: float = 0.007
    lambda_start: float = 1.0
    lambda_rate: float = 0.01
    lambda_max: float = 1.0
    warmup: int = 150
    chance_first: int = 700
    turns: int = 200
    force_start_n: float = 20.0
    force_max_n: float = 250.0
    force_ramp: int = 120
    bearable_falls: float = 4.0
    vertical: float = 0.3
    disturber_vertical: float = 1.0
    hold: tuple[int, int] = (10, 30)
    rest: tuple[int, int] = (0, 50)
    settle: tuple[int, int] = (25, 75)
    share_random: float = 0.65
    share_none: float = 0.15
    estimator_learning_rate: float = 1e-3
    disturber_learning_rate: float = 1e-3
    disturber_entropy: float = 0.01
    disturber_mean: float = 3.0
    disturber_std: float = 0.3
    disturber_lam: float = 0.99
    disturber_fall: float = 5.0
    disturber_price: float = 0.005
    disturber_balance: float = 0.1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    checkpoint_every_s: float = 60.0
    threads: int | None = None

    @property
    def cores(self) -> int:
        """`threads`, or one for each core."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def aimed_from(self) -> float:
        """The iteration, counted from 0, from which a disturber is at work; inf: never."""
        return self.warmup + self.chance_first if self.disturber == "hinfinity" else math.inf

    def __post_init__(self) -> None:
        widths = (*self.actor_widths, *self.critic_widths, *self.disturber_widths, *self.estimator_widths)
        require(all(width > 0 for width in widths), "widths must be positive")
        counts = (self.iterations, self.rollout_steps, self.epochs, self.minibatches)
        require(min(counts) > 0, "iterations, rollout_steps, epochs and minibatches must be positive")
        weights = {
            name: getattr(self, name)
            for name in (
                "entropy_warmup", "entropy", "disturber_entropy", "disturber_mean", "disturber_fall", "disturber_price",
                "disturber_balance",
            )
        }  # fmt: skip
        for name, value in weights.items():
            require_finite(name, value)
            require(value >= 0, f"{name} cannot be negative, not {value}")
        for name, value in {"fall": self.fall, "fall_pushed": self.fall_pushed}.items():
            require_finite(name, value)
            require(value <= 0, f"{name} must be at most 0, not {value}: it would be a prize")
        positive = {
            name: getattr(self, name)
            for name in (
                "initial_std", "learning_rate", "estimator_learning_rate", "disturber_learning_rate", "desired_kl",
                "gradient_clip", "clip_ratio", "eta", "lambda_rate", "lambda_max", "bearable_falls",
                "checkpoint_every_s",
            )
        }  # fmt: skip
        for name, value in positive.items():
            require_finite(name, value)
            require(value > 0, f"{name} must be positive, not {value}")
        require(not self.mirror or all(width % 2 == 0 for width in widths), "of mirror's networks, widths must be even")
        smallest, largest = STD
        right = f"initial_std must be within [{smallest:g}, {largest:g}], not {self.initial_std:g}"
        require(smallest <= self.initial_std <= largest, f"{right}: training keeps it there")
        require(
            smallest <= self.disturber_std <= 1,
            f"disturber_std must be within [{smallest:g}, 1], not {self.disturber_std}: it begins with 1",
        )
        require(0 <= self.ema_decay < 1, f"ema_decay must be within [0, 1), not {self.ema_decay}")
        require(0 < self.gamma < 1, f"gamma must be within (0, 1), not {self.gamma}")
        for name, value in {"lam": self.lam, "disturber_lam": self.disturber_lam}.items():
            require(0 <= value <= 1, f"{name} must be within [0, 1], not {value}")
        require(0 <= self.lambda_start <= self.lambda_max, "lambda_start must be within [0, lambda_max]")
        for name in ("warmup", "chance_first", "force_ramp"):
            require(getattr(self, name) >= 0, f"{name} cannot be negative, not {getattr(self, name)}")
        require(0 < self.force_start_n <= self.force_max_n, "force_start_n must be within (0, force_max_n]")
        require(self.turns > 0, f"turns must be positive, not {self.turns}")
        for name, value in {"vertical": self.vertical, "disturber_vertical": self.disturber_vertical}.items():
            require(0 <= value <= 1, f"{name} must be within [0, 1], not {value}")
        require(0 < self.hold[0] <= self.hold[1], f"hold {self.hold} must be two positive numbers of steps, in order")
        for name, (least, most) in {"rest": self.rest, "settle": self.settle}.items():
            require(0 <= least <= most, f"{name} {(least, most)} must be two numbers of steps from 0 up, in order")
        shares = (self.share_random, self.share_none)
        require(min(shares) >= 0 and sum(shares) < 1, "share_random and share_none must leave some to the disturber")
        require(self.seed >= 0, "seed cannot be negative")
        require(self.threads is None or self.threads > 0, "threads must be positive")
