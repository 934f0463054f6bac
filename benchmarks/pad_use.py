"""Does a PAD policy act by what it imagines? The same moments, told other futures.

    python -m benchmarks.pad_use zoo/pad-nano --json use.json

The network predicts pictures and poses together, so that poses may look at the pictures that go with them. At moments
of demonstrations that nothing was trained on, it is asked for its poses when

- `sampled`: it denoises both, as it does on the robot;
- `one call`: it starts from noise and is called once: no future to look at;
- and in its last step of denoising, with poses that are its own guess of that one call, beside pictures that are
  `own` (its guess of that call too), what then `happened`, the `present`, or what happened at the same time in
  `another` episode of the task.

Told is how far the position that is followed first misses that of the demonstration, mm; its mean over the moments of
an episode, then over the episodes of a task, with bootstrap intervals, and differences episode by episode. Were what is
imagined used, what happened would help much, and another's future harm much. `toward the other's` is how far the
position moves, told another's future in place of its own, on the way to where that one went: 0 not at all, 1 all of it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.pad_pictures import observed
from benchmarks.pad_runs import bootstrap_interval, collect
from benchmarks.runs import digest
from episodes.dataset import Dataset, EpisodeData
from episodes.files import write_json
from episodes.report import hardware
from policies.pad.config import PadConfig
from policies.pad.schedule import training_scheduler
from policies.runtime import Runtime
from policies.runtime.graphs import TASK, Array
from policies.runtime.pad import PadSession, denoise, denoised
from policies.runtime.sampler import PadSampler, PadStep
from policies.runtime.sessions import checked_inputs

EVERY = 6  # control periods between two moments of an episode
MILLIMETRES = 1e3
WIDTH = 160  # of the table in a log
FUTURES = ("own", "happened", "present", "another")  # that the last step is told
ASKED = ("sampled", "one call", *FUTURES)
SIGNAL = training_scheduler(PadConfig()).alphas_cumprod.numpy()  # its share of the variance at each timestep
TOWARD = "toward the other's"
APART_M = 5e-3  # that two ways must differ by for their difference to be a direction


class Asked:
    """A PAD policy, its demonstrations, and what it answers at their moments."""

    def __init__(self, runtime: Runtime, dataset: Dataset) -> None:
        """Raises ValueError: the bundle is no PAD policy that predicts pictures."""
        sampler = runtime.sampler
        session = runtime.start(0, runtime.contract.instructions[0])
        if not isinstance(session, PadSession) or not session.imagines:
            raise ValueError(f"this {runtime.contract.policy} policy imagines no pictures; name one of PAD that does")
        assert isinstance(sampler, PadSampler)  # of such a session
        self.runtime, self.sampler, self.graphs = runtime, sampler, session.runners
        self.episodes = [dataset.episode(index) for index in range(len(dataset))]
        self._clips: dict[str, float] = {sample.name: sample.clip for sample in self.sampler.samples}
        self._shapes: dict[str, tuple[int, ...]] = {sample.name: sample.shape for sample in self.sampler.samples}

    def moments(self, episode: EpisodeData) -> range:
        """Rows whose whole future was recorded."""
        return range(0, len(episode) - self.sampler.future[-1], EVERY)

    def present(self, episode: EpisodeData, row: int) -> dict[str, Array]:
        """What the network knows at a row."""
        contract = self.runtime.contract
        inputs = checked_inputs(contract, observed(contract, episode, row))
        if len(contract.instructions) > 1:
            inputs[TASK] = np.array([contract.instructions.index(episode.task)], dtype=np.int64)
        return dict(zip(self.sampler.conditions, self.graphs["encoder"](inputs), strict=True))

    def latents(self, episode: EpisodeData, row: int) -> Array:
        """Of the pictures that were seen after a row."""
        ahead = [self.present(episode, row + periods)["now_pictures"][:, -1] for periods in self.sampler.future]
        return np.stack(ahead, axis=1)

    def answers(
        self, episode: EpisodeData, row: int, other: EpisodeData, random: np.random.Generator
    ) -> dict[str, Array]:
        """Of each of ASKED, the way to the positions predicted, in the observation's units, [future, moving]."""
        present = self.present(episode, row)
        noise = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in self._shapes.items()}
        first, last = self.sampler.steps[0], self.sampler.steps[-1]
        guess = self._estimates(first, noise, present)
        futures = {
            "own": guess["pictures"],
            "happened": self.latents(episode, row),
            "present": np.repeat(present["now_pictures"][:, -1:], len(self.sampler.future), axis=1),
            "another": self.latents(other, row),
        }
        signal = SIGNAL[last.timestep]

        def noisy(name: str, clean: Array) -> Array:
            return (np.sqrt(signal) * clean + np.sqrt(1 - signal) * noise[name]).astype(np.float32)

        sampled = denoise(self.sampler, self.graphs["denoiser"], noise, present)
        poses = {"sampled": sampled["poses"], "one call": guess["poses"]}
        for name, pictures in futures.items():
            told = {"pictures": noisy("pictures", pictures), "poses": noisy("poses", guess["poses"])}
            poses[name] = self._estimates(last, told, present)["poses"]
        now = episode.observations[self.sampler.pose_key][row]
        decoded = {name: self.graphs["decoder"]({"poses": p, "now": now[None]})[0][0] for name, p in poses.items()}
        return {name: (found - now)[:, self.moving] for name, found in decoded.items()}

    @property
    def moving(self) -> list[int]:
        """Elements of the pose that velocities move."""
        return [channel.element for channel in self.sampler.channels if channel.kind == "velocity"]

    def demonstrated(self, episode: EpisodeData, row: int) -> NDArray[np.float64]:
        """The way that the demonstration's commands would have led, [future, moving]."""
        numbers = [number for number, channel in enumerate(self.sampler.channels) if channel.kind == "velocity"]
        actions = episode.actions[row : row + self.sampler.future[-1], numbers].astype(float)
        return actions.cumsum(axis=0)[np.array(self.sampler.future) - 1] * self.runtime.contract.action_period_s

    def _estimates(self, step: PadStep, noisy: Mapping[str, Array], present: Mapping[str, Array]) -> dict[str, Array]:
        """The clean samples as one call of the network has them."""
        outputs = self.graphs["denoiser"]({**noisy, "timestep": np.array([step.timestep], dtype=np.int64), **present})
        return {
            name: denoised(step, self._clips[name], noisy[name], output, np.zeros_like(output))[1]
            for name, output in zip(self._shapes, outputs, strict=True)
        }


