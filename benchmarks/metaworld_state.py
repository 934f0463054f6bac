"""State-based Diffusion Policy on five Meta-World tasks: one policy a task, in simulation and through ROS 2.

    python -m benchmarks.metaworld_state --output runs/metaworld_state

Collects 50 demonstrations a task, trains one policy on each (one thread a policy, as many at once as there are
cores), evaluates the exported bundles on 50 unseen seeds in lock step, then runs the same bundles on the same seeds
through the ROS 2 graph in real time. Every step is kept: a run that was stopped continues. Prints the table and writes
`table.json`. Leave the machine alone during the ROS 2 part: it is real time.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.commands import visuomotor
from benchmarks.runs import DEMONSTRATIONS, PolicyRun, train_all
from episodes.files import write_json
from episodes.report import hardware

TASKS = ("drawer-open", "button-press-topdown", "push", "pick-place", "assembly")
TRAINING_STEPS = 6000


def main() -> None:
    """Measure what is not there yet, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/metaworld_state"))
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--episodes", type=int, default=50, help="unseen seeds a task")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation")
    parser.add_argument("--steps", type=int, default=TRAINING_STEPS, help="training steps a policy")
    parser.add_argument("--skip-ros", action="store_true", help="lock-step evaluation only")
    options = parser.parse_args()
    runs = [
        PolicyRun(folder, "diffusion", (folder.name,), folder / "dataset", training=("--steps", options.steps))
        for folder in (options.output / task for task in options.tasks)
    ]
    train_all(runs)
    for run in runs:
        run.evaluate(options.episodes, options.seed)
        if not options.skip_ros:
            _run_through_ros(run, options.episodes, options.seed)
    rows = [_row(options.output / task) for task in options.tasks]
    result = {
        "rows": rows,
        "mean_success_rate": sum(row["eval"]["success_rate"] for row in rows) / len(rows),
        "demonstrations": DEMONSTRATIONS,
        "hardware": hardware(),
    }
    write_json(options.output / "table.json", result)
    _show(result)


def _run_through_ros(run: PolicyRun, episodes: int, seed: int) -> None:
    """The same seeds in real time; kept once done."""
    result = run.folder / "run.json"
    if not result.exists():
        shutil.rmtree(run.folder / "ros", ignore_errors=True)
        visuomotor(
            "run", "--robot", "metaworld_sawyer", "--policy", run.bundle, "--task", run.folder.name,
            "--episodes", episodes, "--seed", seed, "--output", run.folder / "ros", "--json", result,
        )  # fmt: skip


def _row(folder: Path) -> dict:
    row = {"task": folder.name, "eval": json.loads((folder / "eval.json").read_text())}
    if (folder / "run.json").exists():
        row["run"] = json.loads((folder / "run.json").read_text())
        low, high = row["eval"]["ci95"]
        row["run_within_ci"] = low <= row["run"]["success_rate"] <= high
    return row


def _show(result: dict) -> None:
    table = Table(title="State-based Diffusion Policy, 50 demonstrations a task, one policy a task")
    for column in ("task", "eval success", "95 % interval", "through ROS 2", "within", "missed", "inference ms p50"):
        table.add_column(column)
    for row in result["rows"]:
        evaluation, run = row["eval"], row.get("run")
        low, high = evaluation["ci95"]
        cells = [row["task"], f"{evaluation['success_rate']:.2f}", f"{low:.2f}-{high:.2f}"]
        if run:
            cells += [
                f"{run['success_rate']:.2f}",
                "yes" if row["run_within_ci"] else "NO",
                str(run["control"]["missed"]),
            ]
            cells.append(f"{run['inference_ms']['p50']:.1f}")
        table.add_row(*cells)
    table.add_row("mean", f"{result['mean_success_rate']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
