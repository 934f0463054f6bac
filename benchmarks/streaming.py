"""Streaming Diffusion Policy against Diffusion Policy on the same demonstrations and seeds, and what makes it work.

    python -m benchmarks.streaming --output runs/streaming

Parts, any of which `--parts` selects; every step is kept, so a run that was stopped continues:

- state: the five tasks of `benchmarks/metaworld_state.py`, a policy a task, in two settings, both with our small
  network. The paper's: 8 actions and 50 evaluations of the network an observation (DDPM, the noise predicted). The
  streaming one: one action and one evaluation an observation. Diffusion Policy is taken from that benchmark's folder
  (`--baseline`), and trained as it does where it is not there.
- image: the streaming setting from pictures and the end effector's pose only, on drawer-open.
- ablation: on push, 100 episodes each, everything but what is named as in the streaming setting: the mixture of
  training levels, what the network predicts, the reset of the buffer, actions an observation (an evaluation an action),
  evaluations and scheduler at one action an observation; and the policy of the streaming setting when only every n-th
  observation comes, for which it was not trained, still with one evaluation an observation.

All evaluation is on the same unseen seeds. Prints the tables and writes `streaming.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console

from benchmarks.metaworld_state import TASKS, TRAINING_STEPS
from benchmarks.runs import DEMONSTRATIONS, PolicyRun, compare, show_comparison, train_all
from episodes.files import write_json
from episodes.report import hardware

STEPS = ("--steps", TRAINING_STEPS)
PAPER = (
    *STEPS, "--execute", 8, "--evaluations", 50, "--scheduler", "ddpm", "--prediction", "epsilon",
    "--reset", "zero",
)  # fmt: skip
IMAGE_TASK = "drawer-open"
IMAGE = ("--steps", 2400, "--batch-size", 64, "--precision", "fp32")  # as the image policies of benchmarks/carp.py
ABLATION_TASK = "push"
ABLATION_EPISODES = 100
TRAINED_ANEW = {  # what is learned differently -> arguments of `visuomotor train`
    "levels-chunkwise": ("--chunkwise", 1, "--constant", 0),
    "levels-constant": ("--chunkwise", 0, "--constant", 1),
    "levels-independent": ("--chunkwise", 0, "--constant", 0, "--independent", 1),
    "prediction-epsilon": ("--prediction", "epsilon"),
    "prediction-sample": ("--prediction", "sample"),
    "execute-2": ("--execute", 2, "--evaluations", 2),
    "execute-4": ("--execute", 4, "--evaluations", 4),
    "execute-8": ("--execute", 8, "--evaluations", 8),
}
SAMPLED_ANEW = {  # what is only sampled differently -> whose checkpoint, and `visuomotor export --sampling`
    "levels-chunkwise-reset-zero": ("levels-chunkwise", ("reset", "zero")),
    "reset-zero": (None, ("reset", "zero")),
    "reset-constant": (None, ("reset", "constant")),
    "evaluations-2": (None, ("evaluations", 2)),
    "evaluations-5": (None, ("evaluations", 5)),
    "evaluations-5-ddpm": (None, ("evaluations", 5, "scheduler", "ddpm")),
}
OBSERVED_EVERY = (2, 4, 8, 12)  # periods
PARTS = ("state", "image", "ablation")
Groups = dict[str, list[PolicyRun]]


def main() -> None:
    """Measure what is not there yet, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/streaming"))
    parser.add_argument("--baseline", type=Path, default=Path("runs/metaworld_state"))
    parser.add_argument("--image-dataset", type=Path, default=Path("runs/carp/image/drawer-open/dataset"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--episodes", type=int, default=50, help="unseen seeds a task, but for the ablation")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation")
    options = parser.parse_args()
    groups: dict[str, Groups] = {}
    if "state" in options.parts:
        groups["state"] = _state(options.output, options.baseline)
    if "image" in options.parts:
        run = PolicyRun(
            options.output / "image" / IMAGE_TASK, "streaming", (IMAGE_TASK,), options.image_dataset, "image", IMAGE
        )
        groups["image"] = {"one action": [run]}
    if "ablation" in options.parts:
        groups["ablation"] = _ablation(options.output, options.baseline)
    runs = {run.folder: run for part in groups.values() for members in part.values() for run in members}
    if "ablation" in options.parts:  # its own policy is the streaming setting's
        own = _one_action(options.output, ABLATION_TASK, options.baseline / ABLATION_TASK / "dataset")
        runs.setdefault(own.folder, own)
    train_all([run for run in runs.values() if run.trained is None])
    train_all([run for run in runs.values() if run.trained is not None])
    console = Console()
    kept = options.output / "streaming.json"  # of parts that are not selected now
    result: dict = json.loads(kept.read_text()) if kept.exists() else {}
    result |= {"demonstrations": DEMONSTRATIONS, "hardware": hardware()}
    for part, members in groups.items():
        episodes = ABLATION_EPISODES if part == "ablation" else options.episodes
        for run in (run for group in members.values() for run in group):
            run.evaluate(episodes, options.seed)
        result[part] = compare(members)
        show_comparison(console, f"{part}: {DEMONSTRATIONS} demonstrations a task", result[part])
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(kept, result)


def _state(output: Path, baseline: Path) -> Groups:
    groups: Groups = {"Diffusion Policy": [], "paper's setting": [], "one action": []}
    for task in TASKS:
        dataset = baseline / task / "dataset"
        groups["Diffusion Policy"].append(PolicyRun(baseline / task, "diffusion", (task,), dataset, training=STEPS))
        groups["paper's setting"].append(
            PolicyRun(output / "paper" / task, "streaming", (task,), dataset, training=PAPER)
        )
        groups["one action"].append(_one_action(output, task, dataset))
    return groups


def _one_action(output: Path, task: str, dataset: Path) -> PolicyRun:
    return PolicyRun(output / "one_action" / task, "streaming", (task,), dataset, training=STEPS)


def _ablation(output: Path, baseline: Path) -> Groups:
    """One run a group; the first, and what is only sampled anew, is the streaming setting's own policy."""
    dataset, task, folder = baseline / ABLATION_TASK / "dataset", ABLATION_TASK, output / "ablation"
    trained = _one_action(output, task, dataset).folder
    groups: Groups = {"as it is": [PolicyRun(folder / "as-it-is", "streaming", (task,), dataset, trained=trained)]}
    for name, arguments in TRAINED_ANEW.items():
        groups[name] = [PolicyRun(folder / name, "streaming", (task,), dataset, training=(*STEPS, *arguments))]
    for name, (of, sampling) in SAMPLED_ANEW.items():
        source = trained if of is None else folder / of
        groups[name] = [PolicyRun(folder / name, "streaming", (task,), dataset, sampling=sampling, trained=source)]
    for every in OBSERVED_EVERY:
        groups[f"observed every {every} periods"] = [dataclasses.replace(groups["as it is"][0], execute=every)]
    return groups


if __name__ == "__main__":
    main()
