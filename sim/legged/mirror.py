"""A quadruped in a mirror: what it and its critic would see, and what it would do, were left and right exchanged."""

from __future__ import annotations

import numpy as np

from contracts.locomotion import LocomotionContract
from contracts.reflection import AXIAL, VECTOR, Reflection, joined, signed, unchanged
from sim.legged.figures import JOINTS, LEGS
from sim.legged.privileged import SCAN

COMMAND = signed((1, -1, -1))  # forward, left, turning about z


def mirror(contract: LocomotionContract) -> dict[str, Reflection]:
    """Of `observation` (with its history), `privileged` and `action` of a task with this contract, by name."""
    joints = _joints()
    seen = joined(COMMAND, AXIAL, VECTOR, joints, joints, joints)
    # As `privileged_observation` has them: velocity, force, contacts, height, delay, then a model's payload, friction,
    # stiffness, damping and shift of the centre of mass, then the ground about it.
    privileged = joined(seen, VECTOR, VECTOR, _legs(), unchanged(6), VECTOR, _scan())
    return {"observation": joined(*[seen] * contract.history), "privileged": privileged, "action": joints}


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
