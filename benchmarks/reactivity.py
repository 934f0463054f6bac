"""How quickly a policy reacts: the object is moved in mid-episode, and the command is compared with a twin's.

    python -m benchmarks.reactivity --output runs/reactivity

For each policy, task and delay of the observations, episodes on unseen seeds in lock step, each run twice from the same
seed: in one the object is moved by 5 cm, in its twin it is not. When and where to is drawn from the seed alone, before
the object is normally touched and within the task's own initial places, so that it asks for reaction and not for
extrapolation; every policy meets the same moves. Everything is seeded, so the twins are the same up to the move, bit
for bit (this is checked), and whatever differs afterwards is the reaction: there is no other way to tell it from what
the policy would have done anyway.

- reaction: control periods from the move to the first applied command that differs from the twin's by more than a tenth
  of the full command in any channel; 0 is the command of the very period in which the object was moved. The delay of
  the observations is part of it; what is left without it is given too. Inference takes no time. A policy that did not
  react before one of the two episodes ended is counted and left out of median, 90th percentile and mean.
- success: of the moved episodes and of their twins, with 95 % intervals.

A policy whose chunk is over before the delay is gives the controller nothing to follow: it holds, then gives up. Such
episodes have failed, and are counted as `stopped`.

A policy is NAME=BUNDLE with {task} in the path; with @1 at the end it looks again after every action (Diffusion Policy
then reacts as soon as it can, at eight times its work). Each cell is kept in `cells/` as soon as it is done: a run that
was stopped continues. Prints the table and writes `reactivity.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.runs import digest
from contracts import load_robot
from episodes.files import write_json
from episodes.report import hardware, wilson_interval
from policies.loading import load_runtime
from policies.runtime.bundle import is_bundle
from sim.cameras import ROBOT, fitting_robot
from sim.environments import FULL_COMMAND, MetaWorldEnv
from sim.rollout import PolicyRuntime, Rollout
from sim.seeds import episode_seed
from sim.workers import Workers

WINDOWS = {"push": (5, 24), "drawer-open": (5, 60), "pick-place": (5, 16)}
"""First and last step of the move. The expert touches the object from step 28, 69 and 27 on; on pick-place its fingers
come down before, so that a puck moved later may land inside them and the task cannot be solved any more."""
DELAYS = (0, 4, 8, 16)  # control periods: 0, 50, 100 and 200 ms
DISTANCE = 0.05  # m
THRESHOLD = 0.1  # of the full command
ROUNDING = 1e-6  # m, within which the object's measured place is the one that was drawn
STREAM = 0x6D6F7665  # of random numbers, apart from those that the episode and the policy draw from the same seed
POLICIES = (
    "streaming=runs/streaming/one_action/{task}/bundle",
    "diffusion=runs/metaworld_state/{task}/bundle",
    "carp=runs/carp/state/{task}-0/bundle",
)
MADE_BY = {
    "runs/metaworld_state": "python -m benchmarks.metaworld_state --skip-ros",
    "runs/carp": "python -m benchmarks.carp --parts state",
    "runs/streaming": "python -m benchmarks.streaming --parts state",
}

Load = Callable[[Path, int | None], PolicyRuntime]


@dataclass(frozen=True)
class Policy:
    """A policy of one bundle a task.

    Attributes:
        name: in the table.
        template: path of its bundles, with `{task}`.
        execute: actions carried out before it looks again; None: as it was trained for.
    """

    name: str
    template: str
    execute: int | None = None

    @staticmethod
    def parse(text: str) -> Policy:
        """Of NAME=TEMPLATE or NAME=TEMPLATE@EXECUTE. Raises ValueError: it is neither."""
        found = re.fullmatch(r"([^=]+)=(.+?)(?:@(\d+))?", text)
        if found is None:
            raise ValueError(f"a policy is NAME=BUNDLE or NAME=BUNDLE@EXECUTE, not {text!r}")
        name, template, execute = found.groups()
        return Policy(name, template, int(execute) if execute else None)

    def bundle(self, task: str) -> Path:
        """Where the one for `task` is."""
        return Path(self.template.replace("{task}", task))


@dataclass(frozen=True)
class Cell:
    """What one row of the table is measured on; its numbers are kept under this description."""

    policy: Policy
    task: str
    delay_steps: int
    episodes: int
    seed: int

    def file(self, output: Path) -> Path:
        """Where it is kept."""
        name = re.sub(r"\W+", "-", f"{self.policy.name} {self.task} {self.delay_steps}")
        return output / "cells" / f"{name}.json"


@dataclass(frozen=True)
class Pair:
    """One episode and its twin.

    Attributes:
        seed: of both.
        step: before which the object was moved in one of them.
        offset_m: by which it was moved, (x, y) in the base frame.
        moved: whether the moved one was solved.
        unmoved: whether its twin was.
        stopped: whether the controller gave up in the moved one.
        reaction: control periods from the move to the first different command; None if there was none.
    """

    seed: int
    step: int
    offset_m: tuple[float, float]
    moved: bool
    unmoved: bool
    stopped: bool
    reaction: int | None


def main() -> None:
    """Measure what is not there yet, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reactivity"))
    parser.add_argument("--policies", nargs="+", default=POLICIES, metavar="NAME=BUNDLE[@EXECUTE]")
    parser.add_argument("--tasks", nargs="+", choices=tuple(WINDOWS), default=tuple(WINDOWS))
    parser.add_argument("--delays", type=int, nargs="+", default=DELAYS, help="of the observations, in control periods")
    parser.add_argument("--episodes", type=int, default=100, help="unseen seeds a cell")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    try:
        policies = [Policy.parse(text) for text in options.policies]
        check_bundles(policies, options.tasks)
    except ValueError as error:
        parser.error(str(error))
    cells = [
        Cell(policy, task, delay, options.episodes, options.seed)
        for task in options.tasks
        for policy in policies
        for delay in options.delays
    ]
    rows = measure(cells, options.output, options.workers)
    result = {"rows": rows, "hardware": hardware()}
    write_json(options.output / "reactivity.json", result)
    show(rows)


