"""Off-screen pictures of a MuJoCo world, one context a size, made when first asked for."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import mujoco

MAX_PIXELS = 4096

_open: WeakSet[CameraRenderer] = WeakSet()


class CameraRenderer:
    """Renders named cameras of one model.

    What is drawn is MuJoCo's default for `rgb_array`, as in Meta-World: in tasks whose goal is a visible marker, the
    marker is in the picture.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the model's cameras."""
        return tuple(self._model.camera(i).name for i in range(self._model.ncam))

    def render(self, data: mujoco.MjData, camera: str, height: int, width: int) -> npt.NDArray[np.uint8]:
        """RGB picture, uint8 (height, width, 3).

        Raises:
            ValueError: the model has no such camera, or the size is not within [1, 4096].
        """
        if camera not in self.cameras:
            raise ValueError(f"no camera {camera!r} in this world; it has {', '.join(self.cameras)}")
        renderer = self._renderers.get((height, width)) or self._make(height, width)
        renderer.update_scene(data, camera)
        return renderer.render()

    def close(self) -> None:
        """Free the GL contexts."""
        while self._renderers:
            self._renderers.popitem()[1].close()
        _open.discard(self)

    def _make(self, height: int, width: int) -> mujoco.Renderer:
        import mujoco

        if not (1 <= height <= MAX_PIXELS and 1 <= width <= MAX_PIXELS):
            raise ValueError(f"picture size {height} x {width} is not within 1 x 1 and {MAX_PIXELS} x {MAX_PIXELS}")
        screen = self._model.vis.global_
        screen.offwidth = max(screen.offwidth, width)
        screen.offheight = max(screen.offheight, height)
        renderer = mujoco.Renderer(self._model, height, width)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        self._renderers[height, width] = renderer
        _open.add(self)
        # After mujoco's own handler, which ends EGL, was registered; so before it, at exit. Once is enough.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        return renderer


def _close_all() -> None:
    """Free the contexts that nobody closed: mujoco would try to after EGL has ended, and print tracebacks."""
    for renderer in list(_open):
        renderer.close()
