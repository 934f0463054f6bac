"""Collect, train, export, evaluate: what every comparison of policies does, one step at a time, each kept."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import visuomotor

DEMONSTRATIONS = 50  # of each task


@dataclass(frozen=True)
class PolicyRun:
    """One policy: what it learns from, how, and where that is kept.

    Attributes:
        folder: of its checkpoint, bundle, logs and results.
        family: of the policy.
        tasks: that it learns and is evaluated on.
        dataset: of demonstrations; collected if it is not there.
        observations: the observation set, `state` or `image`.
        training: further arguments of `visuomotor train`.
        execute: actions carried out before the policy looks again, in the evaluation; None: as it was trained for.
    """

    folder: Path
    family: str
    tasks: tuple[str, ...]
    dataset: Path
    observations: str = "state"
    training: tuple[object, ...] = ()
    execute: int | None = None

    @property
    def bundle(self) -> Path:
        """The exported policy."""
        return self.folder / "bundle"

    @property
    def result(self) -> Path:
        """JSON of the evaluation."""
        return self.folder / ("eval.json" if self.execute is None else f"eval_execute_{self.execute}.json")

    def collect(self) -> None:
        """Fifty demonstrations of each task; what is there is kept."""
        self.dataset.parent.mkdir(parents=True, exist_ok=True)
        visuomotor(
            "collect", *self.tasks, "--observations", self.observations, "--episodes", DEMONSTRATIONS,
            "--output", self.dataset, log=self.dataset.with_suffix(".log"),
        )  # fmt: skip

    def train(self) -> None:
        """Train and export on one thread; a run that was stopped continues, one that is done is left alone."""
        if self.bundle.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / "checkpoint"
        visuomotor(
            "train", self.family, "--dataset", self.dataset, "--output", checkpoint, "--resume", *self.training,
            threads=1, log=self.folder / "train.log",
        )  # fmt: skip
        visuomotor("export", checkpoint, "--output", self.bundle, log=self.folder / "export.log")

    def evaluate(self, episodes: int, seed: int) -> None:
        """`visuomotor eval` on unseen seeds, with a process a core; kept once done."""
        if not self.result.exists():
            visuomotor(
                "eval", self.bundle, "--task", *self.tasks, "--episodes", episodes, "--seed", seed,
                "--workers", os.cpu_count() or 1, "--json", self.result,
                *(() if self.execute is None else ("--execute", self.execute)),
            )  # fmt: skip

    def rows(self) -> list[dict]:
        """The evaluation's result of each task."""
        found = json.loads(self.result.read_text())
        return found.get("rows", [found])


def train_all(runs: Sequence[PolicyRun]) -> None:
    """Collect what they learn from, then train as many at once as there are cores."""
    for run in {run.dataset: run for run in runs}.values():
        if not run.dataset.exists():
            run.collect()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(PolicyRun.train, runs))


def parameters(checkpoint: Path) -> int:
    """Trained numbers of a policy, those of its image encoder left out, as the papers count."""
    from policies.checkpoint import load_checkpoint

    policy, _ = load_checkpoint(checkpoint)
    return sum(value.numel() for name, value in policy.named_parameters() if not name.startswith("encoder."))
