"""A walking policy's checkpoint: `config.json` and `model.safetensors`, and the state to go on training from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from contracts.locomotion import LocomotionContract
from contracts.serialization import MAX_CONTRACT_BYTES, Contract
from episodes.files import write_atomic
from policies.checkpoint import CONFIG_FILE, WEIGHTS_FILE, require_state
from policies.ema import ExponentialMovingAverage
from policies.hinfinity.collector import Collector
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.forces import ForceLimits
from policies.hinfinity.learner import Learner
from policies.hinfinity.networks import Networks
from policies.tensors import CheckpointError, load_strictly, part, read_tensors, write_tensors
from policies.training_state import PROGRESS, STATE_FILE, progress_of

DISTURBER = "disturber."  # what its weights' names begin with
MAY_CHANGE = {"iterations", "checkpoint_every_s", "threads", "device"}  # between two parts of one run
WHEN_AIMED = {  # what counts only once a disturber is at work
    "chance_first", "turns", "share_random", "eta", "lambda_start", "lambda_rate", "lambda_max",
    "disturber_vertical", "disturber_widths", "disturber_learning_rate", "disturber_entropy", "disturber_mean",
    "disturber_std", "disturber_lam", "disturber_fall", "disturber_price", "disturber_balance",
    "disturber_renewal",
}  # fmt: skip


class LocomotionCheckpoint(Contract, frozen=True, kw_only=True):
    """`config.json`: all that is needed to build the networks again, and what they were trained at.

    Attributes:
        config: of the training.
        locomotion: what the actor sees and what its actions mean.
        robot: its name.
        privileged_size: numbers that critic and disturber see.
        environment: the task, in plain data.
        start_from: the checkpoint whose weights it began with; None: random ones.
    """

    config: HInfinityConfig
    locomotion: LocomotionContract
    robot: str
    privileged_size: int
    environment: dict[str, Any]
    start_from: str | None = None

    def build(self) -> Networks:
        """Networks with fresh weights."""
        observation = self.locomotion.history * self.locomotion.observation_size
        return Networks(self.config, observation, self.privileged_size, len(self.locomotion.joint_names))


class Progress(Contract, frozen=True, kw_only=True):
    """How far training has come, and the numbers that are no tensors.

    Attributes:
        iteration: iterations done.
        elapsed_s: seconds that they took.
        learning_rate, dual: of actor and critic; lambda.
        skipped: updates that were not finite.
    """

    iteration: int = 0
    elapsed_s: float = 0.0
    learning_rate: float = 0.0
    dual: float = 0.0
    skipped: int = 0


def is_walking(path: Path | str) -> bool:
    """True for a directory whose `config.json` is of a walking policy."""
    file = Path(path) / CONFIG_FILE
    try:
        data = msgspec.json.decode(file.read_bytes()) if file.stat().st_size <= MAX_CONTRACT_BYTES else None
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
        return False  # whoever reads it in earnest says what is wrong
    return isinstance(data, dict) and "locomotion" in data


def load_config(path: Path) -> LocomotionCheckpoint:
    """What a checkpoint says of itself. Raises CheckpointError."""
    try:
        return LocomotionCheckpoint.load(path / CONFIG_FILE)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load_networks(path: Path | str) -> tuple[Networks, LocomotionCheckpoint]:
    """A checkpoint's networks, in evaluation mode, and what is known of them.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not exactly those of these networks.
    """
    path = Path(path)
    config = load_config(path)
    networks = config.build()
    tensors, _ = read_tensors(path / WEIGHTS_FILE)
    load_strictly(networks, tensors, str(path / WEIGHTS_FILE))
    return networks.eval(), config


def begin_with(networks: Networks, path: Path) -> None:
    """Give networks the weights of a checkpoint's: whatever its robot, its ground, and who pushed it.

    Without a disturber in the checkpoint, theirs keeps the weights it has.

    Raises:
        CheckpointError: it cannot be read, or has networks of other sizes.
    """
    others, _ = load_networks(path)
    for name, network in networks.named_children():
        other = getattr(others, name)
        if other is not None:
            load_strictly(network, other.state_dict(), f"{path}: {name}")


def prepare(output: Path, config: LocomotionCheckpoint, resume: bool) -> None:
    """Make the directory with its `config.json`, or see that the run in it is this one. Raises CheckpointError.

    Up to where they part, runs that differ in the disturber alone are the same to the last bit: so a copy of one, made
    before that, goes on as the other.
    """
    output.mkdir(parents=True, exist_ok=True)
    require_state(output / STATE_FILE)
    if (output / STATE_FILE).exists():
        if not resume:
            raise CheckpointError(
                f"{output} already holds a training run: resume it (--resume), or choose another folder"
            )
        _, metadata = read_tensors(output / STATE_FILE)
        done = progress_of(Progress, metadata, output / STATE_FILE).iteration
        changed = _changed(load_config(output), config, done)
        if changed:
            raise CheckpointError(f"{output / CONFIG_FILE}: this run was started with other {', '.join(changed)}")
    write_atomic(output / CONFIG_FILE, config.to_json().encode())


def _changed(old: LocomotionCheckpoint, new: LocomotionCheckpoint, iterations: int) -> list[str]:
    """Names of what differs and must not after so many iterations."""
    may = set(MAY_CHANGE)
    by_chance = iterations <= min(old.config.aimed_from, new.config.aimed_from)
    if by_chance:
        may |= WHEN_AIMED
    if iterations <= new.config.warmup or (by_chance and "none" not in (old.config.disturber, new.config.disturber)):
        may.add("disturber")
    trees = [LocomotionCheckpoint.from_json(config.to_json()).to_dict() for config in (old, new)]
    flat = [tree.pop("config") | tree.pop("environment") | tree for tree in trees]
    return [name for name in flat[1] if name not in may and flat[0].get(name) != flat[1][name]]


@dataclass(frozen=True)
class TrainingState:
    """All that changes in training, to be written and put back.

    Attributes:
        learner: the networks, their optimisers, the learning rate and lambda.
        average: of the actor's weights.
        collectors: where the robots are, and the forces on them.
        limits: of the forces.
        generator: of all that is random in learning.
    """

    learner: Learner
    average: ExponentialMovingAverage
    collectors: Sequence[Collector]
    limits: ForceLimits
    generator: torch.Generator

    def save(self, output: Path, progress: Progress) -> None:
        """Write weights and state, each file atomically, the state last."""
        weights = self.learner.networks.state_dict()
        average = {f"actor.{name}": value for name, value in self.average.shadow.items()}
        write_tensors(output / WEIGHTS_FILE, weights | average, {"iteration": str(progress.iteration)})
        tensors = {f"weights.{name}": value for name, value in weights.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.shadow.items()}
        for name, parameter, optimizer in _optimized(self.learner):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        for number, collector in enumerate(self.collectors):
            tensors |= {f"group.{number}.{name}": value for name, value in collector.snapshot().items()}
        tensors["force_share"] = self.limits.share
        tensors["generator"] = self.generator.get_state()
        write_tensors(output / STATE_FILE, tensors, {PROGRESS: progress.to_json()})

    def load(self, output: Path) -> Progress:
        """Put what was saved back. Raises CheckpointError."""
        file, learner = output / STATE_FILE, self.learner
        tensors, metadata = read_tensors(file)
        progress = progress_of(Progress, metadata, file)
        try:
            weights = part(tensors, "weights.")
            if progress.iteration <= learner.config.aimed_from:  # a disturber has not learned, and may be another's
                own = learner.networks.state_dict()
                weights = {name: value for name, value in weights.items() if not name.startswith(DISTURBER)}
                weights |= {name: value for name, value in own.items() if name.startswith(DISTURBER)}
            load_strictly(learner.networks, weights, f"{file}: weights")
            self.average.load(part(tensors, "average."), str(file))
            _load_moments(learner, part(tensors, "optimizer."))
            for number, collector in enumerate(self.collectors):
                collector.restore(part(tensors, f"group.{number}."))
            self.limits.share.copy_(tensors["force_share"])
            self.generator.set_state(tensors["generator"])
        except (KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file}: does not belong to this run ({error})") from None
        learner.learning_rate, learner.guard.skipped = progress.learning_rate, progress.skipped
        if progress.iteration > learner.config.aimed_from:
            learner.dual.value = progress.dual
        return progress


def _optimized(learner: Learner) -> list[tuple[str, torch.nn.Parameter, torch.optim.Optimizer]]:
    """Every parameter by name, with the optimiser that changes it."""
    owners = {
        id(parameter): optimizer
        for optimizer in learner.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [(name, parameter, owners[id(parameter)]) for name, parameter in learner.networks.named_parameters()]


def _load_moments(learner: Learner, tensors: dict[str, Tensor]) -> None:
    for name, parameter, optimizer in _optimized(learner):
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
        if keys:  # what has not been trained yet has none
            moments = {key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in keys}
            optimizer.state[parameter] = moments
