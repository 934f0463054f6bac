"""What the episodes of `benchmarks.robustness` say: rows, groups of policies, and paired differences between groups."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.robustness_episodes import Episodes
from benchmarks.robustness_regimes import REGIMES, Condition
from episodes.report import wilson_interval

RESAMPLES = 4000
WIDTH = 160  # of tables in a log
FIGURES = ("survival", "tracking_error")
INTERVAL = {"survival": "ci95", "tracking_error": "tracking_error_ci95"}  # what their 95 % intervals are called

SECTORS = ("forward", "forward left", "left", "back left", "back", "back right", "right", "forward right")
"""Eighths of all horizontal directions, counted to the left."""

Array = NDArray[np.float64]
Interval = tuple[float, float]
Cells = Mapping[Condition, Sequence[Episodes]]
"""Of one group: what each of its policies did, in the same order everywhere."""


class Bootstrap:
    """95 % intervals of means over policies and episodes, and of their differences between two groups.

    Episodes are drawn with replacement, the same ones of all that is compared, since episode i is the same for every
    policy. The policies of a group are drawn too, since other training seeds would have given others: of two or three
    that says roughly how much seeds matter, which is better than to leave it out. Groups of as many policies each are
    compared pair by pair, since those are named in the order of their training seeds, and runs of one seed have their
    beginning in common. The same numbers give the same intervals.
    """

    def __init__(self, episodes: int) -> None:
        self._rng = np.random.default_rng(1)
        self._episodes = _shares(episodes)

    def mean(self, values: Array) -> Interval:
        """Of `values` [policies, episodes]."""
        return _percentiles(self._means(values))

    def difference(self, a: Array, b: Array) -> Interval:
        """Of the mean of `a` [policies, episodes] minus that of `b` [other policies, the same episodes]."""
        return self.mean(a - b) if len(a) == len(b) else _percentiles(self._means(a) - self._means(b))

    def _means(self, values: Array) -> Array:
        """Of all the draws, [RESAMPLES]."""
        count = len(values)
        policies = self._rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
        return ((self._episodes @ values.T) * policies).sum(axis=1)


@functools.cache
def _shares(episodes: int) -> Array:
    """How much each episode counts in each draw, [RESAMPLES, episodes]."""
    drawn = np.random.default_rng(0).multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES)
    return drawn / episodes


def policy_row(policy: str, group: str, condition: Condition, episodes: Episodes) -> dict[str, Any]:
    """The row of one policy in one condition."""
    return _named(policy, group, condition) | _figures([episodes], condition)


def group_rows(group: str, cells: Cells) -> list[dict[str, Any]]:
    """The rows of a group in every condition, then its mean over the levels of each regime that has several."""
    rows = []
    for condition, found in cells.items():
        rates = [float(episodes.survived.mean()) for episodes in found]
        spread = {"policies": len(found), "lowest": min(rates), "highest": max(rates)}
        rows.append(_named("", group, condition) | _figures(found, condition) | spread)
    for regime, together in _whole(cells).items():
        row: dict[str, Any] = {"group": group, "regime": regime, "level": None, "policies": len(together["survival"])}
        bootstrap = Bootstrap(together["survival"].shape[1])
        for name, values in together.items():
            row |= {name: float(values.mean()), INTERVAL[name]: _widened(name, bootstrap.mean(values), values)}
        rows.append(row)
    return rows


def differences(groups: Mapping[str, Cells]) -> list[dict[str, Any]]:
    """Of every two groups, the first minus the second: in each condition, and over all levels of a regime."""
    rows = []
    for (name_a, a), (name_b, b) in itertools.combinations(groups.items(), 2):
        parts: dict[tuple[str, float | None, str], tuple[dict[str, Array], dict[str, Array]]] = {
            (c.regime.name, c.level, c.regime.unit): (_values(a[c]), _values(b[c])) for c in a if c in b
        }
        whole_a, whole_b = _whole(a), _whole(b)
        parts |= {(name, None, ""): (whole_a[name], whole_b[name]) for name in whole_a if name in whole_b}
        for (regime, level, unit), (of_a, of_b) in parts.items():
            row: dict[str, Any] = {"first": name_a, "second": name_b, "regime": regime, "level": level, "unit": unit}
            bootstrap = Bootstrap(of_a["survival"].shape[1])
            for name in FIGURES:
                x, y = of_a[name], of_b[name]
                interval = bootstrap.difference(x, y)
                if name == "survival" and not (x.mean(axis=0) - y.mean(axis=0)).any():
                    bound = wilson_interval(0, x.shape[1])[1]
                    interval = (-bound, bound)  # that no episode differed does not mean that none would
                row |= {name: float(x.mean() - y.mean()), INTERVAL[name]: interval}
            rows.append(row)
    return rows


def pushed_when_falling(found: Sequence[Episodes]) -> dict[str, Any]:
    """Where robots were being pushed when they fell: to tell a weakness from bad luck.

    Returns:
        {"falls": how many, "toward": {one of SECTORS: falls while pushed that way}, "push_n": mean push, forward,
        left and up, N; None without a fall}. Falls without a horizontal push are not in `toward`.
    """
    pushes = np.concatenate([episodes.push[~episodes.survived & ~episodes.diverged] for episodes in found])
    pushed = pushes[np.linalg.norm(pushes[:, :2], axis=1) > 0]
    eighths = np.rint(np.arctan2(pushed[:, 1], pushed[:, 0]) / (np.pi / 4)).astype(int) % len(SECTORS)
    counts = np.bincount(eighths, minlength=len(SECTORS)).tolist()
    mean = pushes.mean(axis=0).tolist() if len(pushes) else None
    return {"falls": len(pushes), "toward": dict(zip(SECTORS, counts, strict=True)), "push_n": mean}


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the tables of what `benchmarks.robustness` writes."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    table = _table("survival and tracking error of each policy", "policy")
    for row in result["rows"]:
        table.add_row(row["policy"], _condition(row), *_cells(row, ""))
    console.print(table)
    fell = [row for row in result["rows"] if sum(row["pushed_when_falling"]["toward"].values())]
    if fell:
        console.print(_falls_table(fell))
    several = [row for row in result["groups"] if row["policies"] > 1 or row["level"] is None]
    if several:
        table = _table("policies of a group together; `all` is the mean over the levels", "group")
        for row in several:
            table.add_row(f"{row['group']} ({row['policies']})", _condition(row), *_cells(row, ""))
        console.print(table)
    if result["differences"]:
        table = _table("paired differences: first minus second", "groups")
        for row in result["differences"]:
            table.add_row(f"{row['first']} - {row['second']}", _condition(row), *_cells(row, "+"))
        console.print(table)


def _named(policy: str, group: str, condition: Condition) -> dict[str, Any]:
    return {
        "policy": policy,
        "group": group,
        "regime": condition.regime.name,
        "level": condition.level,
        "unit": condition.regime.unit,
        "force_n": condition.force_n,
    }


def _figures(found: Sequence[Episodes], condition: Condition) -> dict[str, Any]:
    """Of one or several policies in one condition; Wilson's interval takes all their episodes for independent."""
    values = _values(found)
    survived, count = int(values["survival"].sum()), values["survival"].size
    return {
        "episodes": count,
        "survived": survived,
        "survival": survived / count,
        INTERVAL["survival"]: wilson_interval(survived, count),
        "tracking_error": float(values["tracking_error"].mean()),
        INTERVAL["tracking_error"]: Bootstrap(values["tracking_error"].shape[1]).mean(values["tracking_error"]),
        "alive_s": float(np.mean([episodes.alive_s.mean() for episodes in found])),
        "diverged": int(sum(episodes.diverged.sum() for episodes in found)),
        "left_the_ground": int(sum(episodes.left.sum() for episodes in found)),
        "pushed_when_falling": pushed_when_falling(found),
    }


