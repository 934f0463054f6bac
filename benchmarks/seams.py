"""How well one chunk joins the next: the jump in the commanded action where a new chunk takes over.

    python -m benchmarks.seams zoo/carp-drawer-open --task drawer-open --json seams.json

Episodes in lock step, with inference modelled to take some control periods, for each way of stitching that the policy
knows. The jump is measured where a chunk takes over, between what it says for that moment and what the chunk before it
says for the same moment, as a fraction of each channel's range: 0 is no seam at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from contracts import PolicyContract
from episodes.files import write_json
from episodes.report import hardware, wilson_interval
from execution.chunk import ActionChunk
from execution.observation import Observation
from execution.stitching import split_stitching
from policies.loading import load_runtime
from policies.runtime import Runtime, Session
from sim.cameras import fitting_robot
from sim.environments import MetaWorldEnv
from sim.rollout import Rollout
from sim.seeds import episode_seed

STITCHINGS = ("latest", "prefix")


class Listening:
    """A runtime whose sessions' chunks are kept."""

    residual_noise = None

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.chunks: list[ActionChunk] = []

    @property
    def contract(self) -> PolicyContract:
        """Of the runtime."""
        return self.runtime.contract

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Listening:
        """A new episode."""
        self.session: Session = self.runtime.start(seed, instruction, prefix)
        self.chunks = []
        return self

    def act(self, observation: Observation) -> ActionChunk:
        """A chunk, which is kept."""
        self.chunks.append(self.session.act(observation))
        return self.chunks[-1]

    def jumps(self, latency_steps: int, ranges: np.ndarray) -> list[float]:
        """Where each chunk took over from the one before: the largest jump of a channel, over its range."""
        found = []
        for old, new in zip(self.chunks, self.chunks[1:], strict=False):
            begins = new.start_ns + latency_steps * new.period_ns
            index, before = new.index(begins), old.index(begins)
            if index < new.horizon and before < old.horizon:
                found.append(float(np.max(np.abs(new.actions[index] - old.actions[before]) / ranges)))
        return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="a CARP bundle or checkpoint")
    parser.add_argument("--task", required=True)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--latency-steps", type=int, nargs="+", default=[0, 2], help="control periods an inference takes"
    )
    parser.add_argument("--prefix", type=int, default=4, help="actions that a chunk repeats of the one before")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runtime = Listening(load_runtime(options.policy))
    contract = runtime.contract
    env = MetaWorldEnv(options.task, contract.observation_set, fitting_robot(contract))
    ranges = np.array([channel.max - channel.min for channel in env.robot.command.channels])
    rows = []
    for latency in options.latency_steps:
        for stitching in STITCHINGS:
            prefix = split_stitching(stitching, options.prefix)[1]
            jumps: list[float] = []
            solved = 0
            for index in tqdm(range(options.episodes), desc=f"latency {latency} {stitching}", unit="episode"):
                rollout = Rollout(
                    env, runtime, episode_seed("eval", options.seed, index), latency, stitching=stitching, prefix=prefix
                )
                for _ in rollout.run():
                    pass
                solved += rollout.success
                jumps += runtime.jumps(latency, ranges)
            rows.append(
                {
                    "latency_steps": latency,
                    "stitching": stitching,
                    "prefix": prefix,
                    "episodes": options.episodes,
                    "successes": solved,
                    "ci95": wilson_interval(solved, options.episodes),
                    "seams": len(jumps),
                    "jump_mean": float(np.mean(jumps)),
                    "jump_p95": float(np.percentile(jumps, 95)),
                }
            )
    env.close()
    if options.json is not None:
        write_json(options.json, {"rows": rows, "hardware": hardware()})
    _show(options.task, rows)


def _show(task: str, rows: list[dict]) -> None:
    table = Table(title=f"{task}: jumps where a chunk takes over, over the channel's range")
    for column in ("latency", "stitching", "solved", "mean jump", "95th percentile"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            f"{row['latency_steps']} periods",
            row["stitching"],
            f"{row['successes']} of {row['episodes']}",
            f"{row['jump_mean']:.4f}",
            f"{row['jump_p95']:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
