"""Pictures of one quadruped, from a camera that follows its trunk, for people to look at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import SubElement

import numpy as np
from numpy.typing import NDArray

from sim.legged.figures import QuadrupedFigures
from sim.legged.mjcf import TRUNK, robot_xml
from sim.legged.state import Array, QuadrupedState
from sim.legged.terrain import Terrain
from sim.rendering import MAX_PIXELS

if TYPE_CHECKING:
    import mujoco

PATCH_M, PATCH_MARGIN_M = 5.0, 2.0
"""Of rough ground, so much around the robot is drawn, anew when its border comes near: all of it would take seconds."""
SHADOWS = 1024  # pixels; MuJoCo's own 4096 take longer than all else, without a GPU
DISTANCE_M, AZIMUTH_DEG, ELEVATION_DEG = 2.0, 120.0, -20.0
ARROW_M_PER_N = 0.005
ARROW_WIDTH_M = 0.02
ARROW_COLOUR = (0.9, 0.2, 0.1, 1.0)
TRUNK_COLOUR, LEG_COLOUR = (0.25, 0.35, 0.5, 1.0), (0.2, 0.2, 0.22, 1.0)
SKY = {"type": "skybox", "builtin": "gradient", "rgb1": "0.75 0.82 0.9", "rgb2": "0.4 0.5 0.65"}
SQUARES = {"type": "2d", "builtin": "checker", "rgb1": "0.62 0.64 0.62", "rgb2": "0.52 0.54 0.53"}


class FollowingCamera:
    """Looks at the trunk from behind and above. Ground squares are 1 m wide; an arrow shows a push.

    Args:
        figures: which robot.
        ground: that it walks on.
        size: (height, width), pixels.

    Raises:
        ValueError: an impossible size.
    """

    def __init__(self, figures: QuadrupedFigures, ground: Terrain, size: tuple[int, int]) -> None:
        import mujoco

        height, width = size
        if not (1 <= height <= MAX_PIXELS and 1 <= width <= MAX_PIXELS):
            raise ValueError(f"picture size {height} x {width} is not within 1 x 1 and {MAX_PIXELS} x {MAX_PIXELS}")
        self._figures, self._ground, self._size = figures, ground, size
        self._patch: Array | None = None  # its middle, m, [2]
        self._renderer: mujoco.Renderer | None = None
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE  # MuJoCo's own tracking begins far away and lags behind
        self._camera.distance, self._camera.azimuth, self._camera.elevation = DISTANCE_M, AZIMUTH_DEG, ELEVATION_DEG

    def picture(self, state: QuadrupedState, push: Array) -> NDArray[np.uint8]:
        """RGB, uint8 [height, width, 3], of one robot's state, pushed by a force in the world, N, [3]."""
        import mujoco

        renderer = self._look_at(state.position[0, :2])
        self._data.qpos[:] = np.concatenate((state.position[0], state.orientation[0], state.joint_position[0]))
        mujoco.mj_forward(self._model, self._data)
        self._camera.lookat[:] = state.position[0]
        renderer.update_scene(self._data, self._camera)
        if push.any():
            _add_arrow(renderer.scene, state.position[0], push)
        return renderer.render()

    def close(self) -> None:
        """Free the GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _look_at(self, place: Array) -> mujoco.Renderer:
        """What draws the ground around `place`, m, [2]."""
        import mujoco

        flat = self._ground.heights is None
        far = self._patch is None or np.abs(place - self._patch).max() > PATCH_M - PATCH_MARGIN_M
        if self._renderer is not None and (flat or not far):
            return self._renderer
        self.close()
        self._patch = place.copy()
        model = coloured_model(self._figures, cut_out(self._ground, place, PATCH_M))
        height, width = self._size
        screen = model.vis.global_
        screen.offwidth, screen.offheight = max(screen.offwidth, width), max(screen.offheight, height)
        model.vis.quality.shadowsize = SHADOWS if flat else 0  # on a height field they fall on itself, in specks
        model.vis.quality.offsamples = 0
        self._model, self._data = model, mujoco.MjData(model)
        self._renderer = mujoco.Renderer(model, height, width)
        return self._renderer


def _add_arrow(scene: mujoco.MjvScene, at: Array, push: Array) -> None:
    """An arrow whose head is at a point, m, [3], as long as a force, N, [3], is strong."""
    import mujoco

    if scene.ngeom >= scene.maxgeom:
        return
    arrow, kind = scene.geoms[scene.ngeom], mujoco.mjtGeom.mjGEOM_ARROW
    none, colour = np.zeros(3), np.array(ARROW_COLOUR, dtype=np.float32)
    mujoco.mjv_initGeom(arrow, kind, none, none, np.zeros(9), colour)
    mujoco.mjv_connector(arrow, kind, ARROW_WIDTH_M, at - ARROW_M_PER_N * push, at)
    scene.ngeom += 1


def cut_out(ground: Terrain, place: Array, around: float) -> Terrain:
    """The part of the ground within `around` m of a place, m, [2], along each axis; a plane as it is."""
    if ground.heights is None:
        return ground
    step = ground.resolution
    first = np.floor((place - around - ground.origin) / step).astype(int)
    last = first + int(2 * around / step) + 2
    rows, columns = ground.heights.shape
    low, high = np.clip(first, 0, (columns - 2, rows - 2)), np.clip(last, 2, (columns, rows))
    origin = (ground.origin[0] + low[0] * step, ground.origin[1] + low[1] * step)
    return replace(ground, heights=ground.heights[low[1] : high[1], low[0] : high[0]], origin=origin)


def coloured_model(figures: QuadrupedFigures, ground: Terrain) -> mujoco.MjModel:
    """The robot's model with a sky and squares on the ground: for pictures, not for physics."""
    import mujoco

    root = ElementTree.fromstring(robot_xml(figures, ground, body_contacts=True))
    found = root.find("asset")
    asset = SubElement(root, "asset") if found is None else found
    SubElement(asset, "texture", SKY, name="sky", width="64", height="384")
    SubElement(asset, "texture", SQUARES, name="squares", width="256", height="256")
    repeat = "0.5 0.5"  # a metre: the texture is two squares wide
    SubElement(asset, "material", name="squares", texture="squares", texuniform="true", texrepeat=repeat)
    for geom in root.iter("geom"):
        if geom.get("name") == "ground":
            geom.set("material", "squares")
        else:
            colour = TRUNK_COLOUR if geom.get("name") == TRUNK else LEG_COLOUR
            geom.set("rgba", _text(colour))
    for body in root.iter("body"):  # the hips have no shape of their own, and legs would hang in the air
        leg, _, segment = body.get("name", "").partition("_")
        if segment == "hip":
            end = f"0 0 0 0 {figures.thigh_offset if leg[1] == 'L' else -figures.thigh_offset} 0"
            SubElement(body, "geom", type="capsule", size="0.03", fromto=end, rgba=_text(LEG_COLOUR))
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    if ground.heights is not None:
        model.hfield_data[:] = ground.normalized().reshape(-1)
    return model


def _text(numbers: tuple[float, ...]) -> str:
    return " ".join(str(number) for number in numbers)
