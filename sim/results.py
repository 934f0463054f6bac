"""What an evaluation found: rates with their intervals, and the JSON that it is written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

NOTABLE = 0.05  # of the control periods


@dataclass(frozen=True)
class TaskResult:
    """One policy on one task.

    Attributes:
        task: name.
        episodes: number of them.
        successes: how many were solved within the time limit.
        success_rate: successes / episodes.
        ci95: 95 % Wilson score interval of the rate.
        steps_mean: control steps of an episode, on average.
        seconds_per_episode: wall-clock time of one, on average, in its worker.
        inference_ms: percentiles of the time of one inference, {"p50": ..., "p99": ...}.
        latency_steps: modelled latency of the inference.
        delay_steps: modelled delay of the observations.
        execute: actions carried out before the policy looked again.
        stitching: how overlapping chunks were joined.
        prefix: actions of the chunk before that each chunk repeated; 0 unless the stitching is `prefix`.
        stopped: episodes in which the controller gave up, by reason.
        held: control steps in which the controller held, by reason; the first of each episode wait for a chunk.
        limited: commands that the safety filter changed, by limit and channel.
        action_age_steps: commands by the control periods from the observation they answer to their own time.
        residual_noise: how noisy what was carried out still was (`noise_carried_out`); None: all was decided.
        seeds: of the episodes, in order.
        failed_seeds: of those that were not solved.
    """

    task: str
    episodes: int
    successes: int
    success_rate: float
    ci95: tuple[float, float]
    steps_mean: float
    seconds_per_episode: float
    inference_ms: dict[str, float]
    latency_steps: int
    delay_steps: int
    execute: int
    stitching: str
    prefix: int
    stopped: dict[str, int]
    held: dict[str, int]
    limited: dict[str, int]
    action_age_steps: dict[str, int]
    residual_noise: dict[str, float] | None
    seeds: list[int]
    failed_seeds: list[int]


def as_json(results: Sequence[TaskResult]) -> dict[str, Any]:
    """One task: its result, flat. Several: {"rows": [one each], "mean_success_rate": ...}.

    Raises:
        ValueError: no result.
    """
    if not results:
        raise ValueError("there is no result to write")
    rows = [asdict(result) for result in results]
    if len(rows) == 1:
        return rows[0]
    return {"rows": rows, "mean_success_rate": sum(r.success_rate for r in results) / len(results)}


def show(results: Sequence[TaskResult], console: Console | None = None) -> None:
    """Print a table, one line a task."""
    table = Table(title="unseen episodes, in lock step")
    table.add_column("task")
    for column in ("successes", "rate", "95 % interval", "steps", "inference ms p50 / p99"):
        table.add_column(column, justify="right")
    for r in results:
        low, high = r.ci95
        inference = f"{r.inference_ms['p50']:.1f} / {r.inference_ms['p99']:.1f}"
        interval = f"{low:.2f} - {high:.2f}"
        table.add_row(
            r.task,
            f"{r.successes} of {r.episodes}",
            f"{r.success_rate:.2f}",
            interval,
            f"{r.steps_mean:.0f}",
            inference,
        )
    console = console or Console()
    console.print(table)
    for r in results:
        held, steps = sum(r.held.values()), r.steps_mean * r.episodes
        if held > NOTABLE * steps:
            reasons = ", ".join(f"{reason} {count}" for reason, count in r.held.items())
            console.print(f"{r.task}: in {held / steps:.0%} of the control periods the robot was held ({reasons})")