def check_bundles(policies: Sequence[Policy], tasks: Sequence[str]) -> None:
    """See that all is there before anything is measured. Raises ValueError: something is not; says how to make it."""
    for policy in policies:
        for task in tasks:
            bundle = policy.bundle(task)
            if not bundle.exists():
                makes = (command for folder, command in MADE_BY.items() if bundle.is_relative_to(folder))
                command = next(makes, f"visuomotor export CHECKPOINT --output {bundle}")
                raise ValueError(f"{policy.name}: there is no {bundle}; make it with `{command}`")


def measure(cells: Sequence[Cell], output: Path, workers: int, load: Load | None = None) -> list[dict[str, Any]]:
    """The row of each cell; those that `output` has are not measured again.

    Args:
        cells: what to measure.
        output: each cell is kept there as soon as it is done.
        workers: processes.
        load: opens a policy, given its bundle and `execute`; picklable if there are several workers.

    Raises:
        ValueError: two policies of one name.
        RuntimeError: a policy does not do the same twice, so that there is no twin to compare with.
    """
    if len({cell.file(output) for cell in cells}) < len(cells):
        raise ValueError(f"two policies have the same name: {', '.join(cell.policy.name for cell in cells)}")
    (output / "cells").mkdir(parents=True, exist_ok=True)
    wanted = [cell for cell in cells if not _is_kept(cell, output)]
    with (
        Workers(workers, partial(_Bench, load or _load)) as pool,
        tqdm(total=sum(cell.episodes for cell in wanted), unit="episode") as bar,
    ):
        for cell in wanted:
            bar.set_description(f"{cell.task} {cell.policy.name} {cell.delay_steps}")
            jobs = ((cell, episode_seed("eval", cell.seed, index)) for index in range(cell.episodes))
            pairs = []
            for pair in pool.map(_Bench.attempt, jobs):
                pairs.append(pair)
                bar.update()
            kept = {
                "cell": asdict(cell),
                "bundle": _digest(cell),
                "row": summarize(cell, pairs),
                "pairs": [asdict(pair) for pair in pairs],
            }
            write_json(cell.file(output), kept)
    return [json.loads(cell.file(output).read_text())["row"] for cell in cells]


def draw_move(env: MetaWorldEnv, seed: int) -> tuple[int, npt.NDArray[np.float64]]:
    """When and by how much the object is moved in the episode of `seed`, which has just begun: step, [2] m.

    The direction is one in which the task's initial places differ at all (of a drawer, x only), drawn again until the
    new place is among them; there always is one, for their range is at least twice as wide as the move.
    """
    generator = np.random.default_rng((STREAM, seed))
    first, last = WINDOWS[env.task]
    step = int(generator.integers(first, last + 1))
    place, (low, high) = env.world.object_place, env.world.object_range
    while True:
        direction = generator.normal(size=2) * (high > low)
        offset = DISTANCE * direction / np.linalg.norm(direction)
        if np.all((low - ROUNDING <= place + offset) & (place + offset <= high + ROUNDING)):
            return step, offset


def reaction_steps(moved: npt.NDArray[np.float32], twin: npt.NDArray[np.float32], step: int) -> int | None:
    """Control periods from `step` to the first command [steps, 4] that differs; None if both end before."""
    together = min(len(moved), len(twin))
    differs = np.abs(moved[step:together] - twin[step:together]) / FULL_COMMAND > THRESHOLD
    (reacted,) = np.nonzero(differs.any(axis=1))
    return int(reacted[0]) if len(reacted) else None


