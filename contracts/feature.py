"""One named array with a meaning for every element."""

from __future__ import annotations

from typing import Literal

from contracts.serialization import Contract, require, require_unique

IMAGE_PREFIX = "observation.images."


class Feature(Contract, frozen=True, kw_only=True):
    """An array that a robot gives or takes once a control period.

    Attributes:
        key: LeRobot's name for it: `observation.state`, `observation.images.<camera>`, `action`.
        shape: (elements,) of a vector, or (height, width, 3) of an image, in pixels.
        dtype: float32 of a vector, uint8 of an image.
        names: one name an element of a vector; ("height", "width", "channel") of an image.
        units: one unit an element of a vector (SI, REP-103; "1" where it has none); () of an image.
    """

    key: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    names: tuple[str, ...]
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.key), "a feature needs a key")
        require(all(0 < n <= 100_000 for n in self.shape), f"{self.key}: impossible shape {self.shape}")
        if self.is_image:
            require(self.dtype == "uint8", f"{self.key}: an image is uint8, not {self.dtype}")
            require(
                len(self.shape) == 3 and self.shape[2] == 3,
                f"{self.key}: an image is (height, width, 3), not {self.shape}",
            )
            return
        require(len(self.shape) == 1, f"{self.key}: a vector has one axis, not shape {self.shape}")
        require(self.dtype == "float32", f"{self.key}: a vector is float32, not {self.dtype}")
        require(
            len(self.names) == self.shape[0],
            f"{self.key}: {self.shape[0]} elements but {len(self.names)} names",
        )
        require(
            len(self.units) == self.shape[0],
            f"{self.key}: {self.shape[0]} elements but {len(self.units)} units",
        )
        require_unique(f"{self.key}: name", self.names)

    @property
    def is_image(self) -> bool:
        """True for a camera picture."""
        return self.key.startswith(IMAGE_PREFIX)

    @property
    def camera(self) -> str:
        """The camera's name; only of an image."""
        return self.key.removeprefix(IMAGE_PREFIX)


def vector(key: str, names: tuple[str, ...], units: tuple[str, ...]) -> Feature:
    """A float32 vector feature with one name and one unit an element."""
    return Feature(key=key, shape=(len(names),), names=names, units=units)


def image(camera: str, height: int, width: int) -> Feature:
    """An RGB picture of `camera`, (height, width, 3) uint8."""
    return Feature(
        key=IMAGE_PREFIX + camera, shape=(height, width, 3), dtype="uint8", names=("height", "width", "channel")
    )
