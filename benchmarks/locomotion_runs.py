"""Train the walking policies that `benchmarks.robustness` and `benchmarks.constraint` compare: methods times seeds.

    python -m benchmarks.locomotion_runs --output runs/loco --seeds 0 1 2
    python -m benchmarks.robustness --policies ppo=runs/loco/none-0,runs/loco/none-1,runs/loco/none-2 ...

As many runs at once as there are cores, on one thread each; every one is `visuomotor train hinfinity --disturber METHOD
--seed SEED`, with all else the same, and keeps its log beside its checkpoint. Stop it whenever you like (Ctrl-C, or
`timeout --signal INT 2h python -m ...`): every run saves itself, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.commands import CommandFailed, side_by_side, visuomotor

METHODS = {
    "hinfinity": "the disturber learns, and the constraint counts",
    "random": "PPO, pushed by chance",
    "none": "PPO, pushed by nobody",
}
ITERATIONS = 1500


def main() -> None:
    """Train what is not trained yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/loco"), help="a folder METHOD-SEED of each run")
    parser.add_argument("--robot", default="go2")
    parser.add_argument("--terrain", default="all", choices=("flat", "rough", "all"))
    parser.add_argument("--envs", type=int, default=1024, help="robots of a run that learn at the same time")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of each run; more continue a run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = [(method, seed) for seed in options.seeds for method in options.methods]
    try:
        side_by_side([partial(train, method, seed, options) for method, seed in wanted], options.jobs)
    except (CommandFailed, KeyboardInterrupt) as stopped:
        sys.exit(f"stopped ({str(stopped) or 'Ctrl-C'}); the same command goes on")


def train(method: str, seed: int, options: argparse.Namespace) -> None:
    """One run, or what is left of it."""
    folder = options.output / f"{method}-{seed}"
    visuomotor(*command(method, seed, folder, options), threads=1, log=folder.with_suffix(".log"))


def command(method: str, seed: int, folder: Path, options: argparse.Namespace) -> Sequence[object]:
    """Of `visuomotor`."""
    return (
        "train", "hinfinity", "--robot", options.robot, "--terrain", options.terrain, "--envs", options.envs,
        "--disturber", method, "--seed", seed, "--iterations", options.iterations, "--threads", 1, "--output", folder,
        "--resume",
    )  # fmt: skip


if __name__ == "__main__":
    main()
