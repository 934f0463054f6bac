"""How fast are robots stepped and policies learned, and how far is that from the physics alone and from rsl_rl's PPO?

    python -m benchmarks.locomotion_speed --json speed.json

Go2 on flat ground, all on the CPU. All kinds of work take turns in one run, so that what else the machine does slows
all of them; medians of the rounds, in control steps (of 4 physics steps) a second:

- `mj_step`: MuJoCo's own step alone, called from as many threads as there are cores, on the models and commands that
  `environment` has, in each round from where its robots are then;
- `environment`: the task's whole step: observations, rewards, resets;
- `collection`: the same with the actor, its noise and the rollout's storage;
- `loop none`, `loop hinfinity`: collection and learning, without a disturber and with one at full force;
- `loop rsl_rl`: rsl-rl-lib's PPO in the same environment, with the same networks and epochs. Needs `pip install
  rsl-rl-lib`; left out where that is missing.

Actions are as noisy everywhere: how robots move decides how long a step of the physics takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is loaded: threads that wait must not spin
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from episodes.files import write_json
from episodes.report import hardware  # noqa: E402
from policies.hinfinity.config import HInfinityConfig  # noqa: E402
from policies.hinfinity.train import Trainer  # noqa: E402
from sim.legged.batch import SUBSTEPS  # noqa: E402
from sim.legged.figures import GO2  # noqa: E402
from sim.legged.task import LocomotionTask, make_task, training_groups  # noqa: E402

ACTION_STD = 0.3  # about what a policy that walks explores with
Work = Callable[[], int]  # does some, and gives the number of control steps


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    result = measure(options.envs, options.rounds)
    show(result)
    if options.json is not None:
        write_json(options.json, result)


def measure(envs: int, rounds: int) -> dict[str, Any]:
    """Control steps a second of every kind of work: medians, and the rounds they come from."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        task = stack.enter_context(make_task("go2", "flat", envs, threads=threads))
        works: dict[str, Work] = {
            "mj_step": physics(task, threads),
            "environment": environment(task),
        }
        for disturber in ("none", "hinfinity"):
            config = HInfinityConfig(
                disturber=disturber, warmup=0, chance_first=0, force_ramp=0, device="cpu", initial_std=ACTION_STD
            )
            tasks = stack.enter_context(training_groups("go2", "flat", envs, threads=threads))
            trainer = Trainer(tasks, "go2", config, Path(folder) / disturber)
            if disturber == "none":
                works["collection"] = collection(trainer)
            works[f"loop {disturber}"] = loop(trainer)
        if find_spec("rsl_rl") is not None:
            from benchmarks.rsl_rl_ppo import rsl_rl_loop

            own = stack.enter_context(make_task("go2", "flat", envs, threads=threads))
            works["loop rsl_rl"] = rsl_rl_loop(own, HInfinityConfig(initial_std=ACTION_STD))
        rates: dict[str, list[float]] = {name: [] for name in works}
        for number in range(rounds + 1):
            for name, work in works.items():
                began = time.monotonic()
                steps = work()
                if number:  # the first is to warm up
                    rates[name].append(steps / (time.monotonic() - began))
    rows = [
        {"work": name, "steps_per_s": statistics.median(values), "rounds": values} for name, values in rates.items()
    ]
    setting = {"robot": "go2", "terrain": "flat", "envs": envs, "threads": threads, "hardware": hardware()}
    return setting | {"rows": rows, "ratios": ratios(rates)}


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the ratios within the rounds."""
    pairs = [("environment", "mj_step"), ("collection", "mj_step")]
    pairs += [("loop none", "loop rsl_rl"), ("loop hinfinity", "loop rsl_rl"), ("loop hinfinity", "loop none")]
    return {
        f"{a} / {b}": statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))
        for a, b in pairs
        if b in rates
    }


def physics(task: LocomotionTask, threads: int, steps: int = 24) -> Work:
    """`mj_step` alone, from where the task's robots are, with the commands that `environment` gives."""
    import mujoco

    robots = task.robots
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    targets = np.array(GO2.default_pose) + GO2.action_scale * actions(task.count, steps)
    data = [mujoco.MjData(robots.pool.models[0]) for _ in range(threads)]

    def share(number: int, starts: np.ndarray) -> None:
        own = data[number]
        for i in range(number, task.count, threads):
            model = robots.pool.models[robots.model_index[i]]
            mujoco.mj_setState(model, own, starts[i], full)
            own.qacc_warmstart[:] = 0
            for target in targets[:, i]:
                own.ctrl[:] = target
                mujoco.mj_step(model, own, nstep=SUBSTEPS)  # which leaves Python's lock to the other threads

    pool = ThreadPoolExecutor(threads)

    def work() -> int:
        starts = robots.snapshot()["states"][:, -1]
        list(pool.map(partial(share, starts=starts), range(threads)))
        return task.count * steps

    return work


def environment(task: LocomotionTask, steps: int = 24) -> Work:
    """The task's step, with actions at hand."""
    drawn = actions(task.count, steps)

    def work() -> int:
        for action in drawn:
            task.step(action)
        return task.count * steps

    return work


def collection(trainer: Trainer) -> Work:
    """A rollout with the actor, which explores as one that has learned."""

    def work() -> int:
        trainer.collect(pushed=False)
        return trainer.rollout.steps * trainer.count

    return work


def loop(trainer: Trainer) -> Work:
    """A whole iteration."""

    def work() -> int:
        trainer.iterate(0)
        return trainer.rollout.steps * trainer.count

    return work


def actions(count: int, steps: int) -> np.ndarray:
    """Normal ones, the same in every call, [steps, count, 12]."""
    return np.random.default_rng(0).normal(0, ACTION_STD, (steps, count, 12)).astype(np.float32)


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    table = Table(title=f"Go2, flat ground, {result['envs']} environments, {result['threads']} threads")
    for column in ("work", "control steps/s", "slowest", "fastest"):
        table.add_column(column)
    for row in result["rows"]:
        numbers = (row["steps_per_s"], min(row["rounds"]), max(row["rounds"]))
        table.add_row(row["work"], *(f"{number:,.0f}" for number in numbers))
    Console().print(table)
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
