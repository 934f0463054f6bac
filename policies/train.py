"""From a dataset to a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch

from episodes.dataset import Dataset
from policies.base import Policy, make_contract
from policies.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointConfig, load_config, require_state, write_config
from policies.config import ChunkConfig, TrainingConfig
from policies.precision import settled
from policies.registry import policy_type
from policies.run_folder import alone_in
from policies.tensors import CheckpointError
from policies.trainer import Trainer, TrainingResult, accelerator
from policies.training_state import STATE_FILE
from policies.video import VideoMixture, video_windows
from policies.windows import Windows


def train_policy(
    family: str,
    dataset: Path | str,
    output: Path | str,
    policy: ChunkConfig | None = None,
    training: TrainingConfig | None = None,
    resume: bool = False,
    progress_bar: bool = True,
    video: Path | str | None = None,
    video_fraction: float = 0.3,
) -> TrainingResult:
    """Train a policy on a dataset's successful episodes; checkpoint and TensorBoard's log go to the directory `output`.

    Args:
        family: of the policy, for example `diffusion`.
        dataset: a LeRobotDataset v3 directory with the robot's contract in it.
        output: new or empty, or with `resume` that of a run that was stopped.
        policy: the family's configuration; None: its default.
        training: the trainer's configuration; None: its default.
        resume: go on from the state in `output` (from the beginning, if it has none).
        progress_bar: show one.
        video: a second dataset, of which pictures and instructions alone are learned from.
        video_fraction: of a batch that comes from it.

    Raises:
        ValueError: no such family, a configuration or robot that does not fit, video for a policy that cannot use it,
            or no successful episode.
        DatasetError: the dataset cannot be used.
        CheckpointError: `output` already holds a run, or one that was started differently, or another process trains
            into it.
        TrainingDiverged: the loss is not finite.
    """
    kind = policy_type(family)
    policy = policy or kind.config_type()
    output = Path(output)
    training = _with_precision(training or TrainingConfig(), output, resume)
    source = Dataset(dataset)
    arrays = source.arrays()
    if video is not None and not kind.learns_from_video:
        raise ValueError(f"a {family} policy learns nothing from video without actions")
    tasks = dict.fromkeys([*arrays.tasks, *(Dataset(video).tasks if video is not None else ())])
    contract = make_contract(family, policy, source.robot, source.observation_set, "\n".join(tasks))
    windows = Windows(arrays, contract, use=[episode.success for episode in source.episodes])
    samples: Windows | VideoMixture = windows
    data = _description(windows)
    if video is not None:
        samples = VideoMixture(windows, video_windows(video, contract), video_fraction)
        data["video"] = {**_description(samples.video), "fraction": video_fraction}
    config = CheckpointConfig(
        policy=policy.to_dict(),
        contract=contract,
        robot=source.robot,
        training={"config": training.to_dict(), "data": data},
    )
    with alone_in(output) if accelerator().is_main_process else nullcontext():
        _prepare(output, config, resume)
        torch.manual_seed(training.seed)
        network = kind(policy, contract)
        network.fit_robot(source.robot)
        network.fit_normalization(windows.statistics())
        return _train(network, training, samples, config, output, progress_bar)


def _train(
    network: Policy,
    training: TrainingConfig,
    samples: Windows | VideoMixture,
    config: CheckpointConfig,
    output: Path,
    progress_bar: bool,
) -> TrainingResult:
    """One stage after the other, each from where it was stopped."""
    elapsed_s = 0.0
    for stage in network.stages(training):
        folder = output / stage.name
        folder.mkdir(exist_ok=True)
        trainer = Trainer(stage, samples, folder, progress_bar)
        if trainer.accelerator.is_main_process:
            write_config(output, config)
        if (folder / STATE_FILE).exists():
            trainer.resume()
        result = trainer.run()
        elapsed_s += result.elapsed_s
        if result.interrupted:
            break
        trainer.average.copy_to(trainer.policy)
    return dataclasses.replace(result, checkpoint=output, elapsed_s=elapsed_s)


def _description(windows: Windows) -> dict[str, Any]:
    """What the policy learns from, in a few numbers, to tell one dataset from another."""
    return {"episodes": len(windows.starts), "frames": len(windows), "tasks": list(windows.arrays.tasks)}


def _with_precision(training: TrainingConfig, output: Path, resume: bool) -> TrainingConfig:
    """`auto` settled, for this device or as the run was begun."""
    begun = None
    if training.precision == "auto" and resume and (output / CONFIG_FILE).exists():
        begun = load_config(output).training.get("config", {}).get("precision")
    return msgspec.structs.replace(training, precision=settled(training.precision, accelerator().device.type, begun))


def _prepare(output: Path, config: CheckpointConfig, resume: bool) -> None:
    """Make the directory, or see that the run in it is this one. Raises CheckpointError."""
    output.mkdir(parents=True, exist_ok=True)
    for weights in output.rglob(WEIGHTS_FILE):
        require_state(weights.parent / STATE_FILE)
    if not any(output.rglob(STATE_FILE)):
        return
    if not resume:
        raise CheckpointError(f"{output} already holds a training run: resume it (--resume), or choose another folder")
    changed = _changes(_comparable(load_config(output)), _comparable(config))
    if changed:
        listed = "\n".join(f"  - {change}" for change in changed)
        raise CheckpointError(f"{output / CONFIG_FILE}: this run was started differently:\n{listed}")


def _comparable(config: CheckpointConfig) -> dict[str, Any]:
    """The configuration as JSON has it, without what may change between two parts of one run."""
    plain = json.loads(config.to_json())
    for name in ("checkpoint_every_s", "threads"):
        plain["training"]["config"].pop(name, None)
    return plain


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    """Every place in which two trees of plain data differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [c for key in keys for c in _changes(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path}: was {old!r}, is now {new!r}"]
