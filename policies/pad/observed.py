"""What a PAD policy sees: one camera, its depth if asked for, and the pose of the end effector."""

from __future__ import annotations

from contracts import Feature, PolicyContract
from policies.pad.config import PadConfig
from policies.runtime.pad import DEPTH_SUFFIX


class Observed:
    """The observations of a contract by what they mean to PAD.

    Attributes:
        pose: the vector: where the end effector is, and how far the gripper is open.
        camera: key of the pictures; height, width: of them.
        cameras: modality (`pictures`, `depth`) -> key.
    """

    def __init__(self, config: PadConfig, contract: PolicyContract) -> None:
        """Raises ValueError for a contract that does not show exactly this."""
        features = [o.feature for o in contract.observations]
        vectors = [f for f in features if not f.is_image]
        colour = [f for f in features if f.is_image and not f.key.endswith(DEPTH_SUFFIX)]
        if len(vectors) != 1 or len(colour) != 1:
            raise ValueError(
                f"a pad policy sees one camera and one vector, the pose, not {', '.join(f.key for f in features)}: "
                "choose such an observation set (`visuomotor collect --observations image`)"
            )
        self.pose, self.camera = vectors[0], colour[0].key
        self.height, self.width = colour[0].shape[:2]
        self.cameras = {"pictures": self.camera} | self._depth(config, features)
        cell = config.downsampling * config.patch
        if self.height % cell or self.width % cell:
            raise ValueError(
                f"{self.camera}: {self.height} x {self.width} pixels do not divide into tokens of {cell} x {cell}"
            )

    def _depth(self, config: PadConfig, features: list[Feature]) -> dict[str, str]:
        found = [f.key for f in features if f.key == self.camera + DEPTH_SUFFIX]
        others = [f.key for f in features if f.is_image and f.key not in (self.camera, *found)]
        if others:
            raise ValueError(f"{others[0]} shows the depth of no other camera")
        if config.depth != bool(found):
            wrong = f"shows {found[0]}: choose depth" if found else f"lacks {self.camera}{DEPTH_SUFFIX}: depth needs it"
            raise ValueError(f"the observation set {wrong}")
        return {"depth": found[0]} if found else {}
