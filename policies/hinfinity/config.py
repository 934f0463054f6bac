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
        disturber: who pushes the robots: a network that learns to (`hinfinity`), chance (`random`), or nobody (`none`).
        iterations: rounds of collecting and learning.
        actor_widths: hidden layers of the network that acts.
        critic_widths: hidden layers of the network that values states.
        disturber_widths: hidden layers of the network that pushes.
        estimator_widths: hidden layers of the network that tells the actor how fast the trunk moves.
        initial_std: standard deviation of the actions at first, from 0.02 to 2.7; training keeps it in that range.
        rollout_steps: control periods that every robot collects in an iteration.
        epochs: how often an iteration learns from what was collected.
        minibatches: parts that it is split into for that.
        gamma: discount of the reward, per step.
        lam: decay of generalised advantage estimation (arXiv 1506.02438), per step.
        clip_ratio: of PPO (arXiv 1707.06347); values are clipped by it too.
        value_weight: weight of the values' loss.
        entropy_warmup: weight of the actor's entropy in the warm-up: finding out how to walk takes noise.
        entropy: the same after the warm-up: under pushes, noise makes robots fall that would have stood.
        learning_rate: at first; it then follows desired_kl, from 1e-5 to 1e-2.
        desired_kl: KL divergence between the policies before and after an update.
        gradient_clip: largest norm of the gradient.
        ema_decay: the deployed actor is a running mean of the one that learns; this share of it stays in each
            iteration. Without it, one iteration may change how many pushes are survived more than a hundred do.
        fall: reward for a fall in the warm-up. At -3, what a fall costs the task, robots do not dare to walk; at 0,
            those that earn less than nothing let themselves fall.
        fall_pushed: the same for a robot that chance pushes with up to force_max_n; evenly in between. Under strong
            pushes a step costs more than it earns, and a cheap fall would be a prize. It does not depend on who pushes;
            once the disturber is at work, the constraint counts it too, beside the task's cost.
        mirror: networks are symmetric, left and right: what is learned on one side is learned on the other.
        eta: the constraint: how much cost (lost task reward per second) a newton may cause, beyond the cost of robots
            that nobody pushes, 1/N. It counts once the disturber is at work, for forces by chance too, since an
            H-infinity norm bounds what any disturbance causes. Keep it low enough to be felt: at lambda 0 this is PPO.
        lambda_start: the constraint's weight (its dual variable) at first.
        lambda_rate: how much lambda falls in an iteration, per unit of the constraint's slack (lost task reward per
            second).
        lambda_max: lambda stays below this.
        warmup: iterations without forces, at the start.
        chance_first: iterations after the warm-up in which chance alone pushes: while forces are still small, pushing
            hard teaches more than pushing where it hurts.
        turns: after that, iterations in which every robot has been with chance and with the disturber once. If each
            stayed with one of them, chance would keep the robots that bear less, or fewer would learn from it.
        force_start_n: largest force on a robot right after the warm-up, N.
        force_max_n: largest force ever, N. Each robot has a limit of its own, by chance and by the disturber. It rises
            with every step and drops with every fall, so that forces are as large as the robot can just bear where it
            is: larger on a plane than on stairs.
        force_ramp: iterations from force_start_n to force_max_n without a fall; 0: everyone starts with force_max_n.
        bearable_falls: falls per minute at which a robot's largest force stays as it is.
        vertical: share of a chance force's vertical part that acts: in the field, trunks are pushed from the side.
        disturber_vertical: the same for the disturber's forces; it finds lifting while pushing where it may.
        hold: shortest and longest duration of a force, in control periods.
        rest: shortest and longest pause between two forces by chance, in control periods: without one, robots would
            learn to walk with a steady push in the back. The disturber does not pause.
        settle: shortest and longest time from an episode's start to its first force, in control periods: a robot that
            was just put down does not walk yet.
        share_random: share of the robots that chance pushes once the disturber is at work, so that it need not show
            every force and cannot make the policy forget any.
        share_none: share of the robots that nobody pushes, at any time.
        estimator_learning_rate: of the estimator; constant.
        disturber_learning_rate: of the disturber; constant.
        disturber_entropy: weight of the entropy of the disturber's forces.
        disturber_mean: largest norm of the mean of the disturber's forces, before they are squashed into the limit.
        disturber_std: smallest standard deviation of these forces; the largest is 1, that of chance.
        disturber_lam: `lam` of the disturber: a force and its consequences outlast what lam reaches.
        disturber_fall: reward of the disturber for a fall, in units of what a fall costs the task: it is to bring
            robots down, not to hold them up, which costs the task too.
        disturber_price: task reward per second that a newton must cost before it pays for the disturber, 1/N. This is
            not eta: the cost also counts what is lost without any force, so one more newton causes much less than eta
            while the constraint is active, and a disturber that had to pay eta would learn to push as little as it can.
        disturber_balance: weight of the square of the disturber's mean force over all that it sees, before squashing.
            Without it, the disturber ends up pushing from one side only, and robots learn to bear just that.
        disturber_renewal: iterations after which a new disturber, with random weights, takes the place of the last one:
            one that has found a weak side looks for no other. Robots then bear more of attacks and less of what
            chance does (docs/figures.md). 0: never.
        device: where learning runs: `auto` is `cuda` where there is a GPU, else `cpu`. Steps are always collected on
            the CPU.
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
    disturber_renewal: int = 0
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

    def renews(self, iteration: int) -> bool:
        """Whether a new disturber takes over in an iteration, counted from 0."""
        since = iteration - self.aimed_from
        return self.disturber_renewal > 0 and since > 0 and since % self.disturber_renewal == 0

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
        for name in ("warmup", "chance_first", "force_ramp", "disturber_renewal"):
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
