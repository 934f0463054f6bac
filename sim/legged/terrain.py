"""Ground to walk on: a plane, or one height field with a tile for every kind of ground at every difficulty.

One height field and not one model a tile: an environment changes its tile by being put down elsewhere, whatever its
model's masses and gains, so curriculum and randomisation stay independent. Flat ground is a plane, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

TILE_M = 8.0
RESOLUTION_M = 0.05
PLATFORM_M = 2.0  # flat in the middle of every tile, for the robot to start from
STEP_DEPTH_M = 0.3
STEP_HEIGHT_M = (0.05, 0.23)  # of difficulty 0 and 1, as HIMLoco trains on
MAX_SLOPE = 0.4  # rise over run
ROUGHNESS_M = (0.01, 0.05)
ROUGHNESS_CELL_M = 0.2
OBSTACLES = 20
OBSTACLE_HEIGHT_M = (0.05, 0.2)
OBSTACLE_SIZE_M = (0.4, 1.6)

TERRAINS: dict[str, tuple[str, ...] | None] = {"flat": (), "rough": ("flat", "rough"), "all": None}
"""Kinds of ground (of KINDS) that go by one name: a plane, two kinds, every kind."""

Heights = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Terrain:
    """The ground.

    Attributes:
        friction: sliding friction coefficient of every contact with it.
        heights: [rows (y), columns (x)], m; None: the plane z = 0, without end.
        resolution: between two heights, m.
        origin: x, y of heights[0, 0], m.
        kinds: names of the rows of tiles, in the direction of y; () of a plane.
        levels: tiles in a row, in the direction of x: difficulty from 0 to 1; 1 of a plane.
        tile: length of a tile's side, m.
    """

    friction: float = 1.0
    heights: Heights | None = None
    resolution: float = RESOLUTION_M
    origin: tuple[float, float] = (0.0, 0.0)
    kinds: tuple[str, ...] = ()
    levels: int = 1
    tile: float = TILE_M

    @cached_property
    def range(self) -> tuple[float, float]:
        """Lowest and highest height, m; never equal, as MuJoCo wants it."""
        if self.heights is None:
            return 0.0, 0.0
        low, high = float(self.heights.min()), float(self.heights.max())
        return low, max(high, low + 1e-3)

    def normalized(self) -> NDArray[np.float32]:
        """Heights in [0, 1], as MuJoCo keeps them. Raises ValueError of a plane, which has none."""
        if self.heights is None:
            raise ValueError("a plane has no height field")
        low, high = self.range
        return ((self.heights - low) / (high - low)).astype(np.float32)

    def height(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the ground at points [..., 2] in the world, m: [...]. Beyond the field's border, the border's.

        The same triangles that MuJoCo's contacts see: each cell is cut from its corner (x, y) to (x + 1, y + 1).
        """
        if self.heights is None:
            return np.zeros(xy.shape[:-1])
        rows, columns = self.heights.shape
        cells = (np.asarray(xy) - self.origin) / self.resolution
        u = np.clip(cells[..., 0], 0, columns - 1)
        v = np.clip(cells[..., 1], 0, rows - 1)
        column = np.minimum(u.astype(np.int64), columns - 2)
        row = np.minimum(v.astype(np.int64), rows - 2)
        u, v = u - column, v - row
        here, there = self.heights[row, column], self.heights[row + 1, column + 1]
        right, up = self.heights[row, column + 1], self.heights[row + 1, column]
        below = here * (1 - u) + right * (u - v) + there * v
        above = here * (1 - v) + up * (v - u) + there * u
        return np.where(u >= v, below, above)

    def centre(self, kind: NDArray[np.int64] | int, level: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """x, y of the middle of tiles, m: [..., 2]; of a plane, always the origin.

        Args:
            kind: index into `kinds`.
            level: in [0, levels).
        """
        kind, level = np.broadcast_arrays(kind, level)
        if self.heights is None:
            return np.zeros((*kind.shape, 2))
        return np.stack((level + 0.5, kind + 0.5), axis=-1) * self.tile + np.array(self.origin)


def named_terrain(name: str, seed: int) -> Terrain:
    """One of TERRAINS; `seed`: of what is random in it. Raises ValueError naming what there is."""
    if name not in TERRAINS:
        raise ValueError(f"no terrain {name!r}; there are {', '.join(TERRAINS)}")
    return flat() if name == "flat" else terrain_grid(TERRAINS[name], seed=seed)


def flat() -> Terrain:
    """A plane without end."""
    return Terrain()


def terrain_grid(kinds: tuple[str, ...] | None = None, levels: int = 10, seed: int = 0) -> Terrain:
    """Tiles side by side: kinds in the direction of y, difficulty in the direction of x, from 0 to 1 in even steps.

    All tiles are at height 0 along their borders (but for roughness), so a robot may walk from one into the next.

    Args:
        kinds: of KINDS; None: all of them.
        levels: how many difficulties; a single one is 1.
        seed: of what is random in them.

    Raises:
        ValueError: an unknown kind, or no level.
    """
    kinds = tuple(KINDS) if kinds is None else kinds
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"no terrain {unknown}; there are {', '.join(KINDS)}")
    if levels < 1:
        raise ValueError(f"at least 1 level is needed, not {levels}")
    cells = round(TILE_M / RESOLUTION_M)
    heights = np.zeros((len(kinds) * cells + 1, levels * cells + 1))
    rng = np.random.default_rng(seed)
    for row, kind in enumerate(kinds):
        for column in range(levels):
            difficulty = column / (levels - 1) if levels > 1 else 1.0
            place = np.s_[row * cells : (row + 1) * cells, column * cells : (column + 1) * cells]
            heights[place] = KINDS[kind](_Tile(cells, RESOLUTION_M, difficulty, rng))
    origin = (-levels * TILE_M / 2, -len(kinds) * TILE_M / 2)
    return Terrain(heights=heights, origin=origin, kinds=kinds, levels=levels)