def measure(asked: Asked, progress: bool = True) -> dict[str, Any]:
    """Rows of each task and of all: mean error of each of ASKED, and of each future what it changes over `own`."""
    random = np.random.default_rng(0)
    errors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))  # task -> asked -> episodes
    for episode in tqdm(asked.episodes, unit="episode", disable=not progress):
        others = [e for e in asked.episodes if e.task_name == episode.task_name and e.seed != episode.seed]
        found: dict[str, list[float]] = defaultdict(list)
        for row in asked.moments(episode):
            longer = [e for e in others if row in asked.moments(e)]
            if not longer:
                continue
            other = longer[random.integers(len(longer))]
            answers = asked.answers(episode, row, other, random)
            right = asked.demonstrated(episode, row)[0]
            for name, way in answers.items():
                found[name].append(MILLIMETRES * float(np.linalg.norm(way[0] - right)))
            away, moved = asked.demonstrated(other, row)[0] - right, answers["another"][0] - answers["own"][0]
            if np.linalg.norm(away) > APART_M:
                found[TOWARD].append(float(moved @ away / (away @ away)))
        for name, values in found.items():
            errors[episode.task_name][name].append(float(np.mean(values)))
    rows = [_row(task, [found]) for task, found in errors.items()]
    return {"unit": "mm", "rows": [*rows, _row("mean", list(errors.values()))]}


def _row(task: str, groups: Sequence[Mapping[str, list[float]]]) -> dict[str, Any]:
    """Means over the episodes of all groups, which are tasks; intervals draw episodes within each."""
    named = {name: [group[name] for group in groups] for name in (*ASKED, TOWARD)}
    for name in ("happened", "another"):
        named[f"{name} - own"] = [np.subtract(group[name], group["own"]).tolist() for group in groups]
    means = {
        name: {"mean": float(np.mean(np.concatenate(values))), "ci95": bootstrap_interval(values)}
        for name, values in named.items()
    }
    return {"task": task, "episodes": sum(map(len, named["own"])), **means}


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table."""
    table = Table(title="miss of the first predicted position, mm")
    for column in ("task", "episodes", *ASKED, "happened - own", "another - own", TOWARD):
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in result["rows"]:
        cells = [f"{row[name]['mean']:.2f}" for name in ASKED]
        for name in ("happened - own", "another - own", TOWARD):
            low, high = row[name]["ci95"]
            cells.append(f"{row[name]['mean']:+.2f} ({low:+.2f} to {high:+.2f})")
        table.add_row(row["task"], str(row["episodes"]), *cells)
    (console or Console(width=None if sys.stdout.isatty() else WIDTH)).print(table)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of a PAD policy for the tasks of benchmarks.pad_metaworld")
    parser.add_argument(
        "--data", type=Path, default=Path("data/pad"), help="its dataset `heldout`; collected if missing"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    collect(options.data, ["heldout"])
    asked = Asked(Runtime.load(options.bundle), Dataset(options.data / "heldout"))
    result = {"policy": str(options.bundle), "digest": digest(options.bundle), "hardware": hardware()} | measure(asked)
    show(result)
    if options.json is not None:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
