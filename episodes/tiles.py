"""Pictures side by side with small captions, upscaled so that single pixels can be seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]  # [height, width, 3], RGB

CAPTION = 18  # pixels high
GAP = 4  # pixels around a tile
PAPER, INK, EMPTY = 255, 0, 200  # grey levels


def tile(picture: Picture | None, caption: str, height: int, width: int) -> Picture:
    """A picture under its caption, uint8 [CAPTION + height, width, 3].

    Args:
        picture: of any size; scaled by repeating pixels, so that nothing is smoothed over. None: grey.
        caption: of a few words.
        height, width: of the picture, in pixels.
    """
    found = Image.new("RGB", (width, CAPTION + height), (PAPER,) * 3)
    ImageDraw.Draw(found).text((2, 2), caption, (INK,) * 3, ImageFont.load_default(12))
    if picture is None:
        found.paste((EMPTY,) * 3, (0, CAPTION, width, CAPTION + height))
    else:
        found.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (0, CAPTION))
    return np.asarray(found)


def tiled(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Rows of tiles on paper; tiles of a row have one height, rows may differ in width."""
    return _joined([_joined(row, axis=1) for row in rows], axis=0)


def _joined(pictures: Sequence[Picture], axis: int) -> Picture:
    """Next to each other along an axis, with gaps between; narrower ones are filled up with paper."""
    other = 1 - axis
    size = max(picture.shape[other] for picture in pictures)
    parts: list[Picture] = []
    for number, picture in enumerate(pictures):
        padding = [(0, 0), (0, 0), (0, 0)]
        padding[axis] = (GAP if number else 0, 0)
        padding[other] = (0, size - picture.shape[other])
        parts.append(np.pad(picture, padding, constant_values=PAPER))
    return np.concatenate(parts, axis=axis)
