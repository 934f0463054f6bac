"""What `benchmarks/pad_metaworld.py` trains: PAD and Diffusion Policy on the same pictures, in the same time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from benchmarks.commands import visuomotor
from benchmarks.runs import PolicyRun, digest
from episodes.files import write_json
from sim.tasks import TASKS as ALL_TASKS

ALL = "all50"  # the dataset of every task of Meta-World
TASKS = ("drawer-open", "button-press-topdown", "door-open", "push", "reach")
DATASETS = {  # within the folder of data -> episodes a task, seed of the collection
    "demos50": (50, 0),
    "demos10": (10, 0),
    "video40": (40, 500),
    "heldout": (10, 900),
    ALL: (50, 0),
}
DIFFUSION = ("--batch-size", 64, "--precision", "fp32")  # as the image policies of benchmarks/carp.py
PROBE_STEPS = 120  # of which the first LEFT_OUT are slower: caches, allocations
LEFT_OUT = 20
SAME_TIME = 0.02  # relative
RESAMPLED = 10_000  # times, for an interval


@dataclass(frozen=True)
class PadRun(PolicyRun):
    """A run on pictures.

    Attributes:
        at: the checkpoint, where it is not in the run's folder.
        device: `cpu`, where the bundle is evaluated; or `cuda`, where PyTorch runs the checkpoint.
    """

    at: Path | None = None
    device: str = "cpu"

    @property
    def checkpoint(self) -> Path:
        """What was trained."""
        return self.at or super().checkpoint

    @property
    def evaluated(self) -> Path:
        """On a GPU the checkpoint: the engines of bundles run on CPUs."""
        return self.bundle if self.device == "cpu" else self.checkpoint

    @property
    def evaluation(self) -> tuple[object, ...]:
        """What a bundle has from its export, a checkpoint must be told."""
        sampling = ("--sampling", *self.sampling) if self.sampling and self.device != "cpu" else ()
        return (*super().evaluation, *(() if self.device == "cpu" else ("--device", self.device)), *sampling)

    def collect(self) -> None:
        """Nothing: the function `collect` makes the datasets, each of its own size and seed."""

    def train(self) -> None:
        """Train what is not finished, and export what is evaluated as a bundle; what is finished is taken as it is.

        Raises:
            ValueError: the folder holds what was made of other weights.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not is_finished(self.checkpoint):
            self.fit()
        self._keep(self.folder / "made_of.txt", digest(self.checkpoint))
        if self.device == "cpu" and not self.bundle.exists():
            anew = ("--sampling", *self.sampling) if self.sampling else ()
            visuomotor("export", self.checkpoint, "--output", self.bundle, *anew, log=self.folder / "export.log")


def collect(data: Path, names: Sequence[str]) -> None:
    """Make the datasets; of what is there only what is missing is added."""
    data.mkdir(parents=True, exist_ok=True)
    for name in names:
        episodes, seed = DATASETS[name]
        visuomotor(
            "collect", *(ALL_TASKS if name == ALL else TASKS), "--observations", "image", "--episodes", episodes,
            "--seed", seed, "--workers", os.cpu_count() or 1, "--output", data / name,
        )  # fmt: skip


def stages(checkpoint: Path) -> dict[str, dict[str, float]]:
    """How a checkpoint was trained: stage -> {steps, seconds}, seconds of optimisation, interruptions left out."""
    from policies.training_state import PROGRESS, STATE_FILE

    found = {}
    for file in sorted(checkpoint.rglob(STATE_FILE)):
        with safe_open(str(file), framework="numpy") as state:
            progress = json.loads(state.metadata()[PROGRESS])
        stage = file.parent.relative_to(checkpoint).as_posix()
        found["policy" if stage == "." else stage] = {"steps": progress["step"], "seconds": progress["elapsed_s"]}
    return found


def training_seconds(checkpoint: Path) -> float:
    """Of all stages together."""
    return sum(stage["seconds"] for stage in stages(checkpoint).values())


def is_finished(checkpoint: Path) -> bool:
    """Whether the last stage of a checkpoint was trained to its end."""
    from policies.checkpoint import load_config
    from policies.tensors import CheckpointError

    try:
        wanted = load_config(checkpoint).training["config"]["steps"]
    except (CheckpointError, KeyError):
        return False
    return stages(checkpoint).get("policy", {}).get("steps", 0) >= wanted


def diffusion_steps(seconds: float, dataset: Path, folder: Path) -> int:
    """So many optimiser steps of Diffusion Policy take `seconds` here, by a short trial; kept in `folder`.

    The learning rate falls to 0 over the steps, so a training cannot just be cut off when its time is over.

    Raises:
        ValueError: what was kept is for another time.
    """
    kept = folder / "steps.json"
    if not kept.exists():
        took = []
        for steps in (LEFT_OUT, PROBE_STEPS):
            trial = folder / f"trial_{steps}"
            visuomotor(
                "train", "diffusion", "--dataset", dataset, "--output", trial, "--steps", steps, "--resume",
                *DIFFUSION, threads=1, log=folder.with_suffix(".log"),
            )  # fmt: skip
            took.append(training_seconds(trial))
        step_s = (took[1] - took[0]) / (PROBE_STEPS - LEFT_OUT)
        write_json(kept, {"steps": max(1, round(seconds / step_s)), "seconds": seconds, "step_s": step_s})
    worked_out = json.loads(kept.read_text())
    if not math.isclose(worked_out["seconds"], seconds, rel_tol=SAME_TIME):
        was = f"{worked_out['seconds']:.0f} s, not {seconds:.0f}"
        raise ValueError(f"{kept} is for {was}: remove {folder} to train it for another time")
    return int(worked_out["steps"])


def bootstrap_interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean over all values, which are drawn anew within each group (a task's episodes)."""
    random = np.random.default_rng(0)
    drawn = np.zeros(RESAMPLED)
    for values in groups:
        drawn += random.choice(np.asarray(values, dtype=float), (RESAMPLED, len(values))).sum(1)
    low, high = np.percentile(drawn / sum(map(len, groups)), (2.5, 97.5))
    return float(low), float(high)


def gain(rows: Sequence[dict[str, Any]], over: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How much more often one policy succeeds than another, on the same episodes: {points, ci95} in success rate.

    `rows`, `over`: results of `visuomotor eval`, a row a task. Raises ValueError: the episodes differ.
    """
    differences = []
    for row, other in zip(rows, over, strict=True):
        if (row["task"], row["seeds"]) != (other["task"], other["seeds"]):
            raise ValueError(f"{row['task']}: not the same episodes")
        differences.append([(s not in row["failed_seeds"]) - (s not in other["failed_seeds"]) for s in row["seeds"]])
    mean = float(np.mean([value for values in differences for value in values]))
    return {"gain": mean, "ci95": bootstrap_interval(differences)}
