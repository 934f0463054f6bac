"""Collect, train, export, evaluate: what every comparison of policies does, one step at a time, each kept."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.commands import side_by_side, visuomotor
from episodes.report import wilson_interval
from sim.seeds import episode_seed

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
        sampling: names and values, for `visuomotor export --sampling`.
        trained: another run's folder, whose checkpoint is exported instead of training one.
    """

    folder: Path
    family: str
    tasks: tuple[str, ...]
    dataset: Path
    observations: str = "state"
    training: tuple[object, ...] = ()
    execute: int | None = None
    sampling: tuple[object, ...] = ()
    trained: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """What was trained."""
        return (self.trained or self.folder) / "checkpoint"

    @property
    def bundle(self) -> Path:
        """The exported policy."""
        return self.folder / "bundle"

    @property
    def evaluated(self) -> Path:
        """What is evaluated."""
        return self.bundle

    @property
    def evaluation(self) -> tuple[object, ...]:
        """Further arguments of `visuomotor eval`."""
        return () if self.execute is None else ("--execute", self.execute)

    @property
    def result(self) -> Path:
        """JSON of the evaluation."""
        return self.folder / ("eval.json" if self.execute is None else f"eval_execute_{self.execute}.json")

    @property
    def made(self) -> str:
        """How what is in the folder was made, as JSON."""
        how = {"family": self.family, "tasks": self.tasks, "dataset": str(self.dataset), "training": self.training}
        return json.dumps(how | {"sampling": self.sampling, "of": str(self.checkpoint)}, default=str)

    def _keep(self, file: Path, text: str) -> None:
        """Write down what the folder's content is of. Raises ValueError: it is of something else."""
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        elif file.read_text() != text:
            raise ValueError(f"{file}: {self.folder} holds what was made otherwise: remove it to measure anew")

    def collect(self) -> None:
        """Fifty demonstrations of each task; what is there is kept, what is missing is added."""
        self.dataset.parent.mkdir(parents=True, exist_ok=True)
        visuomotor(
            "collect", *self.tasks, "--observations", self.observations, "--episodes", DEMONSTRATIONS,
            "--output", self.dataset, log=self.dataset.with_suffix(".log"),
        )  # fmt: skip

    def train(self) -> None:
        """Train and export on one thread; a run that was stopped continues, one that is done is left alone.

        Raises:
            ValueError: the folder holds what was made otherwise.
        """
        self._keep(self.folder / "made.json", self.made)
        if self.bundle.exists():
            return
        if self.trained is None:
            self.fit()
        anew = ("--sampling", *self.sampling) if self.sampling else ()
        visuomotor("export", self.checkpoint, "--output", self.bundle, *anew, log=self.folder / "export.log")

    def fit(self) -> None:
        """`visuomotor train`, or go on with it."""
        visuomotor(
            "train", self.family, "--dataset", self.dataset, "--output", self.checkpoint, "--resume",
            *self.training, threads=1, log=self.folder / "train.log",
        )  # fmt: skip

    def evaluate(self, episodes: int, seed: int) -> None:
        """`visuomotor eval` on unseen seeds, with a process a core; kept once done.

        Raises:
            ValueError: what was kept is of other episodes, or of another policy.
        """
        self._keep(self.result.with_suffix(".of.txt"), digest(self.evaluated))
        if self.result.exists():
            wanted = [episode_seed("eval", seed, index) for index in range(episodes)]
            if any(row["seeds"] != wanted for row in self.rows()):
                raise ValueError(
                    f"{self.result} is not of {episodes} episodes of seed {seed}: remove it to measure anew"
                )
            return
        visuomotor(
            "eval", self.evaluated, "--task", *self.tasks, "--episodes", episodes, "--seed", seed,
            "--workers", os.cpu_count() or 1, "--json", self.result, *self.evaluation,
        )  # fmt: skip

    def rows(self) -> list[dict]:
        """The evaluation's result of each task."""
        found = json.loads(self.result.read_text())
        return found.get("rows", [found])


def train_all(runs: Sequence[PolicyRun], jobs: int | None = None) -> None:
    """Collect what they learn from, then train `jobs` at once; None: as many as there are cores."""
    for run in {run.dataset: run for run in runs if not run.bundle.exists()}.values():
        run.collect()
    side_by_side([run.train for run in runs], jobs)


def compare(groups: Mapping[str, Sequence[PolicyRun]]) -> dict:
    """Every row of every run; and of each group the mean, the spread and the parameters."""
    rows, figures = [], {}
    for group, runs in groups.items():
        found = [
            {"group": group, "run": run.folder.name, "training": [str(word) for word in run.training], **row}
            for run in runs
            for row in run.rows()
        ]
        rates = [row["success_rate"] for row in found]
        solved, tried = sum(row["successes"] for row in found), sum(row["episodes"] for row in found)
        figures[group] = {
            "mean_success_rate": statistics.fmean(rates),
            "ci95": wilson_interval(solved, tried),
            "lowest": min(rates),
            "highest": max(rates),
            "standard_deviation": statistics.stdev(rates) if len(rates) > 1 else 0.0,
            "parameters": parameters(runs[0].checkpoint),
        }
        rows += found
    return {"groups": figures, "rows": rows}


def show_comparison(console: Console, title: str, result: dict) -> None:
    """Print what `compare` gave."""
    table = Table(title=title)
    for column in ("policy", "run", "task", "success", "95 % interval", "inference ms p50"):
        table.add_column(column)
    for row in result["rows"]:
        low, high = row["ci95"]
        inference = f"{row['inference_ms']['p50']:.2f}"
        table.add_row(
            row["group"], row["run"], row["task"], f"{row['success_rate']:.2f}", f"{low:.2f}-{high:.2f}", inference
        )
    for group, figures in result["groups"].items():
        low, high = figures["ci95"]
        mean, million = f"{figures['mean_success_rate']:.3f}", figures["parameters"] / 1e6
        table.add_row(group, f"{million:.3f} M parameters", "mean", mean, f"{low:.2f}-{high:.2f}", "")
    console.print(table)


def digest(policy: Path) -> str:
    """SHA-256 of what a bundle's manifest says of it, or of a checkpoint's weights, in hexadecimal."""
    from policies.runtime.bundle import MANIFEST_FILE, is_bundle

    file = MANIFEST_FILE
    if not is_bundle(policy):
        from policies.checkpoint import WEIGHTS_FILE as file  # loads torch
    return hashlib.sha256((policy / file).read_bytes()).hexdigest()


def parameters(checkpoint: Path) -> int:
    """Trained numbers of a policy, those of its image encoder left out, as the papers count."""
    from policies.checkpoint import load_checkpoint

    policy, _ = load_checkpoint(checkpoint)
    return sum(value.numel() for name, value in policy.named_parameters() if not name.startswith(("encoder.", "vae.")))
