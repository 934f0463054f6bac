"""Pictures as an H.264 video that every browser plays, and pictures out of any video."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from episodes.files import temporary_name

OFF_TIME = 0.1  # periods by which a picture, or a row beside it, may be off its time
QUALITY = "20"  # x264's constant rate factor: lower is better and larger; 18 looks like the original


def write_video(path: Path | str, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write pictures as an MP4 (H.264, yuv420p), all or nothing; odd sizes are padded by a black row or column.

    Args:
        frames: uint8 [height, width, 3], RGB, all of one size.
        fps: pictures a second.

    Returns:
        the number of pictures written.

    Raises:
        ValueError: no picture, a picture of another shape or dtype, or an fps that is not above 0.
        OSError: the disk refuses.
    """
    path = Path(path)
    if not 0 < fps <= 1000:
        raise ValueError(f"fps {fps} is not within (0, 1000]")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        count = _encode(temporary, frames, Fraction(fps).limit_denominator(1000))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_pictures(path: Path | str, start_s: float, count: int, fps: float, height: int, width: int) -> np.ndarray:
    """`count` pictures of a video, one a period from `start_s` on: uint8 [count, height, width, 3], RGB.

    Raises:
        ValueError: it cannot be read, its pictures have another size, or there is none at one of these times.
    """
    pictures = np.empty((count, height, width, 3), dtype=np.uint8)
    missing = set(range(count))
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            container.seek(int(start_s * av.time_base))
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                place = (frame.time - start_s) * fps
                number = round(place)
                if number >= count:
                    break
                if (frame.height, frame.width) != (height, width):
                    size = f"{frame.height}x{frame.width}"
                    raise ValueError(f"{path}: its pictures are {size} (height x width); {height}x{width} is wanted")
                if number in missing and abs(place - number) <= OFF_TIME:
                    pictures[number] = frame.to_ndarray(format="rgb24")
                    missing.remove(number)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path}: not a readable video ({error})") from None
    if missing:
        first = min(missing)
        raise ValueError(f"{path}: has no picture at {start_s + first / fps:.3f} s, of row {first}")
    return pictures


def _encode(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> int:
    """Encode into `path`; returns the number of pictures."""
    count = 0
    shape: tuple[int, ...] | None = None
    with av.open(str(path), mode="w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": QUALITY, "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = np.asarray(frame)
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
                raise ValueError(
                    f"picture {count} is {picture.dtype} {picture.shape}; uint8 (height, width, 3) would be right"
                )
            if shape is None:
                shape = picture.shape
                stream.height, stream.width = (size + size % 2 for size in shape[:2])
            if picture.shape != shape:
                raise ValueError(f"picture {count} has shape {picture.shape}; {shape} like the first would be right")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_even(picture), format="rgb24")))
            count += 1
        if count == 0:
            raise ValueError(f"{path.name}: there is no picture to write")
        container.mux(stream.encode())
    return count


def _even(picture: np.ndarray) -> np.ndarray:
    """The picture with even height and width, which yuv420p needs."""
    height, width, _ = picture.shape
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0))))