def summarize(cell: Cell, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The figures of a cell."""
    reactions = [pair.reaction for pair in pairs if pair.reaction is not None]
    return {
        "policy": cell.policy.name,
        "execute": cell.policy.execute,
        "task": cell.task,
        "delay_steps": cell.delay_steps,
        "delay_ms": cell.delay_steps * load_robot(ROBOT).control_period_s * 1e3,
        "episodes": len(pairs),
        "moved": _success([pair.moved for pair in pairs]),
        "unmoved": _success([pair.unmoved for pair in pairs]),
        "reaction_steps": _spread(reactions),
        "reaction_minus_delay_steps": _spread([reaction - cell.delay_steps for reaction in reactions]),
        "never_reacted": len(pairs) - len(reactions),
        "stopped": sum(pair.stopped for pair in pairs),
    }


def show(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print the table."""
    table = Table(title="the object is moved by 5 cm in mid-episode; reaction in control periods")
    for column in ("task", "policy", "delay ms"):
        table.add_column(column)
    for column in ("moved", "95 %", "unmoved", "95 %", "reaction p50 / p90", "without delay", "never"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = []
        for which in ("moved", "unmoved"):
            low, high = row[which]["ci95"]
            cells += [f"{row[which]['success_rate']:.2f}", f"{low:.2f}-{high:.2f}"]
        spread, own = row["reaction_steps"], row["reaction_minus_delay_steps"]
        reaction = ("-", "-") if spread is None else (f"{spread['median']:g} / {spread['p90']:g}", f"{own['median']:g}")
        table.add_row(row["task"], row["policy"], f"{row['delay_ms']:g}", *cells, *reaction, str(row["never_reacted"]))
    (console or Console()).print(table)


class _Bench:
    """A worker's policy and environment: those of the cell that it last worked on."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._opened: tuple[Path, int | None] | None = None
        self._env: MetaWorldEnv | None = None
        self._runtime: PolicyRuntime

    def attempt(self, job: tuple[Cell, int]) -> Pair:
        cell, seed = job
        env = self._environment(cell)
        moved, twin = (_Run(env, self._runtime, seed, cell.delay_steps, moving=moving) for moving in (True, False))
        if not np.array_equal(moved.applied[: moved.step], twin.applied[: moved.step]):
            raise RuntimeError(f"{cell.policy.name} does not do the same twice on {cell.task}, seed {seed}")
        return Pair(
            seed=seed,
            step=moved.step,
            offset_m=(float(moved.offset[0]), float(moved.offset[1])),
            moved=moved.success,
            unmoved=twin.success,
            stopped=moved.stopped,
            reaction=reaction_steps(moved.applied, twin.applied, moved.step),
        )

    def _environment(self, cell: Cell) -> MetaWorldEnv:
        wanted = (cell.policy.bundle(cell.task), cell.policy.execute)
        if self._env is None or self._opened != wanted or self._env.task != cell.task:
            if self._env is not None:
                self._env.close()
            self._runtime, self._opened = self._load(*wanted), wanted
            contract = self._runtime.contract
            self._env = MetaWorldEnv(cell.task, contract.observation_set, fitting_robot(contract))
        return self._env


class _Run:
    """One episode, moved or not: what it applied, [steps, 4], and how it ended."""

    def __init__(self, env: MetaWorldEnv, runtime: PolicyRuntime, seed: int, delay_steps: int, *, moving: bool) -> None:
        rollout = Rollout(env, runtime, seed, delay_steps=delay_steps)
        applied = []
        for step in rollout.run():
            if step == 0:
                self.step, self.offset = draw_move(env, seed)
            else:
                applied.append(env.applied_action)
            if moving and step == self.step:
                env.move_object(self.offset)
        self.applied = np.stack([*applied, env.applied_action])
        self.success = rollout.success
        self.stopped = bool(rollout.stopped)


def _load(bundle: Path, execute: int | None) -> PolicyRuntime:
    return load_runtime(bundle, execute=execute)


def _is_kept(cell: Cell, output: Path) -> bool:
    """Whether it was measured, as it is described now and with the bundle that is there now."""
    file = cell.file(output)
    if not file.exists():
        return False
    kept = json.loads(file.read_text())
    return kept["cell"] == asdict(cell) and kept.get("bundle") == _digest(cell)


def _digest(cell: Cell) -> str:
    """Of its bundle; empty where there is none."""
    bundle = cell.policy.bundle(cell.task)
    return digest(bundle) if is_bundle(bundle) else ""


def _success(solved: Sequence[bool]) -> dict[str, Any]:
    count = sum(solved)
    return {
        "successes": count,
        "success_rate": count / len(solved),
        "ci95": wilson_interval(count, len(solved)),
    }


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    """None if there are none."""
    if not values:
        return None
    return {
        "median": float(np.median(values)),
        "p90": float(np.percentile(values, 90)),
        "mean": float(np.mean(values)),
    }


if __name__ == "__main__":
    main()
