"""CARP against Diffusion Policy on the same demonstrations and seeds, and one CARP for ten tasks.

    python -m benchmarks.carp --output runs/carp

Five parts, any of which `--parts` selects; every step is kept, so a run that was stopped continues:

- state: the five tasks of `benchmarks/metaworld_state.py`, a policy a task. Diffusion Policy is taken from that
  benchmark's folder (`--baseline`), and trained as it does where it is not there.
- replan: the same policies, Diffusion Policy looking again after 4 actions and CARP after 8: each as the other does.
- seeds: five training seeds on pick-place.
- image: both policies from pictures and the end effector's pose only, on drawer-open and push.
- mt10: one CARP for the ten tasks of MT10, told which by its instruction.

All evaluation is on the same unseen seeds. Prints the tables and writes `carp.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rich.console import Console

from benchmarks.metaworld_state import TASKS, TRAINING_STEPS
from benchmarks.runs import DEMONSTRATIONS, PolicyRun, compare, show_comparison, train_all
from episodes.files import write_json
from episodes.report import hardware

CARP = ("--steps", 4000)
OTHER_EXECUTE = {"diffusion": 4, "carp": 8}
HARD_TASK = "pick-place"
TRAINING_SEEDS = 5
IMAGE_TASKS = ("drawer-open", "push")
IMAGE_CARP = ("--steps", 2400)
IMAGE_DIFFUSION = ("--steps", 2400, "--batch-size", 64, "--precision", "fp32")
MT10 = (
    "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown",
    "peg-insert-side", "window-open", "window-close",
)  # fmt: skip
MT10_CARP = (
    "--steps", 12000, "--depth", 6, "--width", 96, "--codes", 128, "--tokenizer-steps", 4000, "--dropout", 0.05,
)  # fmt: skip
PARTS = ("state", "replan", "seeds", "image", "mt10")


def main() -> None:
    """Measure what is not there yet, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/carp"))
    parser.add_argument("--baseline", type=Path, default=Path("runs/metaworld_state"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--episodes", type=int, default=50, help="unseen seeds a task")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation")
    options = parser.parse_args()
    wanted = {part: _runs(part, options.output, options.baseline) for part in options.parts}
    everything = list({(run.folder, run.execute): run for runs in wanted.values() for run in runs}.values())
    train_all(list({run.folder: run for run in everything}.values()))
    for run in everything:
        run.evaluate(options.episodes, options.seed)
    console = Console()
    result: dict = {"demonstrations": DEMONSTRATIONS, "hardware": hardware()}
    for part, runs in wanted.items():
        by_family = {
            family: [r for r in runs if r.family == family] for family in dict.fromkeys(r.family for r in runs)
        }
        result[part] = compare(by_family)
        show_comparison(console, f"{part}: {DEMONSTRATIONS} demonstrations a task", result[part])
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "carp.json", result)


def _runs(part: str, output: Path, baseline: Path) -> list[PolicyRun]:
    """The policies of a part."""
    if part == "mt10":
        return [PolicyRun(output / "mt10", "carp", MT10, output / "mt10" / "dataset", training=MT10_CARP)]
    if part == "image":
        runs = []
        for task in IMAGE_TASKS:
            dataset = output / "image" / task / "dataset"
            for family, training in (("diffusion", IMAGE_DIFFUSION), ("carp", IMAGE_CARP)):
                folder = output / "image" / task / family
                runs.append(PolicyRun(folder, family, (task,), dataset, "image", training))
        return runs
    if part == "seeds":
        dataset = baseline / HARD_TASK / "dataset"
        return [_state(output, HARD_TASK, dataset, seed) for seed in range(TRAINING_SEEDS)]
    runs = []
    for task in TASKS:
        dataset = baseline / task / "dataset"
        runs.append(PolicyRun(baseline / task, "diffusion", (task,), dataset, training=("--steps", TRAINING_STEPS)))
        runs.append(_state(output, task, dataset, 0))
    if part == "replan":
        return [dataclasses.replace(run, execute=OTHER_EXECUTE[run.family]) for run in runs]
    return runs


def _state(output: Path, task: str, dataset: Path, seed: int) -> PolicyRun:
    return PolicyRun(output / "state" / f"{task}-{seed}", "carp", (task,), dataset, training=(*CARP, "--seed", seed))


if __name__ == "__main__":
    main()
