"""What a run comes to: one row an episode, the JSON of the whole, and the table that a person reads."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from episodes.files import write_json
from episodes.report import hardware, wilson_interval

WORTH_TELLING = 0.01  # of the processor time


@dataclass(frozen=True)
class EpisodeRow:
    """One episode of a run.

    Attributes:
        episode: its index in the run and the number of its file in the recording.
        seed: of the simulated body and of the policy's session.
        success: whether the body said so in time, or, where success is not to fail, nobody said that it failed.
        steps: control periods from the policy's first action to the end.
        seconds: the same in time.
        control: the controller's `statistics` of this episode: rate_hz, period_error_us, missed, periods.
        inference_ms: the policy's p50 and p99 of this episode.
        counters: refusals by reason, of controller and policy; those that are zero are left out.
        action_age_steps: commands by the control periods from the observation they answer to their own time.
        figures: what else the body found, by name, such as how far a robot walked; nothing of most.
        stolen_s: processor time that a hypervisor gave to others meanwhile (`stolen_seconds`).
        residual_noise: how noisy what was carried out still was (`noise_carried_out`); None: all was decided.
        stopped_by: why the controller stopped for good, which ended it; empty if it did not.
    """

    episode: int
    seed: int
    success: bool
    steps: int
    seconds: float
    control: Mapping[str, Any]
    inference_ms: Mapping[str, float]
    counters: Mapping[str, int] = field(default_factory=dict)
    action_age_steps: Mapping[str, int] = field(default_factory=dict)
    residual_noise: Mapping[str, float] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    stolen_s: float = 0.0
    stopped_by: Sequence[str] = ()

    @property
    def missed(self) -> int:
        """Control periods that took longer than one and a half."""
        return int(self.control["missed"])


@dataclass(frozen=True)
class RunReport:
    """A whole run, complete or broken off (`ended_by` says why); `how`: what else was chosen, by name."""

    robot: str
    policy: str
    task: str
    seed: int
    rate_hz: float
    rows: Sequence[EpisodeRow]
    bag: str
    ended_by: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def successes(self) -> int:
        """Episodes that succeeded."""
        return sum(row.success for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of the run. Timing figures are those of the median episode; `max` is the worst of all.

        `figures` are means of the episodes; `stolen` is the share of processor time that a hypervisor gave to others.
        """
        count = len(self.rows)
        ages = self._ages()
        return {
            "robot": self.robot,
            "policy": self.policy,
            "task": self.task,
            "seed": self.seed,
            **self.how,
            "episodes": count,
            "successes": self.successes,
            "success_rate": self.successes / count if count else None,
            "ci95": list(wilson_interval(self.successes, count)),
            "control": self._control(),
            "inference_ms": {p: _median(r.inference_ms.get(p) for r in self.rows) for p in ("p50", "p99")},
            "rows": [asdict(row) | {"missed": row.missed} for row in self.rows],
            "counters": dict(sum((Counter(row.counters) for row in self.rows), Counter())),
            "action_age_steps": {str(age): count for age, count in sorted(ages.items())},
            "residual_noise": self._residual_noise(),
            "figures": self._figures(),
            "bag": self.bag,
            "hardware": hardware(),
            "stolen": round(self._stolen(), 4),
            "ended_by": self.ended_by,
        }

    def write(self, path: Path) -> None:
        """Write the JSON; a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict())

    def show(self, console: Console) -> None:
        """Print a table, one line an episode, and the sum."""
        table = Table(title=f"{self.task} on {self.robot}, {self.rate_hz:g} Hz")
        for column in ("episode", "seed", "success", "seconds", "missed", "period p99", "inference p50"):
            table.add_column(column, justify="right")
        for row in self.rows:
            table.add_row(
                str(row.episode),
                str(row.seed),
                "[green]yes[/]" if row.success else "[red]no[/]",
                f"{row.seconds:.2f}",
                str(row.missed),
                _number(row.control["period_error_us"].get("p99"), "us"),
                _number(row.inference_ms.get("p50"), "ms"),
            )
        console.print(table)
        for row in self.rows:
            if row.stopped_by:
                console.print(f"episode {row.episode}: the controller stopped ({', '.join(row.stopped_by)})")
        low, high = wilson_interval(self.successes, len(self.rows))
        console.print(f"{self.successes} of {len(self.rows)} succeeded (95 % interval {low:.2f} to {high:.2f})")
        if ages := self._ages():
            usual = statistics.median_low(ages.elements())
            console.print(f"commands followed observations {usual} control periods old, at most {max(ages)}")
        if (stolen := self._stolen()) >= WORTH_TELLING:
            console.print(
                f"[yellow]the hypervisor gave {100 * stolen:.1f} % of this virtual machine's processor time to others: "
                "that alone can make a period be missed[/]"
            )
        if figures := self._figures():
            console.print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + ", an episode")
        console.print(f"recording: {self.bag}", soft_wrap=True)

    def _figures(self) -> dict[str, float]:
        """Means of the figures that every episode has."""
        shared = (
            [name for name in self.rows[0].figures if all(name in r.figures for r in self.rows)] if self.rows else []
        )
        return {name: round(statistics.fmean(r.figures[name] for r in self.rows), 4) for name in shared}

    def _stolen(self) -> float:
        """Share of all cores' time that a hypervisor gave to others, within [0, 1]."""
        seconds = sum(row.seconds for row in self.rows) * hardware()["cores"]
        return min(1.0, sum(row.stolen_s for row in self.rows) / seconds) if seconds else 0.0

    def _ages(self) -> Counter[int]:
        """Commands of all episodes by their age."""
        ages: Counter[int] = Counter()
        for row in self.rows:
            ages.update({int(age): count for age, count in row.action_age_steps.items()})
        return ages

    def _residual_noise(self) -> dict[str, float] | None:
        """Of all episodes: the mean over their commands, and the largest."""
        known = [(row.residual_noise, sum(row.action_age_steps.values())) for row in self.rows if row.residual_noise]
        if not known:
            return None
        total = sum(commands for _, commands in known)
        mean = sum(noise["mean"] * commands for noise, commands in known) / total
        return {"mean": round(mean, 4), "max": max(noise["max"] for noise, _ in known)}

    def _control(self) -> dict[str, Any]:
        errors = [row.control["period_error_us"] for row in self.rows]
        worst = max((e["max"] for e in errors if e.get("max") is not None), default=None)
        return {
            "rate_hz": self.rate_hz,
            "period_error_us": {p: _median(e.get(p) for e in errors) for p in ("p50", "p99")} | {"max": worst},
            "missed": _median(row.missed for row in self.rows),
            "missed_in_all": sum(row.missed for row in self.rows),
            "periods": sum(int(row.control["periods"]) for row in self.rows),
        }


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f} {unit}" if unit == "us" else f"{value:.1f} {unit}"
