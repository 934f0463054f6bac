"""What robots are put through by `benchmarks.robustness`: pushes, loads, slippery or rough ground, late commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.legged.batch import SUBSTEPS, BatchedQuadruped
from sim.legged.commands import CommandRanges
from sim.legged.episode import TaskConfig
from sim.legged.figures import load_figures
from sim.legged.mjcf import TIMESTEP
from sim.legged.randomization import NOMINAL, Randomization
from sim.legged.task import LocomotionTask
from sim.legged.terrain import KINDS, Terrain, flat, terrain_grid

PERIOD_S = SUBSTEPS * TIMESTEP
RESAMPLED_S = 0.5  # `continuous`: until another force
PUSH_S, EVERY_S = 0.5, 4.0  # `sudden`: how long a push lasts, and from one to the next
TILES = 9  # along each side of rough ground: 72 m, further than a robot comes in 20 s from the middle
TERRAIN = "terrain-"

Forces = Callable[[int, NDArray[np.float32]], NDArray[np.float64]]
"""Step and what a disturber sees [N, P], to forces in the robots' heading frames, N, [N, 3]."""


@dataclass(frozen=True)
class Regime:
    """One way to make walking hard.

    Attributes:
        name: of it.
        text: what happens, for people.
        levels: how much of it, one cell each.
        unit: of the levels.
    """

    name: str
    text: str
    levels: tuple[float, ...] = (0.0,)
    unit: str = ""


@dataclass(frozen=True)
class Condition:
    """A regime at one level: what a cell of the table is measured in."""

    regime: Regime
    level: float

    @property
    def force_n(self) -> float | None:
        """Bound of the forces, N; None where there are none."""
        return self.level if self.regime.unit == "N" else None

    def __str__(self) -> str:
        leveled = self.regime.unit or len(self.regime.levels) > 1
        return f"{self.regime.name} {self.level:g} {self.regime.unit}".rstrip() if leveled else self.regime.name


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("undisturbed", "flat ground, nothing else"),
        Regime(
            "continuous",
            "a force on the trunk, along each of x, y, z uniform within +-F, another one every 0.5 s",
            (30.0, 60.0, 100.0, 150.0),
            "N",
        ),
        Regime(
            "sudden",
            "a horizontal push of F in a random direction, for 0.5 s, every 4 s",
            (60.0, 100.0, 150.0, 200.0, 300.0),
            "N",
        ),
        Regime(
            "adversary",
            "forces of up to F, chosen by a disturber that was trained against this very policy",
            (30.0, 60.0, 100.0),
            "N",
        ),
        Regime("payload", "more mass on the trunk", (0.0, 2.0, 4.0, 6.0), "kg"),
        Regime("friction", "sliding friction coefficient of the ground", (0.2, 0.4, 0.7, 1.0)),
        Regime("latency", "commands take effect later", (0.0, 5.0, 10.0, 20.0), "ms"),
        *(Regime(f"{TERRAIN}{kind}", "ground of this kind, of medium difficulty, wherever one goes") for kind in KINDS),
    )
}
"""All there are, by name."""


def chosen(names: list[str]) -> list[Condition]:
    """The conditions of regimes by name; `terrain` is every kind of ground, `all` is everything.

    `NAME:LEVEL,LEVEL` is a regime at other levels than its own. Raises ValueError.
    """
    wanted: dict[str, Regime] = {}
    told: dict[str, str] = {}  # regime -> its levels, where some were chosen
    for name in names:
        name, _, levels = name.partition(":")
        if levels and told.setdefault(name, levels) != levels:
            raise ValueError(f"{name} is named twice; its levels go together: {name}:{told[name]},{levels}")
        found = [r for r in REGIMES if name in (r, "all") or (name == "terrain" and r.startswith(TERRAIN))]
        if not found:
            raise ValueError(f"no regime {name!r}; there are {', '.join(REGIMES)}; terrain (every kind); all")
        if levels and not (len(found) == 1 and len(REGIMES[name].levels) > 1):
            raise ValueError(f"{name} has no levels, so {levels!r} cannot be chosen of them")
        wanted |= {r: replace(REGIMES[r], levels=_levels(name, levels)) if levels else REGIMES[r] for r in found}
    return [Condition(regime, level) for regime in wanted.values() for level in regime.levels]


