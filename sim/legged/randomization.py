"""Robots that differ as real ones do: a pool of models with other masses, centres of mass, friction and gains."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.legged.figures import QuadrupedFigures
from sim.legged.mjcf import TRUNK, build_model
from sim.legged.terrain import Terrain

if TYPE_CHECKING:
    import mujoco

Array = NDArray[np.float64]
Range = tuple[float, float]


@dataclass(frozen=True)
class Randomization:
    """Ranges, drawn from uniformly.

    Attributes:
        payload: added to the trunk's mass, kg.
        com_shift: of the trunk's centre of mass, along each axis, m.
        friction: sliding friction coefficient of the feet; None: the terrain's.
        stiffness, damping: factors of kp and kd, the same at all joints.
        delay: physics steps until a new command takes effect; both ends included. Of an environment, not of a model.
    """

    payload: Range = (-1.0, 2.0)
    com_shift: Range = (-0.05, 0.05)
    friction: Range | None = (0.2, 1.25)
    stiffness: Range = (0.9, 1.1)
    damping: Range = (0.9, 1.1)
    delay: tuple[int, int] = (0, 4)


HIMLOCO = Randomization()
"""What HIMLoco (arXiv 2312.11460) trains with; but delays last up to a whole period, as on a body that ROS drives."""

NOMINAL = Randomization((0.0, 0.0), (0.0, 0.0), None, (1.0, 1.0), (1.0, 1.0), (0, 0))
"""The published figures and no delay."""


@dataclass(frozen=True, eq=False)
class ModelPool:
    """Models of one robot on one terrain, and what was drawn for each: one row a model.

    Attributes:
        models: compatible with each other; do not change them.
        payload: kg, [M].
        com_shift: m, [M, 3].
        friction: [M].
        stiffness, damping: factors, [M].
    """

    models: tuple[mujoco.MjModel, ...]
    payload: Array
    com_shift: Array
    friction: Array
    stiffness: Array
    damping: Array

    @property
    def parameters(self) -> Array:
        """All that was drawn, [M, 7]: what a critic may know of a model."""
        scalars = (self.payload, self.friction, self.stiffness, self.damping)
        return np.column_stack((*scalars, self.com_shift))

    @property
    def scaled_parameters(self) -> Array:
        """The same about their nominal values, of the order of 1 within HIMLOCO, [M, 7]."""
        return (self.parameters - (0, 1, 1, 1, 0, 0, 0)) * (0.5, 1, 10, 10, 20, 20, 20)


def sample_models(
    figures: QuadrupedFigures,
    terrain: Terrain,
    randomization: Randomization,
    count: int,
    seed: int,
    body_contacts: bool = False,
) -> ModelPool:
    """A pool of `count` models. Each has its own copy of a height field: a grid of all kinds is 9 MB a model.

    Raises:
        ValueError: no model, or a payload that leaves no trunk.
    """
    import mujoco

    if count < 1:
        raise ValueError(f"at least 1 model is needed, not {count}")
    if figures.trunk.mass + randomization.payload[0] <= 0:
        raise ValueError(f"a payload of {randomization.payload[0]} kg leaves no trunk of {figures.trunk.mass} kg")
    rng = np.random.default_rng(seed)
    friction = randomization.friction or (terrain.friction, terrain.friction)
    pool = ModelPool(
        models=(),
        payload=rng.uniform(*randomization.payload, count),
        com_shift=rng.uniform(*randomization.com_shift, (count, 3)),
        friction=rng.uniform(*friction, count),
        stiffness=rng.uniform(*randomization.stiffness, count),
        damping=rng.uniform(*randomization.damping, count),
    )
    nominal = build_model(figures, terrain, body_contacts)
    data = mujoco.MjData(nominal)
    trunk = nominal.body(TRUNK).id
    models = []
    for i in range(count):
        model = copy.copy(nominal)
        scale = 1 + pool.payload[i] / figures.trunk.mass
        model.body_mass[trunk] *= scale
        model.body_inertia[trunk] *= scale
        model.body_ipos[trunk] += pool.com_shift[i]
        model.geom_friction[model.geom_priority > 0, 0] = pool.friction[i]  # the ground's priority is 0
        model.actuator_gainprm[:, 0] *= pool.stiffness[i]
        model.actuator_biasprm[:, 1] *= pool.stiffness[i]
        model.actuator_biasprm[:, 2] *= pool.damping[i]
        mujoco.mj_setConst(model, data)  # what MuJoCo derives from masses
        models.append(model)
    return ModelPool(tuple(models), **{name: value for name, value in vars(pool).items() if name != "models"})
