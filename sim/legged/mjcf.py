"""A quadruped as a MuJoCo model: primitive shapes, position control inside the actuators, ground that feet touch.

Written as MJCF text and not with `mujoco.MjSpec`: in 3.3 that compiles no body with both a full inertia and a geom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from sim.legged.figures import JOINTS, LEGS, Link, QuadrupedFigures
from sim.legged.terrain import Terrain

if TYPE_CHECKING:
    import mujoco

TRUNK = "trunk"
TIMESTEP = 0.005  # s, of the physics
ARMATURE = 0.01  # kg m^2, rotor and gears seen from the joint: Unitree's unitree_mujoco has it for all three robots
IMPEDANCE_RATIO = 10
CONTACT = {"solimp": "0.98 0.99 0.001", "solref": "0.01 1"}
"""With MuJoCo's own contacts a standing foot creeps by 2 to 4 mm/s, with these by 0.3 to 0.9; an elliptic cone with an
impedance ratio of 100 creeps less (0.1 to 0.8), at half the speed."""
NEWTON_STEPS = 30  # it takes 2, at most 17 were seen; with fewer than it needs (here 4) the robot collapses


def build_model(figures: QuadrupedFigures, terrain: Terrain, body_contacts: bool = False) -> mujoco.MjModel:
    """The robot above the terrain, free to fall.

    qpos: the trunk's position (world, m), its orientation (w x y z), then joints as in JOINTS (rad). qvel: the trunk's
    velocity (world, m/s), its angular velocity (trunk, rad/s), then joints. ctrl: joint positions to go to, as in
    JOINTS, clipped to the joints' limits. Joints have neither damping nor friction: the actuators damp, within their
    torque limits, as real motors do.

    Args:
        figures: which robot.
        terrain: the ground.
        body_contacts: the trunk and the thighs touch the ground too (slower: needed where falling must look right).
    """
    import mujoco

    model = mujoco.MjModel.from_xml_string(robot_xml(figures, terrain, body_contacts))
    if terrain.heights is not None:
        model.hfield_data[:] = terrain.normalized().reshape(-1)
    return model


def robot_xml(figures: QuadrupedFigures, terrain: Terrain, body_contacts: bool) -> str:
    """The model as MJCF; the numbers of a height field are not in it."""
    root = Element("mujoco", model=figures.name)
    SubElement(root, "compiler", angle="radian", autolimits="true", inertiafromgeom="false")
    # Euler: torques change once a step, as a robot's own loop at 200 Hz does it, and a third faster than implicit.
    option = {"integrator": "Euler", "cone": "pyramidal", "solver": "Newton", "iterations": str(NEWTON_STEPS)}
    options = SubElement(root, "option", option, timestep=_text(TIMESTEP), impratio=_text(IMPEDANCE_RATIO))
    SubElement(options, "flag", autoreset="disable")  # what diverged is to be seen, and not to stand up again
    world = SubElement(root, "worldbody")
    _add_ground(root, world, terrain)
    trunk = SubElement(world, "body", name=TRUNK, pos=_text(0, 0, figures.standing_height))
    SubElement(trunk, "freejoint", name="base")
    _add_inertia(trunk, figures.trunk)
    SubElement(trunk, "site", name="imu", pos=_text(*figures.imu_position))
    friction = _text(terrain.friction, 0.005, 0.0001)
    box = [length / 2 for length in figures.trunk_box]
    _add_shape(trunk, TRUNK, friction, body_contacts, type="box", size=_text(*box))
    for leg in LEGS:
        _add_leg(trunk, figures, leg, friction, body_contacts)
    _add_actuators(root, figures)
    _add_sensors(root)
    return ElementTree.tostring(root, encoding="unicode")


def _add_ground(root: Element, world: Element, terrain: Terrain) -> None:
    SubElement(world, "light", pos="0 0 20", directional="true")
    shape = {"type": "plane", "size": "0 0 1"}
    if terrain.heights is not None:
        rows, columns = terrain.heights.shape
        half = ((columns - 1) * terrain.resolution / 2, (rows - 1) * terrain.resolution / 2)
        low, high = terrain.range
        asset = SubElement(root, "asset")
        size = _text(*half, high - low, 1.0)
        SubElement(asset, "hfield", name="terrain", nrow=str(rows), ncol=str(columns), size=size)
        centre = (terrain.origin[0] + half[0], terrain.origin[1] + half[1], low)
        shape = {"type": "hfield", "hfield": "terrain", "pos": _text(*centre)}
    SubElement(world, "geom", shape, name="ground", contype="0", conaffinity="1")


def _add_leg(trunk: Element, figures: QuadrupedFigures, leg: str, friction: str, body_contacts: bool) -> None:
    rear, right = leg[0] == "R", leg[1] == "R"
    side = -1 if right else 1
    x, y, z = figures.hip_position
    foot = (0, 0, -figures.calf_length)
    calf = figures.calf.with_sphere(figures.foot_mass, figures.foot_radius, foot)
    links = (
        ("hip", "1 0 0", (-x if rear else x, side * y, z), figures.hip.mirrored(rear, right)),
        ("thigh", "0 1 0", (0, side * figures.thigh_offset, 0), figures.thigh.mirrored(False, right)),
        ("calf", "0 1 0", (0, 0, -figures.thigh_length), calf.mirrored(False, right)),
    )
    parent = trunk
    for segment, axis, position, link in links:
        body = SubElement(parent, "body", name=f"{leg}_{segment}", pos=_text(*position))
        name = f"{leg}_{segment}_joint"
        limits = _text(*figures.limits(name))
        SubElement(body, "joint", name=name, axis=axis, range=limits, armature=_text(ARMATURE))
        _add_inertia(body, link)
        if segment != "hip":
            length = figures.thigh_length if segment == "thigh" else figures.calf_length
            ends = _text(0, 0, -0.02, 0, 0, 0.02 - length)
            touches = body_contacts and segment == "thigh"
            _add_shape(body, f"{leg}_{segment}", friction, touches, type="capsule", size="0.018", fromto=ends)
        parent = body
    _add_shape(parent, f"{leg}_foot", friction, True, size=_text(figures.foot_radius), pos=_text(*foot))
    SubElement(parent, "site", name=f"{leg}_foot", size=_text(1.1 * figures.foot_radius), pos=_text(*foot))


def _add_shape(body: Element, name: str, friction: str, touches: bool, **shape: str) -> None:
    """A geom that touches the ground or nothing; its own friction counts, whatever the ground's."""
    contact = {"contype": "1" if touches else "0", "conaffinity": "0", "priority": "1", "friction": friction}
    SubElement(body, "geom", contact | CONTACT | shape, name=name)


