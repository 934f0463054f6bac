"""Collect, learn, log, save: the loop. The same seed gives the same policy, stopped and resumed or not."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from policies.ema import ExponentialMovingAverage
from policies.hinfinity.checkpoint import (
    STATE_FILE,
    LocomotionCheckpoint,
    Progress,
    TrainingState,
    begin_with,
    load_config,
    prepare,
)
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.environment import Environment, Transition
from policies.hinfinity.figures import Tally
from policies.hinfinity.forces import DISTURBER, NOBODY, PUSHERS, SEEN, ForceLimits, Forces
from policies.hinfinity.learner import Learner, autocast
from policies.hinfinity.mirror import Mirror
from policies.hinfinity.networks import twin
from policies.hinfinity.rollout import Rollout
from policies.hinfinity.workers import ACTING_ROWS, Workers, single_threaded
from policies.memory import keep_freed_memory
from policies.precision import settled
from policies.trainer import stop_signals

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
    """Trains the networks in one environment; `output` holds checkpoint, state and TensorBoard's log.

    The networks begin with the weights of the checkpoint `start_from`, where one is given.

    Attributes:
        networks: that collect, on the CPU. Where another device learns, they are as the learner's after each iteration.
        average: of the actor's weights: what the checkpoint holds.

    Raises:
        ValueError: a GPU is asked for, and there is none.
        CheckpointError: `output` holds another run, or one that is not to be resumed; `start_from` has other networks.
    """

    def __init__(
        self,
        environment: Environment,
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
        self.environment, self.config, self.output = environment, config, output
        checkpoint = LocomotionCheckpoint(
            config=config,
            locomotion=environment.contract,
            robot=robot,
            privileged_size=environment.privileged.shape[1] + SEEN,
            environment=dict(environment.description),
            start_from=None if start_from is None else str(start_from),
        )
        torch.manual_seed(config.seed)
        self.networks, self._cpu = checkpoint.build(), torch.device("cpu")
        mirror = Mirror(environment.mirror, self.networks) if config.mirror and environment.mirror is not None else None
        if mirror is not None:
            mirror.begin()
        if start_from is not None:
            begin_with(self.networks, start_from)
            if mirror is not None:
                mirror.go_on_from(str(start_from))
        prepare(output, checkpoint, resume)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.forces = Forces(config, environment.count)
        self.limits = ForceLimits(config, environment.count)
        self.workers = Workers(config.cores, self._cpu)
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
        self.rollout = Rollout(config.rollout_steps, environment.count, sizes, dtype)
        self.average = ExponentialMovingAverage(self.learner.networks.actor, EMA_POWER, config.ema_decay)
        self._state = TrainingState(self.learner, self.average, self.forces, self.limits, environment, self.generator)
        self.progress = Progress()
        if (output / STATE_FILE).exists():
            self.progress = self._state.load(output)
            self._refresh()

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
            steps=iteration * config.rollout_steps * self.environment.count,
            elapsed_s=self.progress.elapsed_s,
            velocity_error=figures.get("task/velocity_error", math.nan),
            falls_per_minute=figures.get("task/falls_per_minute", math.nan),
            interrupted=iteration < config.iterations,
        )

    @single_threaded()
    def iterate(self, iteration: int) -> dict[str, float]:
        """One iteration, number `iteration` from 0; figures to log. Raises TrainingDiverged."""
        config, limits = self.config, self.limits
        pushed, fall = limits.pushed(iteration), limits.fall_worth(iteration)
        self.forces.hand_over(limits.borne & (iteration >= config.aimed_from))
        began = time.monotonic()
        figures = self.collect(pushed)
        collected = time.monotonic()
        entropy = config.entropy_warmup if iteration < config.warmup else config.entropy
        who = self.forces.who if pushed else torch.full_like(self.forces.who, NOBODY)
        figures |= self.learner.learn(self.rollout, who, fall, entropy)
        self.average.update(self.learner.networks.actor, iteration + 1)
        if pushed:
            figures |= self._limits(fall)
            limits.follow(self.rollout.fell, who, self.environment.period_s)
        self._refresh()
        ended = time.monotonic()
        steps = config.rollout_steps * self.environment.count
        return figures | {
            "time/collect_s": collected - began,
            "time/learn_s": ended - collected,
            "time/steps_per_s": steps / (ended - began),
        }

    @torch.no_grad()
    @single_threaded()
    def collect(self, pushed: bool) -> dict[str, float]:
        """Fill the rollout, with forces where robots are `pushed`; means of the environment's figures."""
        rollout, environment, tally = self.rollout, self.environment, Tally()
        actor = self.networks.actor
        std, acting = actor.log_std.exp(), (actor.estimator.acting(), actor.body.acting())
        limit = self.limits.newtons() if pushed else None
        rollout.begin()
        if not pushed:
            rollout.force.zero_()
            rollout.decided.zero_()
        for step in range(rollout.steps):
            rollout.privileged[step] = self.forces.seen(torch.from_numpy(environment.privileged), limit)
            force = None if limit is None else self._push(step, limit)
            self._act(step, *acting)
            noise = torch.randn(rollout.mean[step].shape, generator=self.generator)
            rollout.action[step] = rollout.mean[step] + std * noise
            transition = environment.step(rollout.action[step].numpy(), force)
            rollout.put(step, transition)
            self.forces.end(rollout.fell[step] | rollout.timed_out[step], self.generator)
            tally.add(**transition.figures, **self._errors(transition))
        rollout.privileged[-1] = self.forces.seen(torch.from_numpy(environment.privileged), limit)
        falls, ended = int(rollout.fell.sum()), int(rollout.done.sum())
        return tally.means() | {
            "task/falls_per_minute": falls / (rollout.fell.numel() * environment.period_s / 60),
            "task/fall_share": falls / ended if ended else math.nan,
            "task/reward": float(rollout.reward.mean()) / environment.period_s,
        }

    def save(self) -> None:
        """Write the checkpoint and the state."""
        self._state.save(self.output, self.progress)

    def _refresh(self) -> None:
        """What collects is again as what learns."""
        if self.learner.networks is not self.networks:
            self.networks.load_state_dict(self.learner.networks.state_dict())

    def _act(self, step: int, estimating: Sequence[Tensor], acting: Sequence[Tensor]) -> None:
        """What the actor sees, and the mean of its actions, into the rollout; `MLP.acting` of its networks."""
        rollout, actor = self.rollout, self.networks.actor
        observation = torch.from_numpy(self.environment.observation)

        @torch.no_grad()
        def work(part: slice) -> None:
            seen = observation[part].to(rollout.acted_on.dtype)
            with autocast(self.config, self._cpu):
                acted_on = actor.split(seen, actor.velocity(seen, estimating))
                rollout.mean[step, part] = actor.body.of_split(acted_on, acting)
            rollout.acted_on[step, part] = acted_on

        self.workers.map(work, rollout.count, ACTING_ROWS)

    def _push(self, step: int, limit: Tensor) -> np.ndarray:
        """The forces of a step, each within its `limit` [N], kept in the rollout."""
        rollout, disturber = self.rollout, self.networks.disturber
        rollout.decided[step] = self.forces.choose(rollout.privileged[step], limit, disturber, self.generator)
        rollout.force[step], rollout.raw_force[step] = self.forces.force, self.forces.raw
        return self.forces.force.numpy().astype(np.float64)

    def _limits(self, fall: Tensor) -> dict[str, float]:
        """Of the robots that are pushed: by whom, how hard at most, and what a fall is worth to them."""
        who, newtons = self.forces.who, self.limits.newtons()
        limits = {name: newtons[who == number] for name, number in PUSHERS.items() if (who == number).any()}
        return {f"force/limit_{name}": float(limit.mean()) for name, limit in limits.items()} | {
            "force/share_disturber": float((who == DISTURBER).float().mean()),
            "force/limit_upper_decile": float(newtons[who != NOBODY].quantile(0.9)),
            "learning/fall": float(fall[who != NOBODY].mean()),
        }

    def _errors(self, transition: Transition) -> dict[str, float]:
        """Of the velocity, of all robots and of those that nobody pushes."""
        error = torch.from_numpy(transition.velocity_error)
        figures = {"task/velocity_error": float(error.mean())}
        if self.config.disturber != "none":
            figures["task/velocity_error_undisturbed"] = float(error[self.forces.who == NOBODY].mean())
        return figures

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
