"""Collect, learn, log, save: the loop. The same seed gives the same policy, stopped and resumed or not."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from policies.ema import ExponentialMovingAverage
from policies.hinfinity.checkpoint import (
    LocomotionCheckpoint,
    Progress,
    TrainingState,
    begin_with,
    load_config,
    prepare,
)
from policies.hinfinity.collector import Acting, Collector
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.environment import Environment
from policies.hinfinity.figures import Tally
from policies.hinfinity.forces import DISTURBER, NOBODY, PUSHERS, SEEN, ForceLimits
from policies.hinfinity.learner import Learner
from policies.hinfinity.mirror import Mirror
from policies.hinfinity.networks import Networks, twin
from policies.hinfinity.rollout import Rollout
from policies.hinfinity.workers import Workers, single_threaded
from policies.memory import keep_freed_memory
from policies.precision import settled
from policies.stopping import stop_signals
from policies.training_state import STATE_FILE

EMA_POWER = 0.75  # the first mean is of a few iterations, later ones of as many as `ema_decay` says


@dataclass(frozen=True)
class TrainingResult:
    """What came of it.

    Attributes:
        checkpoint: its directory.
        iterations: done in all.
        steps: control periods of all robots together.
        elapsed_s: seconds of training in all, those before a resume included.
        velocity_error: mean of the last iteration, m/s.
        falls_per_minute: of a robot, in the last iteration.
        interrupted: True if a signal stopped it before the end; resume to go on.
    """

    checkpoint: Path
    iterations: int
    steps: int
    elapsed_s: float
    velocity_error: float
    falls_per_minute: float
    interrupted: bool


class Trainer:
    """Trains the networks in environments of one kind; `output` holds checkpoint, state and TensorBoard's log.

    Each environment's robots are a group, and groups are stepped side by side, each by a thread of its own: while one
    is in the physics, which leaves Python's lock to others, another one acts. The networks begin with the weights of
    the checkpoint `start_from`, where one is given.

    Attributes:
        collectors: of each group.
        networks: that collect, on the CPU. Where another device learns, they are as the learner's after each iteration.
        average: of the actor's weights: what the checkpoint holds.

    Raises:
        ValueError: a GPU is asked for, and there is none.
        CheckpointError: `output` holds another run, or one that is not to be resumed; `start_from` has other networks.
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        robot: str,
        config: HInfinityConfig,
        output: Path,
        resume: bool = False,
        start_from: Path | None = None,
    ) -> None:
        device = learning_device(config.device)
        keep_freed_memory()
        begun = load_config(output).config.precision if resume and (output / STATE_FILE).exists() else None
        config = msgspec.structs.replace(config, precision=settled(config.precision, "cpu", begun))
        self.config, self.output = config, output
        environment, self.count = environments[0], sum(environment.count for environment in environments)
        self.period_s = environment.period_s
        checkpoint = LocomotionCheckpoint(
            config=config,
            locomotion=environment.contract,
            robot=robot,
            privileged_size=environment.privileged.shape[1] + SEEN,
            environment=dict(environment.description) | {"environments": self.count, "groups": len(environments)},
            start_from=None if start_from is None else str(start_from),
        )
        self._checkpoint, self._mirror = checkpoint, environment.mirror if config.mirror else None
        torch.manual_seed(config.seed)
        self.networks = self._fresh()
        if start_from is not None:
            begin_with(self.networks, start_from)
            if self._mirror is not None:
                Mirror(self._mirror, self.networks).go_on_from(str(start_from))
        prepare(output, checkpoint, resume)
        self.generator = torch.Generator().manual_seed(config.seed)
        ends = list(accumulate(each.count for each in environments))
        self.collectors = [
            Collector(config, each, slice(end - each.count, end), number)
            for number, (each, end) in enumerate(zip(environments, ends, strict=True))
        ]
        self.limits = ForceLimits(config, self.count)
        self.workers = Workers(config.cores, torch.device("cpu"))
        self.learner = Learner(
            config,
            twin(self.networks, device),
            environment.cost_bound,
            environment.period_s,
            self.generator,
            environment.velocity,
            self.workers if device.type == "cpu" else Workers(1, device),
            environment.mirror,
        )
        sizes = (environment.observation.shape[1], checkpoint.privileged_size, len(environment.contract.joint_names))
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.rollout = Rollout(config.rollout_steps, self.count, sizes, dtype)
        self.average = ExponentialMovingAverage(self.learner.networks.actor, EMA_POWER, config.ema_decay)
        self._state = TrainingState(self.learner, self.average, self.collectors, self.limits, self.generator)
        self.progress = Progress()
        if (output / STATE_FILE).exists():
            self.progress = self._state.load(output)
            self._refresh()

    @property
    def who(self) -> Tensor:
        """Pushes each robot, [N]; see `Forces`."""
        return torch.cat([collector.forces.who for collector in self.collectors])

    def run(self, progress_bar: bool = True) -> TrainingResult:
        """Train to the end, or until SIGINT or SIGTERM; either way the last state is saved.

        Raises:
            TrainingDiverged: nothing was finite for a while; the last checkpoint stays.
        """
        config = self.config
        earlier_s, started, saved = self.progress.elapsed_s, time.monotonic(), time.monotonic()
        figures: dict[str, float] = {}
        iteration = self.progress.iteration
        with stop_signals() as stop, self._bar(progress_bar) as bar, self._board() as board:
            while iteration < config.iterations and not stop.is_set():
                figures = self.iterate(iteration)
                iteration += 1
                self.progress = Progress(
                    iteration=iteration,
                    elapsed_s=earlier_s + time.monotonic() - started,
                    learning_rate=self.learner.learning_rate,
                    dual=self.learner.dual.value,
                    skipped=self.learner.guard.skipped,
                )
                for name, value in figures.items():
                    board.add_scalar(name, value, iteration)
                bar.set_postfix_str(_summary(figures), refresh=False)
                bar.update()
                if time.monotonic() - saved > config.checkpoint_every_s:
                    self.save()
                    saved = time.monotonic()
        if figures:
            self.save()
        return TrainingResult(
            checkpoint=self.output,
            iterations=iteration,
            steps=iteration * config.rollout_steps * self.count,
            elapsed_s=self.progress.elapsed_s,
            velocity_error=figures.get("task/velocity_error", math.nan),
            falls_per_minute=figures.get("task/falls_per_minute", math.nan),
            interrupted=iteration < config.iterations,
        )

    @single_threaded()
    def iterate(self, iteration: int) -> dict[str, float]:
        """One iteration, number `iteration` from 0; figures to log. Raises TrainingDiverged."""
        config, limits = self.config, self.limits
        for collector in self.collectors:
            collector.forces.assign(iteration)
        if iteration == config.aimed_from:
            limits.aim()
        if config.renews(iteration):
            self._renew_disturber(iteration)
        pushed, fall = limits.pushed(iteration), limits.fall_worth(iteration)
        began = time.monotonic()
        figures = self.collect(pushed)
        collected = time.monotonic()
        entropy = config.entropy_warmup if iteration < config.warmup else config.entropy
        who = self.who if pushed else torch.full_like(self.who, NOBODY)
        figures |= self.learner.learn(self.rollout, who, fall, entropy)
        self.average.update(self.learner.networks.actor, iteration + 1)
        if pushed:
            figures |= self._limits(who, fall)
            limits.follow(self.rollout.fell, who, self.period_s)
        self._refresh()
        ended = time.monotonic()
        steps = config.rollout_steps * self.count
        return figures | {
            "time/collect_s": collected - began,
            "time/learn_s": ended - collected,
            "time/steps_per_s": steps / (ended - began),
        }

    @torch.no_grad()
    @single_threaded()
    def collect(self, pushed: bool) -> dict[str, float]:
        """Fill the rollout, with forces where robots are `pushed`; means of the environments' figures."""
        rollout, acting, tally = self.rollout, Acting.of(self.networks), Tally()
        limit = self.limits.newtons(self.who) if pushed else None
        rollout.begin()
        if not pushed:
            rollout.force.zero_()
            rollout.decided.zero_()

        def work(collector: Collector) -> dict[str, float]:
            return collector.collect(rollout, acting, None if limit is None else limit[collector.rows])

        for figures in self.workers.each(work, self.collectors):
            tally.add(**figures)
        falls, ended = int(rollout.fell.sum()), int(rollout.done.sum())
        return tally.means() | {
            "task/falls_per_minute": falls / (rollout.fell.numel() * self.period_s / 60),
            "task/fall_share": falls / ended if ended else math.nan,
            "task/reward": float(rollout.reward.mean()) / self.period_s,
        }

    def _fresh(self) -> Networks:
        """Networks with random weights, symmetric where they are to stay so."""
        networks = self._checkpoint.build()
        if self._mirror is not None:
            Mirror(self._mirror, networks).begin()
        return networks

    def _renew_disturber(self, iteration: int) -> None:
        """From now on a disturber pushes that has learned nothing yet."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + iteration)
            fresh = self._fresh().disturber
        assert fresh is not None
        self.learner.renew_disturber(fresh)
        self._refresh()

    def save(self) -> None:
        """Write the checkpoint and the state."""
        self._state.save(self.output, self.progress)

    def _refresh(self) -> None:
        """What collects is again as what learns."""
        if self.learner.networks is not self.networks:
            self.networks.load_state_dict(self.learner.networks.state_dict())

    def _limits(self, who: Tensor, fall: Tensor) -> dict[str, float]:
        """Of the robots that are pushed: by whom, how hard at most, and what a fall is worth to them."""
        newtons = self.limits.newtons(who)
        limits = {name: newtons[who == number] for name, number in PUSHERS.items() if (who == number).any()}
        return {f"force/limit_{name}": float(limit.mean()) for name, limit in limits.items()} | {
            "force/share_disturber": float((who == DISTURBER).float().mean()),
            "force/limit_upper_decile": float(newtons[who != NOBODY].quantile(0.9)),
            "learning/fall": float(fall[who != NOBODY].mean()),
        }

    def _bar(self, show: bool) -> tqdm:
        return tqdm(
            total=self.config.iterations,
            initial=self.progress.iteration,
            desc="training",
            unit="iteration",
            disable=not show,
        )

    @contextmanager
    def _board(self) -> Iterator[SummaryWriter]:
        with SummaryWriter(str(self.output / "tensorboard"), purge_step=self.progress.iteration + 1) as writer:
            yield writer


def learning_device(chosen: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """What `auto` means. Raises ValueError: no GPU."""
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: PyTorch finds no GPU here; cpu or auto would be right")
    return torch.device("cuda" if chosen != "cpu" and torch.cuda.is_available() else "cpu")


def _summary(figures: Mapping[str, float]) -> str:
    error, falls = figures["task/velocity_error"], figures["task/falls_per_minute"]
    return f"velocity error {error:.2f} m/s, {falls:.2f} falls a minute, {figures['time/steps_per_s']:.0f} steps/s"
