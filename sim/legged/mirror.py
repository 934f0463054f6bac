"""A quadruped in a mirror: what it and its critic would see, and what it would do, were left and right exchanged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.locomotion import LocomotionContract
from sim.legged.figures import JOINTS, LEGS
from sim.legged.privileged import SCAN

Reflection = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Which element takes each place, and its sign."""

VECTOR = (1.0, -1.0, 1.0)  # of a velocity or a force: x forward, y left, z up
AXIAL = (-1.0, 1.0, -1.0)  # of a turning about these axes
COMMAND = (1.0, -1.0, -1.0)  # forward, left, turning about z


def mirror(contract: LocomotionContract) -> dict[str, Reflection]:
    """Of `observation` (with its history), `privileged` and `action` of a task with this contract, by name."""
    joints = _joints()
    seen = _join(_signs(COMMAND), _signs(AXIAL), _signs(VECTOR), joints, joints, joints)
    # As `privileged_observation` has them: velocity, force, contacts, height, delay, then a model's payload, friction,
    # stiffness, damping and shift of the centre of mass, then the ground about it.
    privileged = _join(seen, _signs(VECTOR), _signs(VECTOR), _legs(), _signs((1.0,) * 6), _signs(VECTOR), _scan())
    return {"observation": _join(*[seen] * contract.history), "privileged": privileged, "action": joints}


def _legs() -> Reflection:
    """Each leg's place is taken by the one on the other side."""
    other = {"L": "R", "R": "L"}
    order = [LEGS.index(leg[0] + other[leg[1]]) for leg in LEGS]
    return np.array(order), np.ones(len(LEGS), dtype=np.float32)


def _joints() -> Reflection:
    """Hips turn about x, and the other way in the mirror; thighs and calves turn about y."""
    other = {"L": "R", "R": "L"}
    order = [JOINTS.index(joint[0] + other[joint[1]] + joint[2:]) for joint in JOINTS]
    return np.array(order), np.array([-1.0 if "hip" in joint else 1.0 for joint in JOINTS], dtype=np.float32)


def _scan() -> Reflection:
    """Each point's place is taken by the one across."""
    points = [tuple(point) for point in SCAN[0]]
    return np.array([points.index((x, -y)) for x, y in points]), np.ones(len(points), dtype=np.float32)


def _signs(signs: tuple[float, ...]) -> Reflection:
    return np.arange(len(signs)), np.array(signs, dtype=np.float32)


def _join(*parts: Reflection) -> Reflection:
    """One after another."""
    starts = np.cumsum([0] + [len(order) for order, _ in parts])
    order = np.concatenate([order + start for (order, _), start in zip(parts, starts[:-1], strict=True)])
    return order, np.concatenate([sign for _, sign in parts])