def _values(found: Sequence[Episodes]) -> dict[str, Array]:
    """Survival (0 or 1) and tracking error, [policies, episodes]."""
    return {
        "survival": np.stack([episodes.survived.astype(float) for episodes in found]),
        "tracking_error": np.stack([episodes.tracking_error for episodes in found]),
    }


def _whole(cells: Cells) -> dict[str, dict[str, Array]]:
    """Of each regime with all of its several levels measured: the mean over them, episode by episode."""
    found: dict[str, list[dict[str, Array]]] = {}
    complete = {condition.regime.name: len(condition.regime.levels) for condition in cells}
    for condition, episodes in cells.items():
        found.setdefault(condition.regime.name, []).append(_values(episodes))
    return {
        name: {figure: np.mean([values[figure] for values in levels], axis=0) for figure in FIGURES}
        for name, levels in found.items()
        if len(levels) == complete[name] > 1
    }


def _widened(name: str, interval: Interval, values: Array) -> Interval:
    """Where every episode of all levels survived, or none did, drawing them again shows no spread: Wilson's then."""
    if name != "survival" or values.min() != values.max():
        return interval
    return wilson_interval(round(values.mean() * values.shape[1]), values.shape[1])


def _percentiles(means: Array) -> Interval:
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _table(title: str, first: str) -> Table:
    table = Table(title=title)
    for column in (first, "regime"):
        table.add_column(column, overflow="fold")
    for column in ("survival (95 %)", "tracking error m/s (95 %)"):
        table.add_column(column, justify="right")
    return table


def _falls_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="where robots were being pushed in the half second before they fell")
    for column in ("policy", "regime"):
        table.add_column(column, overflow="fold")
    for column in ("falls", *SECTORS, "upward N"):
        table.add_column(column, justify="right")
    for row in rows:
        pushed = row["pushed_when_falling"]
        counts = (pushed["falls"], *pushed["toward"].values())
        table.add_row(row["policy"], _condition(row), *map(str, counts), f"{pushed['push_n'][2]:.0f}")
    return table


def _condition(row: dict[str, Any]) -> str:
    if row["level"] is None:
        return f"{row['regime']} all"
    return str(Condition(REGIMES[row["regime"]], row["level"]))


def _cells(row: dict[str, Any], sign: str) -> list[str]:
    texts = []
    for name in FIGURES:
        low, high = row[INTERVAL[name]]
        texts.append(f"{row[name]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})")
    return texts
