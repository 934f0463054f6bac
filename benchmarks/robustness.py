"""How much disturbance does a walking policy bear? Survival and tracking error, pushed, loaded, on bad ground.

    python -m benchmarks.robustness --policies ppo=runs/ppo-0,runs/ppo-1 hinf=runs/hinf-0,runs/hinf-1 \\
        --regimes undisturbed continuous sudden adversary --json robustness.json

A policy is a checkpoint of `visuomotor train hinfinity` or a bundle exported from one. NAME=PATH,PATH,... makes a group
of policies that differ in their training seed only, in the order of those seeds: they are reported one by one,
together, and against every other group. A PATH alone is a group of its own.

Every episode lasts 20 s or until the robot falls: its trunk tilts by more than 1 rad or comes below half its height.
Robots are told to go with up to 1 m/s forward and left and turn by up to 1 rad/s, drawn anew every 10 s. They have the
published masses and gains, no delay, flat ground and noisy measurements, but for what the regime changes:

{regimes}

`terrain` stands for every kind of ground, `all` for everything; `sudden:250,350` are other levels of a regime.

- survival: share of the episodes without a fall, with Wilson's 95 % interval. A group's interval takes its episodes for
  independent; `lowest` and `highest` of its policies are in the JSON. Where the physics itself breaks down, the episode
  has not survived (`diverged` counts them).
- tracking error: of the horizontal velocity, its mean over the time until the fall, then over the episodes, m/s, with a
  bootstrap interval. Mind that a policy that falls early is not measured where it is hard.
- where robots were pushed when they fell: falls counted by the mean force of the half second before them, as eighths of
  all horizontal directions from the robot, and its mean upward part: whether a policy has a weak side.
- differences: starts, commands, measurement noise and drawn forces of episode i are the same for every policy and at
  every level of a regime, so groups are compared episode by episode: the bootstrap draws episodes and policies. `all`
  is the mean over a regime's levels. There are many intervals: of twenty, about one misses by chance.
- adversary: for every policy and bound, a disturber that sees what a critic sees is trained (PPO, as in training, but
  force costs it nothing and a fall counts for more) while the policy stays as it is, then measured on other episodes.
  Its falls a minute at the start, when it pushes by chance, and at the end of its training are in the JSON: where they
  did not rise, it found nothing worse than chance, and its row is no worst case.

All robots of a cell are stepped as one batch. The JSON is written every minute; each cell and each trained disturber is
kept in --cache under all that it depends on, the policy's weights included, so the same command goes on where it was
stopped, and another policy or regime can be added later.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is loaded: threads that wait must not spin
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.robustness_episodes import Episodes, Settings, cell_description, key, measure, total_steps  # noqa: E402
from benchmarks.robustness_regimes import REGIMES, Condition, chosen  # noqa: E402
from benchmarks.robustness_statistics import differences, group_rows, policy_row, show  # noqa: E402
from benchmarks.robustness_walkers import Walker, load_walker  # noqa: E402
from episodes.files import write_atomic, write_json  # noqa: E402
from episodes.report import hardware  # noqa: E402

Group = tuple[Walker, ...]
REPORT_EVERY_S = 60.0


@dataclass(frozen=True)
class Report:
    """What the JSON begins with, and where it goes; `file` None: nowhere."""

    head: dict[str, Any]
    file: Path | None

    def write(self, result: dict[str, Any]) -> None:
        """The whole file."""
        if self.file is not None:
            write_json(self.file, self.head | result)


def main() -> None:
    """Measure what is not there yet, then print and write the tables."""
    options = _parser().parse_args()
    settings = Settings(
        episodes=options.episodes,
        seed=options.seed,
        episode_s=options.seconds,
        threads=options.threads,
        attack_steps=options.attack_steps,
        cache=options.cache,
    )
    torch.set_num_threads(options.threads)
    try:
        conditions = chosen(options.regimes)
        groups = load_groups(options.policies, options.threads)
    except (ValueError, ModuleNotFoundError) as error:
        _parser().error(str(error))
    report = Report(head(settings, groups), options.json)
    try:
        show(measure_all(groups, conditions, settings, report))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")


def load_groups(texts: Sequence[str], threads: int) -> dict[str, Group]:
    """Of NAME=PATH,PATH,... and of PATH. Raises ValueError: two of one name, robots that differ, a bad policy."""
    groups: dict[str, Group] = {}
    for text in texts:
        name, _, paths = text.rpartition("=")
        name = name or Path(paths).name
        if name in groups:
            raise ValueError(f"two groups are called {name}; give them names with NAME=PATH,PATH")
        groups[name] = tuple(load_walker(Path(path), threads) for path in paths.split(","))
    digests = [walker.digest for group in groups.values() for walker in group]
    if len(set(digests)) < len(digests):
        raise ValueError("two of the policies are one and the same")
    robots = sorted({walker.robot for group in groups.values() for walker in group})
    if len(robots) > 1:
        raise ValueError(f"policies of {' and '.join(robots)} cannot be compared in the same episodes")
    return groups


def measure_all(
    groups: Mapping[str, Group], conditions: Sequence[Condition], settings: Settings, report: Report
) -> dict[str, Any]:
    """Every cell that is not in the cache, condition by condition; the tables, which `report` has on the way too.

    Not after each cell: their intervals take longer than a cell that is in the cache.
    """
    jobs = [(condition, name, walker) for condition in conditions for name in groups for walker in groups[name]]
    done: dict[tuple[Condition, str], list[tuple[Walker, dict[str, Any]]]] = {}
    reported = time.monotonic()
    with tqdm(total=sum(total_steps(c, settings) for c, _, _ in jobs), unit="step", unit_scale=True) as bar:
        for number, (condition, name, walker) in enumerate(jobs, 1):
            bar.set_description(f"{number}/{len(jobs)} {condition} {name}")
            done.setdefault((condition, name), []).append((walker, _cell(walker, condition, settings, bar)))
            if time.monotonic() - reported > REPORT_EVERY_S:
                report.write(tables(groups, conditions, done))
                reported = time.monotonic()
    result = tables(groups, conditions, done)
    report.write(result)
    return result


def tables(
    groups: Mapping[str, Group],
    conditions: Sequence[Condition],
    done: Mapping[tuple[Condition, str], list[tuple[Walker, dict[str, Any]]]],
) -> dict[str, Any]:
    """{"rows": one a policy and condition, "groups": of complete groups, "differences": between these}."""
    rows, whole = [], {name: dict[Condition, list[Episodes]]() for name in groups}
    for condition in conditions:
        for name, group in groups.items():
            cells = done.get((condition, name), [])
            found = [Episodes.from_dict(cell["episodes"]) for _, cell in cells]
            for (walker, cell), episodes in zip(cells, found, strict=True):
                rows.append(policy_row(str(walker.path), name, condition, episodes) | {"attack": cell["attack"]})
            if len(cells) == len(group):
                whole[name][condition] = found
    return {
        "rows": rows,
        "groups": [row for name, cells in whole.items() for row in group_rows(name, cells)],
        "differences": differences(whole),
    }


def head(settings: Settings, groups: Mapping[str, Group]) -> dict[str, Any]:
    """What was run, on what, with what; without ONNX Runtime, which only bundles need, there is no version of it."""
    packages = [p for p in ("mujoco", "numpy", "torch", "onnxruntime", "visuomotor") if find_spec(p) is not None]
    return {
        "command": shlex.join(["python", "-m", "benchmarks.robustness", *sys.argv[1:]]),
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "settings": {name: value for name, value in vars(settings).items() if name != "cache"},
        "policies": {
            name: [{"path": str(walker.path), "robot": walker.robot, "digest": walker.digest} for walker in group]
            for name, group in groups.items()
        },
    }


def _cell(walker: Walker, condition: Condition, settings: Settings, bar: tqdm) -> dict[str, Any]:
    """What `measure` gives: from the cache, or measured and kept there."""
    description = cell_description(walker, condition, settings)
    file = settings.cache / "cells" / f"{key(description)}.json"
    if file.exists():
        bar.update(total_steps(condition, settings))
        return json.loads(file.read_text())
    before = bar.n
    cell = measure(walker, condition, settings, bar.update)
    bar.update(before + total_steps(condition, settings) - bar.n)  # an attack makes whole iterations
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, (json.dumps({"description": description} | cell) + "\n").encode())
    return cell


def _parser() -> argparse.ArgumentParser:
    text = __doc__.format(regimes="\n".join(_described()))
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", required=True, metavar="[NAME=]PATH[,PATH...]")
    regimes = ["undisturbed", "continuous", "sudden"]
    parser.add_argument("--regimes", nargs="+", default=regimes, metavar="NAME[:LEVEL,LEVEL]")
    parser.add_argument("--episodes", type=_positive, default=200, help="of each cell (200)")
    parser.add_argument("--seed", type=_natural, default=0, help="of all that is drawn (0)")
    parser.add_argument("--seconds", type=_positive, default=20, help="longest episode (20)")
    parser.add_argument("--json", type=Path, help="write the tables here")
    parser.add_argument("--threads", type=_positive, default=2, help="of simulation and policy (2)")
    parser.add_argument(
        "--attack-steps", type=_positive, default=1_000_000, help="control periods to train a disturber (1000000)"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/robustness"), help="of cells and disturbers")
    return parser


def _described() -> list[str]:
    """The regimes, and the levels of those that have several."""
    lines = []
    for regime in REGIMES.values():
        lines.append(f"    {regime.name:24} {regime.text}")
        if len(regime.levels) > 1:
            lines[-1] += f": {', '.join(f'{level:g}' for level in regime.levels)} {regime.unit}".rstrip()
    return lines


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


if __name__ == "__main__":
    main()
