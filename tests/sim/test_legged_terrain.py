"""Ground: what was asked for, where it was asked for, and the same for MuJoCo's contacts as for our own look-up."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from sim.legged.figures import GO2
from sim.legged.mjcf import build_model
from sim.legged.terrain import KINDS, Terrain, flat, terrain_grid

LEVELS = 3


@pytest.fixture(scope="module")
def grid() -> Terrain:
    return terrain_grid(levels=LEVELS, seed=1)


def profile(grid: Terrain, kind: str, level: int) -> np.ndarray:
    """Heights from the middle of a tile to its border, along x."""
    x, y = grid.centre(grid.kinds.index(kind), level)
    along = np.arange(0.0, grid.tile / 2 - 1e-9, grid.resolution)
    return grid.height(np.stack((x + along, np.full_like(along, y)), axis=-1))


@pytest.mark.parametrize(("level", "step"), [(0, 0.05), (1, 0.14), (2, 0.23)])
@pytest.mark.parametrize(("kind", "sign"), [("stairs_up", 1), ("stairs_down", -1)])
def test_steps_are_as_high_as_the_level_says(grid, kind, sign, level, step):
    rises = np.diff(profile(grid, kind, level))
    rises = rises[np.abs(rises) > 1e-9]
    assert len(rises) >= 8
    np.testing.assert_allclose(rises, sign * step, atol=1e-9)


@pytest.mark.parametrize(("kind", "sign"), [("slope_up", 1), ("slope_down", -1)])
def test_slopes_are_as_steep_as_the_level_says(grid, kind, sign):
    for level, slope in enumerate((0.0, 0.2, 0.4)):
        rises = np.diff(profile(grid, kind, level)[30:]) / grid.resolution  # beyond the platform
        np.testing.assert_allclose(rises, sign * slope, atol=1e-9)


def test_rough_ground_gets_rougher(grid):
    amplitudes = [np.abs(profile(grid, "rough", level)).max() for level in range(LEVELS)]
    assert amplitudes[0] < amplitudes[1] < amplitudes[2] <= 0.05
    assert np.std(profile(grid, "rough_slope_up", 2) - profile(grid, "slope_up", 2)) > 0.005


def test_obstacles_leave_room_to_start(grid):
    heights = profile(grid, "obstacles", 2)
    assert not heights[: int(0.9 / grid.resolution)].any()
    tile = grid.kinds.index("obstacles")
    cells = round(grid.tile / grid.resolution)
    assert 0.05 < np.abs(grid.heights[tile * cells : (tile + 1) * cells, -cells:]).max() <= 0.2


def test_neighbours_meet_without_a_cliff(grid):
    cells = round(grid.tile / grid.resolution)
    assert np.abs(grid.heights[::cells]).max() <= 0.23 + 0.05  # at most the lowest step, and roughness
    assert np.abs(grid.heights[:, ::cells]).max() <= 0.23 + 0.05


def test_the_look_up_is_the_ground_that_mujoco_sees(grid):
    model = build_model(GO2, grid)
    data = mujoco.MjData(model)
    data.qpos[:3] = (0, 0, 500)
    mujoco.mj_forward(model, data)
    half = np.array([grid.levels, len(grid.kinds)]) * grid.tile / 2 - 0.1
    points = np.random.default_rng(0).uniform(-half, half, (300, 2))
    hit = np.zeros(1, dtype=np.int32)
    down = np.array([0.0, 0.0, -1.0])
    seen = [50 - mujoco.mj_ray(model, data, np.array([x, y, 50.0]), down, None, 1, -1, hit) for x, y in points]
    np.testing.assert_allclose(grid.height(points), seen, atol=1e-4)


def test_the_look_up_takes_any_shape_and_any_place(grid):
    points = np.random.default_rng(0).uniform(-1000, 1000, (4, 5, 2))
    assert grid.height(points).shape == (4, 5)
    assert np.isfinite(grid.height(points)).all()
    assert flat().height(points).tolist() == np.zeros((4, 5)).tolist()
    assert grid.centre(np.arange(3), 1).shape == (3, 2)


def test_friction_reaches_the_feet():
    model = build_model(GO2, Terrain(friction=0.15))
    assert model.geom("FR_foot").friction[0] == 0.15
    assert model.geom("FR_foot").priority[0] > model.geom("ground").priority[0]


def test_a_seed_is_a_terrain():
    same, other = terrain_grid(("rough",), 2, seed=4), terrain_grid(("rough",), 2, seed=5)
    np.testing.assert_array_equal(same.heights, terrain_grid(("rough",), 2, seed=4).heights)
    points = np.random.default_rng(0).uniform(-8, 8, (50, 2))
    assert not np.array_equal(same.height(points), other.height(points))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"kinds": ("lava",)}, "no terrain .'lava'.*stairs_up"),
        ({"kinds": ()}, "no terrain"),
        ({"levels": 0}, "at least 1 level"),
    ],
)
def test_nonsense_is_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        terrain_grid(**arguments)
    assert len(KINDS) == 9
