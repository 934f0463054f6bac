"""What only a simulator knows of a robot: for the critic and for the disturber."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.legged.figures import JOINTS, LEGS
from sim.legged.state import Array, QuadrupedState, heading, turn
from sim.legged.terrain import Terrain

VELOCITY_SCALE = 2.0
FORCE_SCALE = 0.01  # of newtons
HEIGHT_SCALE = 5.0  # of metres
CLIP = 100.0
SCAN = np.array([[(x, y) for x in (-0.6, -0.3, 0.0, 0.3, 0.6) for y in (-0.3, 0.0, 0.3)]])
"""Where the ground is looked at: about the trunk, turned with its heading, m, [1, 15, 2]."""

VELOCITY = slice(9 + 3 * len(JOINTS), 9 + 3 * len(JOINTS) + 3)
"""Where the trunk's velocity stands."""

PRIVILEGED_SIZE = 9 + 3 * len(JOINTS) + 3 + 3 + len(LEGS) + 1 + 1 + 7 + SCAN.shape[1]


def privileged_observation(
    observation: NDArray[np.float32],
    state: QuadrupedState,
    force: Array,
    delay: NDArray[np.int64],
    parameters: Array,
    standing_height: float,
    terrain: Terrain,
) -> NDArray[np.float32]:
    """Of K robots, scaled to the order of 1, [K, PRIVILEGED_SIZE].

    Args:
        observation: what the actor would see without noise, [K, 45].
        state: of the robots.
        force: on their trunks, in the frame of their heading, N, [K, 3].
        delay: of their commands, physics steps, [K].
        parameters: of their models (`ModelPool.scaled_parameters`), [K, 7].
        standing_height: of the trunk, m.
        terrain: the ground.
    """
    parts = (
        observation,
        VELOCITY_SCALE * state.linear_velocity,
        FORCE_SCALE * force,
        state.foot_contact,
        HEIGHT_SCALE * (state.height - standing_height)[:, None],
        delay[:, None],
        parameters,
        HEIGHT_SCALE * _scan(state, terrain),
    )
    return np.clip(np.concatenate(parts, axis=1, dtype=np.float32), -CLIP, CLIP)


def _scan(state: QuadrupedState, terrain: Terrain) -> Array:
    """Height of the ground about the trunks, above that right below them, m, [K, 15]."""
    if terrain.heights is None:
        return np.zeros((len(state.position), SCAN.shape[1]))
    around = turn(SCAN, heading(state.orientation))
    below = state.position[:, 2] - state.height
    return terrain.height(state.position[:, None, :2] + around) - below[:, None]
