"""Train the walking policies that `benchmarks.robustness` and `benchmarks.constraint` compare: methods times seeds.

    python -m benchmarks.locomotion_runs --output runs/loco --seeds 0 1 2
    python -m benchmarks.robustness --policies ppo=runs/loco/none-0,runs/loco/none-1,runs/loco/none-2 ...

As many runs at once as there are cores, on one thread each; every one is `visuomotor train hinfinity --disturber METHOD
--seed SEED`, with all else the same, and keeps its log beside its checkpoint. Stop it whenever you like (Ctrl-C, or
`timeout --signal INT 2h python -m ...`): every run saves itself, and the same command goes on where it was stopped.

Runs of one seed are the same, to the last bit, until what they differ in sets in: forces after the warm-up, and the
disturber when forces by chance are borne. So one is trained until there, and the others go on from copies of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.commands import CommandFailed, side_by_side, visuomotor
from policies.checkpoint import WEIGHTS_FILE
from policies.hinfinity.checkpoint import load_config
from policies.hinfinity.config import HInfinityConfig
from policies.tensors import read_tensors

METHODS = {
    "hinfinity": "the disturber learns, and the constraint counts",
    "random": "PPO, pushed by chance",
    "none": "PPO, pushed by nobody",
}
COPIED = "random"  # the run of which others are copies at first


def main() -> None:
    """Train what is not trained yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/loco"), help="a folder METHOD-SEED of each run")
    parser.add_argument("--robot", default="go2")
    parser.add_argument("--terrain", default="all", choices=("flat", "rough", "all"))
    parser.add_argument("--envs", type=int, default=1024, help="robots of a run that learn at the same time")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--iterations", type=int, default=HInfinityConfig().iterations, help="of each run; more continue a run"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        own = beginnings(options.methods, options.iterations)
        for begin, end in pairwise((*sorted(set(own.values())), options.iterations)):
            runs = [(method, seed) for seed in options.seeds for method in own if own[method] <= begin]
            for method, seed in runs:
                if own[method] == begin > 0:
                    copy(options.output / f"{COPIED}-{seed}", options.output / f"{method}-{seed}", begin)
            side_by_side([partial(train, method, seed, end, options) for method, seed in runs], options.jobs)
    except (CommandFailed, KeyboardInterrupt) as stopped:
        sys.exit(f"stopped ({str(stopped) or 'Ctrl-C'}); the same command goes on")


def beginnings(methods: Sequence[str], iterations: int) -> dict[str, int]:
    """The iteration at which each method's run becomes one of its own."""
    if COPIED not in methods:
        return dict.fromkeys(methods, 0)
    config = HInfinityConfig()
    parted = {COPIED: 0, "none": config.warmup, "hinfinity": int(config.aimed_from)}
    return {method: min(parted[method], iterations) for method in methods}


def copy(run: Path, to: Path, iterations: int) -> None:
    """A run as it is after so many iterations; not where there is one already, nor of a run that is further."""
    if to.exists() or trained(run) != iterations:
        return
    part = to.with_name(f".{to.name}")  # as long as it is not whole
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(run, part)
    part.rename(to)


def trained(run: Path) -> int:
    """How many iterations a run has; 0 where there is none."""
    file = run / WEIGHTS_FILE
    return int(read_tensors(file)[1].get("iteration", 0)) if file.exists() else 0


def train(method: str, seed: int, iterations: int, options: argparse.Namespace) -> None:
    """One run until it has so many iterations."""
    folder = options.output / f"{method}-{seed}"
    if trained(folder) >= iterations and load_config(folder).config.disturber == method:
        return
    visuomotor(*command(method, seed, folder, iterations, options), threads=1, log=folder.with_suffix(".log"))


def command(method: str, seed: int, folder: Path, iterations: int, options: argparse.Namespace) -> Sequence[object]:
    """Of `visuomotor`."""
    return (
        "train", "hinfinity", "--robot", options.robot, "--terrain", options.terrain, "--envs", options.envs,
        "--disturber", method, "--seed", seed, "--iterations", iterations, "--threads", 1, "--output", folder,
        "--resume",
    )  # fmt: skip


if __name__ == "__main__":
    main()
