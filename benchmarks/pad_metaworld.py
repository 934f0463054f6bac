"""PAD on Meta-World: one policy for five tasks, told which in words, from pictures.

    python -m benchmarks.pad_metaworld --parts policies pictures grid

The protocol, the same for every policy here:

- Tasks: drawer-open, button-press-topdown, door-open, push, reach. One policy for all, told the instruction.
- It sees the camera corner2 at 96 x 96 pixels, and position and opening of the gripper; objects and goals only in the
  picture.
- 50 demonstrations a task by the scripted expert. Evaluation on 25 episodes a task, objects and goals from seeds that
  no demonstration has, the same for every policy.
- Strict control: every control period, 12.5 ms, is one simulated step through the robot's own controller. An episode
  fails after Meta-World's own 500 steps. (PAD's official roll-out follows each predicted pose for up to 50 steps, and
  may take 1,000 steps an episode.) Inference takes no time here; `visuomotor eval --latency-steps` models it.
- One training seed, one thread each, as many trainings at once as there are cores. Diffusion Policy gets as many
  optimiser steps as fit into the seconds that PAD took with its autoencoder (or into `--budget-minutes`), by a short
  trial on this machine. Seconds and steps of every training are in the table; the pictures that PAD encodes once,
  before its second stage, are not counted.
- Beside success, how far the predicted pose misses that of demonstrations that nothing was trained on (10 a task): the
  same moments for every PAD policy, so it tells apart what 25 episodes a task cannot.
- Wilson's 95 % interval of each task and of all episodes; of a mean also that of 10,000 bootstrap samples of the
  episodes within each task, and so for the gain of one policy over another, episode by episode.

With `--device cuda` all is trained and evaluated on a GPU, each checkpoint by PyTorch, `--jobs` trainings at once, and
Diffusion Policy gets `--diffusion-steps`; the parts solvers, pictures and grid are for a CPU. A table says on what.

`--quick` trains PAD with 16 tokens of pictures instead of 36 and for half the steps; it has files of its own.

Parts, any of which `--parts` selects; every step but the timing is kept, so a run that was stopped continues:

- policies: PAD nano; the same network, steps and autoencoder without predicting pictures; Diffusion Policy.
- cotraining: PAD nano from 10 demonstrations a task alone, and with 40 videos a task, of other seeds, whose actions
  and poses are not used. The same number of steps; to the 32 samples of a batch that have actions, 14 of video come.
- curves: PAD nano and one of 3 x 128, each with and without predicting pictures, from 10 and 50 demonstrations a task.
- why: PAD nano whose action looks at the present picture in tokens of its own (`--present-apart`), so that imagining is
  a second task of the same network and no more.
- all50: one policy of size S for all 50 tasks of Meta-World, 50 demonstrations each. Only where it is asked for.
- pictures: what was imagined for t+4, t+8, t+12 on 10 episodes a task that nothing was trained on, against what
  happened. Beside it the present, taken for the future; what happened, through the autoencoder; and what the policy
  would have shown, had it foreseen the latents of what happened exactly: the best there can be.
- solvers: the same checkpoint with other solvers and numbers of steps: success, pictures, and milliseconds a chunk by
  OpenVINO with two threads (leave the machine alone meanwhile).
- grid: `grid.png`: now, imagined, happened.

Prints the tables and writes the parts into the JSON, where those not selected are left as they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.latency import bench_latency
from benchmarks.pad_pictures import SHOWN, picture_table, write_grid
from benchmarks.pad_poses import episode_means, pose_errors
from benchmarks.pad_runs import (
    ALL,
    DATASETS,
    DIFFUSION,
    TASKS,
    PadRun,
    bootstrap_interval,
    collect,
    diffusion_steps,
    gain,
    is_finished,
    stages,
    training_seconds,
)
from benchmarks.runs import compare, show_comparison, train_all
from episodes.files import write_json
from episodes.report import hardware, wilson_interval
from policies.runtime import Runtime
from sim.tasks import TASKS as ALL_TASKS

SOLVERS = (("ddim", 75), ("ddim", 16), ("ddim", 8), ("dpm++", 16), ("dpm++", 8), ("dpm++", 4))  # the paper's first
QUICK = ("--patch", 3, "--steps", 6000)
SMALLER = ("--size", "3x128x4")
VIDEO = ("--video-fraction", 0.3, "--batch-size", 46)  # beside PAD's own batch of demonstrations, not in place of some
ALL50 = ("--size", "S", "--learning-rate", 5e-4, "--batch-size", 256)
PARTS = ("policies", "cotraining", "curves", "why", "pictures", "solvers", "grid")
ALSO = ("all50",)
TIMING_THREADS, TIMING_CALLS = 2, 50
PAD, NO_PICTURES, DIFFUSION_POLICY = "PAD nano", "without predicting pictures", "Diffusion Policy"
NO_PICTURES_TRAINING = ("--no-predict-images",)
APART = "action sees the present apart"
ALONE, WITH_VIDEO = "10 demonstrations", "10 demonstrations and 40 videos"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not there yet, then print and write the tables."""
    options = _options(arguments)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    collect(options.data, _datasets(options.parts))
    nano = _run(options, "nano", "demos50", training=_training(options), at=options.nano)
    if options.diffusion_steps is None:
        train_all([nano])  # first: its time is Diffusion Policy's
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    console = Console()
    compared = _compared(options, nano)
    train_all(list({run.folder: run for runs in compared.values() for run in runs.values()}.values()), options.jobs)
    machine = hardware() | ({} if options.device == "cpu" else {"device": options.device})
    machine |= {"trained_on": options.trained_on} if options.trained_on else {}
    result |= {"hardware": hardware(), "tasks": TASKS}
    for part, runs in compared.items():
        result[part] = _compare(runs, options) | {"hardware": machine}
        show_comparison(console, part, result[part])
        _show_training(console, result[part])
        write_json(options.json, result)
    if {"pictures", "solvers", "grid"} & set(options.parts):
        train_all([nano])
        result["nano"] = {"stages": stages(nano.checkpoint)}
    if "pictures" in options.parts:
        result["pictures"] = _pictures(nano, options)
        _show_pictures(console, result["pictures"])
    if "solvers" in options.parts:
        result["solvers"] = _solvers(nano, options)
        _show_solvers(console, result["solvers"])
    if "grid" in options.parts:
        write_grid(Runtime.load(nano.bundle), options.data / "heldout", options.output / "grid.png")
        console.print(f"{options.output / 'grid.png'}: now, imagined, happened")
    write_json(options.json, result)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS + ALSO, default=PARTS)
    parser.add_argument("--data", type=Path, default=Path("data/pad"), help="datasets; collected if not there")
    parser.add_argument("--output", type=Path, help="runs/pad/benchmark, or runs/pad/quick")
    parser.add_argument("--nano", type=Path, help="a finished checkpoint of PAD nano; trained if not given")
    parser.add_argument("--json", type=Path, help="pad_metaworld.json or pad_quick.json of benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="a smaller PAD, trained for less long")
    parser.add_argument("--budget-minutes", type=float, help="of Diffusion Policy; by default what PAD nano took")
    parser.add_argument("--diffusion-steps", type=int, help="of Diffusion Policy, in place of a time")
    parser.add_argument("--all50-steps", type=int, default=20_000, help="of the policy for all 50 tasks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--trained-on", help="the machine that made the checkpoints, if it was another: told in the JSON"
    )
    parser.add_argument("--jobs", type=int, help="trainings at once; by default as many as there are cores")
    parser.add_argument("--episodes", type=int, default=25, help="unseen seeds a task")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation")
    options = parser.parse_args(arguments)
    options.output = options.output or Path("runs/pad") / ("quick" if options.quick else "benchmark")
    name = "pad_quick.json" if options.quick else "pad_metaworld.json"
    options.json = options.json or Path("benchmarks/results") / name
    if options.device == "cuda" and (wrong := {"pictures", "solvers", "grid"} & set(options.parts)):
        parser.error(f"{', '.join(sorted(wrong))}: for a CPU, which bundles run on; choose other --parts")
    if options.nano is not None and not is_finished(options.nano):
        parser.error(f"{options.nano} is no checkpoint whose training is finished")
    return options


def _datasets(parts: Sequence[str]) -> list[str]:
    """What the parts need."""
    wanted = {
        "demos50": set(PARTS) - {"cotraining"},
        "demos10": {"cotraining", "curves"},
        "video40": {"cotraining"},
        "heldout": set(PARTS),
        ALL: {"all50"},
    }
    return [name for name, needing in wanted.items() if needing & set(parts)]


def _training(options: argparse.Namespace, *more: object) -> tuple[object, ...]:
    """Arguments of PAD's training."""
    return (*(QUICK if options.quick else ()), *more)


def _run(options: argparse.Namespace, name: str, dataset: str, **more: Any) -> PadRun:
    family, tasks = more.pop("family", "pad"), tuple(ALL_TASKS) if dataset == ALL else TASKS
    return PadRun(options.output / name, family, tasks, options.data / dataset, "image", device=options.device, **more)


def _compared(options: argparse.Namespace, nano: PadRun) -> dict[str, dict[str, PadRun]]:
    """Part -> name -> run."""
    found: dict[str, dict[str, PadRun]] = {}

    def run(name: str, dataset: str, *more: object) -> PadRun:
        if name == "nano":
            return nano
        return _run(options, name, dataset, training=_training(options, *more))

    no_pictures = run("no_pictures", "demos50", *NO_PICTURES_TRAINING)
    few = run("demos10", "demos10")
    if "policies" in options.parts:
        found["policies"] = {PAD: nano, NO_PICTURES: no_pictures, DIFFUSION_POLICY: _diffusion(options, nano)}
    if "cotraining" in options.parts:
        video = ("--video-dataset", options.data / "video40", *VIDEO)
        found["cotraining"] = {ALONE: few, WITH_VIDEO: run("demos10_and_video40", "demos10", *video)}
    if "why" in options.parts:
        found["why"] = {
            PAD: nano,
            NO_PICTURES: no_pictures,
            APART: run("present_apart", "demos50", "--present-apart"),
        }
    if "curves" in options.parts:
        found["curves"] = _curves(run)
    if "all50" in options.parts:
        training = (*ALL50, "--steps", options.all50_steps)
        found["all50"] = {"PAD S": _run(options, "all50", ALL, training=training)}
    return found


def _curves(run: Callable[..., PadRun]) -> dict[str, PadRun]:
    """Sizes and numbers of demonstrations, each with and without predicting pictures; `run`: folder, dataset, more."""
    found = {}
    for size, dataset, folder, without in (
        ("3 x 128", "demos10", "smaller_demos10", "smaller_demos10_no_pictures"),
        ("3 x 128", "demos50", "smaller_demos50", "smaller_demos50_no_pictures"),
        ("nano", "demos10", "demos10", "demos10_no_pictures"),
        ("nano", "demos50", "nano", "no_pictures"),
    ):
        name = f"{size}, {DATASETS[dataset][0]} demonstrations"
        training = SMALLER if size != "nano" else ()
        found[name] = run(folder, dataset, *training)
        found[f"{name}, {NO_PICTURES}"] = run(without, dataset, *training, *NO_PICTURES_TRAINING)
    return found


def _diffusion(options: argparse.Namespace, nano: PadRun) -> PadRun:
    """Diffusion Policy, trained for as long as PAD was unless something else was asked for."""
    steps = options.diffusion_steps
    if steps is None:
        seconds = training_seconds(nano.checkpoint) if options.budget_minutes is None else 60 * options.budget_minutes
        steps = diffusion_steps(seconds, nano.dataset, options.output / "diffusion")
    return _run(options, "diffusion", "demos50", family="diffusion", training=("--steps", steps, *DIFFUSION))


def _compare(runs: Mapping[str, PadRun], options: argparse.Namespace) -> dict[str, Any]:
    """As `benchmarks.runs.compare`, with how each was trained, and the gain of one over the others."""
    for run in runs.values():
        run.evaluate(options.episodes, options.seed)
    result = compare({name: [run] for name, run in runs.items()})
    for name, run in runs.items():
        result["groups"][name] |= {
            "bootstrap_ci95": _bootstrap(run),
            "training": stages(run.checkpoint),
            "training_minutes": round(training_seconds(run.checkpoint) / 60, 1),
        }
    result["gains"] = {
        f"{name}, over {other}": gain(runs[name].rows(), runs[other].rows()) for name, other in _pairs(list(runs))
    }
    result["poses"] = _poses({name: run for name, run in runs.items() if run.family == "pad"}, options)
    return result


def _poses(runs: Mapping[str, PadRun], options: argparse.Namespace) -> dict[str, Any]:
    """How far the first predicted pose misses that of held-out demonstrations, mm, policy by policy; kept once done.

    That pose is the one that is followed until the policy looks again. Intervals are over episodes, within each task.
    """
    found = {}
    for name, run in runs.items():
        kept = run.folder / "poses.json"
        if not kept.exists():
            write_json(kept, episode_means(pose_errors(run.checkpoint, options.data / "heldout")))
        tasks = json.loads(kept.read_text())
        found[name] = {task: [ahead[0] for ahead in episodes] for task, episodes in tasks.items()}
    rows = {
        name: {"error_mm": _mean(list(tasks.values())), **_interval(list(tasks.values()))}
        for name, tasks in found.items()
    }
    differences = {}
    for name, other in _pairs(list(found)):
        each = [np.subtract(found[name][task], found[other][task]).tolist() for task in found[name]]
        differences[f"{name}, over {other}"] = {"error_mm": _mean(each), **_interval(each)}
    return {"policies": rows, "differences": differences}


def _mean(groups: Sequence[Sequence[float]]) -> float:
    return float(np.mean([value for values in groups for value in values]))


def _interval(groups: Sequence[Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {"ci95": bootstrap_interval(groups)}


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Which runs of a part are set against which: each with pictures against that without, else the best or the new."""
    without = [name for name in names if name.endswith(f", {NO_PICTURES}")]
    if without:
        return [(name.removesuffix(f", {NO_PICTURES}"), name) for name in without]
    if APART in names:
        return [(name, NO_PICTURES) for name in names if name != NO_PICTURES]
    best = WITH_VIDEO if WITH_VIDEO in names else names[0]
    return [(best, name) for name in names if name != best]


def _bootstrap(run: PadRun) -> tuple[float, float]:
    return bootstrap_interval([[s not in row["failed_seeds"] for s in row["seeds"]] for row in run.rows()])


def _pictures(run: PadRun, options: argparse.Namespace) -> list[dict[str, Any]]:
    """`picture_table` of a run's bundle; kept once done."""
    kept = run.folder / "pictures.json"
    if not kept.exists():
        write_json(kept, picture_table(Runtime.load(run.bundle), options.data / "heldout"))
    return json.loads(kept.read_text())


def _solvers(nano: PadRun, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Success, pictures and time of each solver; the gain is over the paper's 75 steps of DDIM."""
    rows: list[dict[str, Any]] = []
    reference: list[dict[str, Any]] = []
    for solver, steps in SOLVERS:
        run = dataclasses.replace(
            nano,
            folder=options.output / f"solver_{solver}_{steps}",
            sampling=("solver", solver, "inference_steps", steps),
            at=nano.checkpoint,
        )
        run.train()
        run.evaluate(options.episodes, options.seed)
        reference = reference or run.rows()
        solved, tried = (sum(row[key] for row in run.rows()) for key in ("successes", "episodes"))
        means = [row for row in _pictures(run, options) if row["task"] == "mean"]
        timed = bench_latency((run.bundle,), TIMING_CALLS, TIMING_THREADS, networks=())["rows"][0]
        rows.append(
            {
                "solver": solver,
                "steps": steps,
                "success_rate": solved / tried,
                "ci95": wilson_interval(solved, tried),
                "gain": gain(run.rows(), reference),
                "psnr": {f"t+{row['periods']}": row["imagined"]["psnr"] for row in means},
                "ssim": {f"t+{row['periods']}": row["imagined"]["ssim"] for row in means},
                "chunk_ms": {"p50": timed["p50_ms"], "p99": timed["p99_ms"]},
            }
        )
    return rows


# --- tables


def _show_training(console: Console, result: dict[str, Any]) -> None:
    for name, figures in result["groups"].items():
        low, high = figures["bootstrap_ci95"]
        steps = ", ".join(f"{stage} {done['steps']} steps" for stage, done in figures["training"].items())
        console.print(f"{name}: {figures['training_minutes']} min ({steps}); bootstrap {low:.3f}-{high:.3f}")
    for name, gained in result["gains"].items():
        low, high = gained["ci95"]
        console.print(f"{name}: {100 * gained['gain']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")
    for name, missed in {**result["poses"]["policies"], **result["poses"]["differences"]}.items():
        low, high = missed["ci95"]
        console.print(f"{name}: predicts poses {missed['error_mm']:.2f} mm off ({low:.2f} to {high:.2f})")


def _show_pictures(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="pictures: PSNR in dB / SSIM")
    for column in ("task", "ahead", *SHOWN, "moments"):
        table.add_column(column)
    for row in rows:
        figures = [f"{row[name]['psnr']:.2f} / {row[name]['ssim']:.3f}" for name in SHOWN]
        table.add_row(row["task"], f"t+{row['periods']}", *figures, str(row["moments"]))
    console.print(table)


def _show_solvers(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="solvers")
    for column in ("solver", "steps", "success", "95 % interval", "gain over the first", "PSNR", "ms p50", "ms p99"):
        table.add_column(column)
    for row in rows:
        (low, high), gained = row["ci95"], row["gain"]["ci95"]
        table.add_row(
            row["solver"], str(row["steps"]), f"{row['success_rate']:.3f}", f"{low:.2f}-{high:.2f}",
            f"{row['gain']['gain']:+.3f} ({gained[0]:+.3f} to {gained[1]:+.3f})",
            ", ".join(f"{value:.2f}" for value in row["psnr"].values()),
            f"{row['chunk_ms']['p50']:.1f}", f"{row['chunk_ms']['p99']:.1f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
