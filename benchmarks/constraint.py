"""Does the H-infinity constraint do what it says? Its curves over training, and where they ended.

    python -m benchmarks.constraint runs/hinf-0 runs/eta-005 --json constraint.json --picture constraint.png

Reads what `visuomotor train hinfinity` logged of each run (arXiv 2404.14405):

- cost / |d|: what the robots that the disturber pushes lose of the task's reward in a second beyond what those lose
  that nobody pushes, a newton of its force; the constraint asks for at most eta.
- slack: the mean of the constraint itself, eta |d| - (C + V(s') - V(s)), a second, less what the latter is of robots
  that nobody pushes; it holds where this is not negative. Unlike the line before, it counts what falls cost.
- lambda: the dual variable; it rises while the constraint is violated.
- limits: what the forces on a robot may be at most, as it bears them; a mean of those that are pushed.
- entropy of directions: 1 if the disturber pushes evenly from everywhere, 0 if always from the same side.
- deviation: of what the disturber draws, before it is squashed; 1 is chance's.

Figures at the end are means over the last tenth of the iterations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from episodes.files import write_json
from policies.checkpoint import CONFIG_FILE
from policies.hinfinity.checkpoint import LocomotionCheckpoint

CURVES = {
    "cost / |d|, 1/N": "cost_per_newton/disturber",
    "slack, 1/s": "constraint/slack",
    "lambda": "constraint/lambda",
    "force of the disturber, N": "force/disturber",
    "limit by the disturber, N": "force/limit_disturber",
    "limit by chance, N": "force/limit_chance",
    "entropy of directions": "direction_entropy/disturber",
    "deviation of the disturber": "disturber/std",
    "velocity error, undisturbed, m/s": "task/velocity_error_undisturbed",
}
Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


def curves(run: Path) -> dict[str, Curve]:
    """Name -> (iterations, values), of the curves that a run has. Raises ValueError for a run without a disturber."""
    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    there = set(log.Tags()["scalars"])
    found = {}
    for name, tag in CURVES.items():
        if tag in there:
            newest = {event.step: event.value for event in log.Scalars(tag)}  # a resumed run logs some steps twice
            steps = sorted(newest)
            found[name] = np.array(steps), np.array([newest[step] for step in steps])
    if "slack, 1/s" not in found:
        raise ValueError(f"{run}: no disturber was at work there (`visuomotor train hinfinity --disturber hinfinity`)")
    return found


def at_the_end(run: Path, found: dict[str, Curve]) -> dict[str, Any]:
    """Means over the last tenth of the iterations."""
    config = LocomotionCheckpoint.load(run / CONFIG_FILE).config
    last = max(int(steps[-1]) for steps, _ in found.values())
    row: dict[str, Any] = {"run": str(run), "iterations": last, "eta": config.eta, "seed": config.seed}
    for name, (steps, values) in found.items():
        row[name] = float(values[steps > 0.9 * last].mean())
    return row


def draw(runs: dict[Path, dict[str, Curve]], rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a curve, one line a run."""
    figure, panels = plt.subplots(3, 3, figsize=(13, 9.5), layout="constrained", sharex=True)
    for axes, name in zip(panels.flat, CURVES, strict=True):
        for (run, found), row in zip(runs.items(), rows, strict=True):
            if name not in found:
                continue
            steps, values = found[name]
            line = axes.plot(steps, values, linewidth=0.8, label=f"{run.name}, eta {row['eta']:g}")[0]
            if name.startswith("cost"):
                axes.axhline(row["eta"], linestyle="--", color=line.get_color(), linewidth=0.8)
        axes.set_title(name)
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
    panels[0, 0].legend(title="dashed: eta")
    panels[0, 0].set_yscale("log")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Read the arguments, read the runs, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="checkpoints of `visuomotor train hinfinity`")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--picture", type=Path, help="draw the curves into this PNG")
    arguments = parser.parse_args()
    try:
        runs = {run: curves(run) for run in arguments.runs}
        rows = [at_the_end(run, found) for run, found in runs.items()]
    except ValueError as error:
        sys.exit(str(error))
    table = Table("", *(str(run) for run in runs), title="the constraint, over the last tenth of the training")
    for name in rows[0]:
        values = [row.get(name, "") for row in rows]
        table.add_row(name, *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
    Console().print(table)
    if arguments.json is not None:
        write_json(arguments.json, rows)
    if arguments.picture is not None:
        draw(runs, rows, arguments.picture)


if __name__ == "__main__":
    main()
