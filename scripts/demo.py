"""The whole path, once: collect, train, evaluate, export, run through ROS 2, replay. Every step is a command.

Run by `make demo`. A second run continues where the first one was stopped; delete the folder to begin anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.commands import CommandFailed, visuomotor

TASK = "drawer-open"
DEMONSTRATIONS = 50
TRAINING_STEPS = 2000  # enough for this task, in two or three minutes
EVALUATION_EPISODES = 20
ROS_EPISODES = 10


def main() -> int:
    """Run every step; 0 when all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for everything that is made")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    cores = os.cpu_count() or 1
    dataset, checkpoint, bundle = output / "dataset", output / "checkpoint", output / "bundle"
    seconds: dict[str, float] = {}
    try:
        seconds["collect"] = visuomotor(
            "collect", TASK, "--episodes", DEMONSTRATIONS, "--workers", cores, "--output", dataset
        )
        seconds["train"] = visuomotor(
            "train",
            "diffusion",
            "--dataset",
            dataset,
            "--output",
            checkpoint,
            "--resume",
            "--steps",
            TRAINING_STEPS,
            threads=1,
        )
        seconds["evaluate"] = visuomotor(
            "eval", checkpoint, "--task", TASK, "--episodes", EVALUATION_EPISODES, "--workers", cores,
            "--json", output / "eval.json",
        )  # fmt: skip
        shutil.rmtree(bundle, ignore_errors=True)
        seconds["export"] = visuomotor("export", checkpoint, "--output", bundle)
        shutil.rmtree(output / "bag", ignore_errors=True)
        seconds["run"] = visuomotor(
            "run", "--robot", "metaworld_sawyer", "--policy", bundle, "--task", TASK, "--episodes", ROS_EPISODES,
            "--output", output, "--json", output / "run.json",
        )  # fmt: skip
        seconds["replay"] = visuomotor(
            "replay", output / "bag", "--episode", 0, "--video", output / "replay.mp4", "--json", output / "replay.json"
        )
    except CommandFailed as failure:
        print(f"\nThe demo stopped: {failure}", file=sys.stderr)
        return 1
    _summary(output, seconds)
    return 0


def _summary(output: Path, seconds: dict[str, float]) -> None:
    evaluation, run, replay = (json.loads((output / f"{name}.json").read_text()) for name in ("eval", "run", "replay"))
    control = run["control"]
    timing = (
        f"period error p99 {control['period_error_us']['p99']:.0f} us, missed {control['missed']}, "
        f"inference p50 {run['inference_ms']['p50']:.1f} ms"
    )
    rows = [
        ("collect", f"{DEMONSTRATIONS} demonstrations of {TASK}", output / "dataset"),
        ("train", "Diffusion Policy on their states", output / "checkpoint"),
        ("evaluate", f"{evaluation['successes']} of {evaluation['episodes']} unseen episodes", output / "eval.json"),
        ("export", "a bundle that runs without torch", output / "bundle"),
        ("run", f"{run['successes']} of {run['episodes']} episodes in real time through ROS 2", output / "run.json"),
        ("", timing, output / "bag"),
        ("replay", replay["verdict"], output / "replay.mp4"),
    ]  # fmt: skip
    table = Table(title="What happened")
    for column in ("step", "result", "file"):
        table.add_column(column)
    table.add_column("seconds", justify="right")
    for step, result, file in rows:
        table.add_row(step, result, str(file), f"{seconds[step]:.0f}" if step else "")
    Console().print(table)
    print("Next: open the bag in Foxglove or Rerun, or `visuomotor --help`.")


if __name__ == "__main__":
    sys.exit(main())