def _add_inertia(body: Element, link: Link) -> None:
    SubElement(body, "inertial", mass=_text(link.mass), pos=_text(*link.com), fullinertia=_text(*link.inertia))


def _add_actuators(root: Element, figures: QuadrupedFigures) -> None:
    actuators = SubElement(root, "actuator")
    kp, kd = figures.stiffness, figures.damping
    for joint in JOINTS:
        limit = figures.torque_limit(joint)
        # A robot's safety filter clips targets so too: no policy is to lean on one that lies beyond.
        SubElement(
            actuators, "general", name=joint, joint=joint, biastype="affine",
            gainprm=_text(kp), biasprm=_text(0, -kp, -kd), forcerange=_text(-limit, limit),
            ctrlrange=_text(*figures.limits(joint)),
        )  # fmt: skip


def _add_sensors(root: Element) -> None:
    """In the order of `sim.legged.state.SENSORS`: the IMU's, then what no real robot measures like this."""
    sensors = SubElement(root, "sensor")
    SubElement(sensors, "framequat", name="orientation", objtype="site", objname="imu")
    for element in ("gyro", "accelerometer", "velocimeter"):
        SubElement(sensors, element, name=element, site="imu")
    for joint in JOINTS:
        SubElement(sensors, "jointactuatorfrc", name=f"{joint}_torque", joint=joint)
    for leg in LEGS:
        SubElement(sensors, "framepos", name=f"{leg}_foot_position", objtype="site", objname=f"{leg}_foot")
    for leg in LEGS:
        SubElement(sensors, "touch", name=f"{leg}_foot_force", site=f"{leg}_foot")


def _text(*numbers: float) -> str:
    return " ".join(f"{number:.9g}" for number in numbers)
