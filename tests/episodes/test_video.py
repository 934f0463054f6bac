"""Videos that a browser plays, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from episodes.video import write_video


def _frames(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    for number in range(count):
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        picture[..., 0] = number * 20
        picture[:, width // 2 :, 1] = 200
        yield picture


def test_a_video_holds_every_picture(tmp_path: Path) -> None:
    assert write_video(tmp_path / "sub" / "v.mp4", _frames(10), 40) == 10
    with av.open(str(tmp_path / "sub" / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 40
        assert stream.duration is not None
        assert stream.time_base is not None
        assert float(stream.duration * stream.time_base) == pytest.approx(10 / 40)
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(pictures) == 10
    for number, picture in enumerate(pictures):
        left, right = picture[24, 8].astype(int), picture[24, 56].astype(int)
        assert abs(left[0] - number * 20) < 25
        assert left[1] < 40 < 150 < right[1]


@pytest.mark.parametrize(("height", "width"), [(33, 48), (48, 33), (1, 1)])
def test_odd_sizes_are_padded(tmp_path: Path, height: int, width: int) -> None:
    write_video(tmp_path / "v.mp4", _frames(3, height, width), 12.5)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (height + height % 2, width + width % 2)
        assert sum(1 for _ in container.decode(stream)) == 3


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 10, "no picture"),
        ([np.zeros((4, 4, 3))], 10, "uint8"),
        ([np.zeros((4, 4), dtype=np.uint8)], 10, "height, width, 3"),
        ([np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((6, 4, 3), dtype=np.uint8)], 10, "like the first"),
        ([np.zeros((4, 4, 3), dtype=np.uint8)], 0, "fps"),
        ([np.zeros((4, 4, 3), dtype=np.uint8)], float("nan"), "fps"),
    ],
)
def test_what_cannot_be_a_video_is_refused_and_leaves_no_file(
    tmp_path: Path, frames: list[np.ndarray], fps: float, message: str
) -> None:
    (tmp_path / "v.mp4").write_text("an older video")
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "v.mp4", frames, fps)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]
    assert (tmp_path / "v.mp4").read_text() == "an older video"


def test_a_renderer_that_fails_leaves_no_half_video(tmp_path: Path) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from _frames(5)
        raise RuntimeError("the renderer died")

    with pytest.raises(RuntimeError, match="renderer"):
        write_video(tmp_path / "v.mp4", failing(), 40)
    assert not list(tmp_path.iterdir())
