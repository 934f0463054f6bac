"""One trainer for all imitation policies: the same seed gives the same weights, stopped and resumed or not."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from policies.base import Stage
from policies.checkpoint import WEIGHTS_FILE
from policies.ema import ExponentialMovingAverage
from policies.stopping import TrainingDiverged, stop_signals
from policies.tensors import write_tensors
from policies.training_state import Progress, load_state, save_state, trained_parameters
from policies.video import VideoMixture
from policies.windows import Windows, step_generator

LOG_EVERY = 20  # steps


@dataclass(frozen=True)
class TrainingResult:
    """What came of it.

    Attributes:
        checkpoint: its directory.
        steps: optimiser steps done in all.
        elapsed_s: seconds of training in all, those before a resume included.
        loss: mean over the last steps.
        interrupted: True if a signal stopped it before the end; resume to go on.
    """

    checkpoint: Path
    steps: int
    elapsed_s: float
    loss: float
    interrupted: bool


class Trainer:
    """Trains one stage of a policy and keeps its weights and its state in `output` up to date."""

    def __init__(self, stage: Stage, windows: Windows | VideoMixture, output: Path, progress_bar: bool = True) -> None:
        config = stage.training
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.name = stage.name
        observed = windows if stage.observes else windows.without_observations()
        self.windows: Windows | VideoMixture = observed.with_future(stage.future)
        self.output = output
        self.accelerator = accelerator()
        self.policy = stage.module.to(self.accelerator.device).train()
        if stage.encode is not None:
            self.windows = self.windows.encoded(stage.encode)
        self.average = ExponentialMovingAverage(self.policy, config.ema_power, config.ema_max_decay)
        self.trained = [parameter for _, parameter in trained_parameters(self.policy)]
        self.optimizer = torch.optim.AdamW(
            self.trained, config.learning_rate, betas=config.adam_betas, weight_decay=config.weight_decay, fused=True
        )
        self.progress = Progress()
        self.progress_bar = progress_bar and self.accelerator.is_main_process

    def resume(self) -> None:
        """Go on from the state in `output`. Raises CheckpointError."""
        self.progress = load_state(self.output, self.policy, self.average, self.optimizer)

    def run(self) -> TrainingResult:
        """Train to the end, or until SIGINT or SIGTERM; either way the last state is saved.

        Raises:
            TrainingDiverged: the loss or its gradient is not finite; the last checkpoint stays.
        """
        model = self.accelerator.prepare_model(self.policy)
        started = time.monotonic() - self.progress.elapsed_s
        saved = time.monotonic()
        losses: list[float] = []
        step = self.progress.step
        with stop_signals() as stop, self._bar() as bar, self._board() as board:
            while step < self.config.steps and not self._anyone_stopped(stop):
                loss, figures = self._step(model, step)
                step += 1
                losses = [*losses[1 - LOG_EVERY :], loss]
                self.progress = Progress(step=step, elapsed_s=time.monotonic() - started)
                bar.update()
                if step % LOG_EVERY == 0:
                    bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", refresh=False)
                    self._log(board, {"loss": sum(losses) / len(losses), **figures})
                if time.monotonic() - saved > self.config.checkpoint_every_s:
                    self.save()
                    saved = time.monotonic()
        if losses:
            self.save()
        more_to_come = bool(self.name)  # only the last stage has no name
        return TrainingResult(
            checkpoint=self.output,
            steps=step,
            elapsed_s=self.progress.elapsed_s,
            loss=sum(losses) / len(losses) if losses else math.nan,
            interrupted=step < self.config.steps or (stop.is_set() and more_to_come),
        )

    def save(self) -> None:
        """Write the averaged weights, then the state, without which there is more to do; the main process does."""
        if not self.accelerator.is_main_process or self.progress.step == 0:
            return
        weights = self.average.state_dict(self.policy)
        write_tensors(self.output / WEIGHTS_FILE, weights, {"step": str(self.progress.step)})
        save_state(self.output, self.policy, self.average, self.optimizer, self.progress)

    def _step(self, model: torch.nn.Module, step: int) -> tuple[float, dict[str, Any]]:
        """One optimiser step, number `step` from 0: the loss and figures to log."""
        config, rank = self.config, self.accelerator.process_index
        drawn = self.windows.draw(config.batch_size, config.seed, step, rank)
        batch = {key: value.to(self.accelerator.device) for key, value in drawn.items()}
        generator = step_generator(config.seed, step, rank)
        torch.manual_seed(generator.initial_seed())  # dropout draws from torch's own generator
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, figures = model(batch, generator)
        value = float(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, config.gradient_clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {step}: the loss is {value}, the norm of its gradient {norm}; the last checkpoint in "
                f"{self.output} is from before. A learning rate below {config.learning_rate} may help"
            )
        rate = config.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update(self.policy, step + 1)
        return value, {**figures, "gradient_norm": norm, "learning_rate": rate}

    def _anyone_stopped(self, stop: threading.Event) -> bool:
        """Did any process get a signal? All of them must leave the loop in the same step."""
        if self.accelerator.num_processes == 1:
            return stop.is_set()
        if stop.is_set():
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.config.steps,
            initial=self.progress.step,
            desc=f"training {self.name}".rstrip(),
            unit="step",
            disable=not self.progress_bar,
        )

    @contextmanager
    def _board(self) -> Iterator[SummaryWriter | None]:
        if not self.accelerator.is_main_process:
            yield None
            return
        with SummaryWriter(str(self.output / "tensorboard"), purge_step=self.progress.step + 1) as writer:
            yield writer

    def _log(self, board: SummaryWriter | None, figures: dict[str, Any]) -> None:
        if board is not None:
            for name, value in figures.items():
                board.add_scalar(f"training/{name}", float(value), self.progress.step)


def accelerator() -> Accelerator:
    """This process's devices and its part in a distributed run; of one process, all are the same."""
    return Accelerator(mixed_precision="no")  # autocast is ours: Accelerate fixes it for a whole process