def _levels(name: str, words: str) -> tuple[float, ...]:
    """Numbers of a regime. Raises ValueError."""
    try:
        levels = tuple(dict.fromkeys(float(word) for word in words.split(",")))
    except ValueError:
        raise ValueError(f"{name}:{words}: levels are numbers with commas between, such as {name}:80,120") from None
    if not all(0 <= level < np.inf for level in levels):
        raise ValueError(f"{name}:{words}: levels must be finite and not negative")
    return levels


def make_task(
    robot: str, condition: Condition, count: int, seed: int, threads: int, episode_s: float, restart: bool
) -> LocomotionTask:
    """Robots at the task, in a condition but for its forces.

    Commands within +-1 m/s and +-1 rad/s, drawn anew every 10 s; measurement noise; the published figures otherwise.

    Args:
        robot: its name.
        condition: to be in.
        count: environments.
        seed: of commands, starts, noise and ground; conditions on the same ground share all of them.
        threads: that step.
        episode_s: s.
        restart: for training: episodes follow one another, and the first ones have random ages.
    """
    config = TaskConfig(episode_s=episode_s, commands=CommandRanges(start=1.0), random_ages=restart)
    ground = _ground(condition.regime.name, seed)
    robots = BatchedQuadruped(
        load_figures(robot), ground, count, seed, _randomization(condition), pool=1, threads=threads
    )
    return LocomotionTask(robots, seed, config, restart)


def drawn_forces(condition: Condition, count: int, steps: int, seed: int) -> Forces | None:
    """The forces of `continuous` and `sudden`, the same whoever walks: None in a condition that has none.

    Those of another level have the same directions and times, and other sizes.

    Args:
        condition: to be in.
        count: environments.
        steps: control periods of an episode.
        seed: of the forces.
    """
    rng = np.random.default_rng(seed)
    if condition.regime.name == "continuous":
        hold = round(RESAMPLED_S / PERIOD_S)
        drawn = condition.level * rng.uniform(-1, 1, (steps // hold + 1, count, 3))
        return lambda step, privileged: drawn[step // hold]
    if condition.regime.name == "sudden":
        every, hold = round(EVERY_S / PERIOD_S), round(PUSH_S / PERIOD_S)
        first = rng.integers(every - hold + 1, size=count)
        angle = rng.uniform(-np.pi, np.pi, (steps // every + 1, count))
        pushes = condition.level * np.stack((np.cos(angle), np.sin(angle), np.zeros_like(angle)), axis=-1)

        def push(step: int, privileged: NDArray[np.float32]) -> NDArray[np.float64]:
            since = step % every - first
            return pushes[step // every] * ((since >= 0) & (since < hold))[:, None]

        return push
    return None


def _randomization(condition: Condition) -> Randomization:
    level = condition.level
    if condition.regime.name == "payload":
        return replace(NOMINAL, payload=(level, level))
    if condition.regime.name == "friction":
        return replace(NOMINAL, friction=(level, level))
    if condition.regime.name == "latency":
        delay = round(level / 1e3 / TIMESTEP)
        return replace(NOMINAL, delay=(delay, delay))
    return NOMINAL


def _ground(regime: str, seed: int) -> Terrain:
    """A plane, or many different tiles of one kind, all as difficult as the middle of what there is to train on.

    They are given out as a single big tile, in whose middle, the platform of the tile there, all robots start.
    """
    if not regime.startswith(TERRAIN):
        return flat()
    kind = regime.removeprefix(TERRAIN)
    made = terrain_grid((kind,) * TILES**2, levels=3, seed=seed)  # of difficulties 0, 0.5 and 1
    assert made.heights is not None
    cells = round(made.tile / made.resolution)
    medium = made.heights[:-1, cells : 2 * cells].reshape(TILES, TILES, cells, cells)
    heights = np.zeros((TILES * cells + 1,) * 2)
    heights[:-1, :-1] = medium.transpose(0, 2, 1, 3).reshape(TILES * cells, TILES * cells)
    side = TILES * made.tile
    return Terrain(made.friction, heights, made.resolution, (-side / 2, -side / 2), (kind,), 1, side)