# -- kinds of ground ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """What a kind of ground is made from: cells a side, their size in m, difficulty in [0, 1], randomness."""

    cells: int
    resolution: float
    difficulty: float
    rng: np.random.Generator

    def between(self, easiest: float, hardest: float) -> float:
        """At this difficulty."""
        return easiest + self.difficulty * (hardest - easiest)

    @property
    def inward(self) -> Heights:
        """Distance from the border toward the middle in the maximum norm, 0 at the border, up to the platform, m."""
        from_middle = np.abs(np.arange(self.cells) - self.cells // 2) * self.resolution
        half = self.cells // 2 * self.resolution
        distance = half - np.maximum(from_middle[:, None], from_middle[None, :])
        return np.minimum(distance, half - PLATFORM_M / 2)


def _flat(tile: _Tile) -> Heights:
    return np.zeros((tile.cells, tile.cells))


def _slope(tile: _Tile) -> Heights:
    """Uphill from the middle: a pit."""
    return -tile.between(0.0, MAX_SLOPE) * tile.inward


def _rough(tile: _Tile) -> Heights:
    """Every 0.2 m another height, and a plane between them."""
    amplitude = tile.between(*ROUGHNESS_M)
    stride = max(1, round(ROUGHNESS_CELL_M / tile.resolution))
    knots = np.arange(0, tile.cells + stride, stride)
    coarse = tile.rng.uniform(-amplitude, amplitude, (len(knots), len(knots)))
    at = np.arange(tile.cells)
    rows = np.stack([np.interp(at, knots, row) for row in coarse])
    return np.stack([np.interp(at, knots, column) for column in rows.T], axis=1)


def _stairs(tile: _Tile) -> Heights:
    """Down from the middle: a pyramid of steps of one height."""
    steps = np.floor(tile.inward / STEP_DEPTH_M + 1e-6)
    return tile.between(*STEP_HEIGHT_M) * steps


def _obstacles(tile: _Tile) -> Heights:
    """Flat boxes and shallow holes, none on the platform."""
    heights = _flat(tile)
    tallest = tile.between(*OBSTACLE_HEIGHT_M)
    for _ in range(OBSTACLES):
        sides = np.round(tile.rng.uniform(*OBSTACLE_SIZE_M, 2) / tile.resolution).astype(int)
        row, column = tile.rng.integers(1, tile.cells - sides)
        heights[row : row + sides[0], column : column + sides[1]] = tile.rng.choice((-1, -0.5, 0.5, 1)) * tallest
    return np.where(tile.inward < tile.inward.max(), heights, 0.0)


KINDS: dict[str, Callable[[_Tile], Heights]] = {
    "flat": _flat,
    "rough": _rough,
    "slope_up": _slope,
    "slope_down": lambda tile: -_slope(tile),
    "rough_slope_up": lambda tile: _slope(tile) + _rough(tile),
    "rough_slope_down": lambda tile: _rough(tile) - _slope(tile),
    "stairs_up": lambda tile: -_stairs(tile),
    "stairs_down": _stairs,
    "obstacles": _obstacles,
}
"""Kinds of ground by name; up and down are as a robot sees them that walks from the middle outward."""
