"""The pictures of an evaluated episode; of a policy that imagines, beside what it imagined and what then happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from episodes.tiles import CAPTION, GAP, tile, tiled
from sim.environments import VIDEO_SIZE
from sim.rollout import Rollout

Picture = NDArray[np.uint8]  # [height, width, 3]

TILE = 192  # pixels high: what is imagined, and what happened


class Imagining(Protocol):
    """A session that imagines what its chunk leads to."""

    @property
    def imagines(self) -> tuple[int, ...]:
        """So many control periods ahead."""

    @property
    def imagined(self) -> NDArray[np.uint8]:
        """What the last chunk is expected to lead to [imagines, height, width, 3]; decoded when asked."""


def episode_frames(rollout: Rollout, every: int) -> Iterator[Picture]:
    """Run the episode, giving a picture of every `every`-th step, all of one size."""
    if getattr(rollout.session, "imagines", ()):
        yield from _Imagination(rollout, cast(Imagining, rollout.session)).frames(every)
        return
    camera = rollout.env.robot.cameras[0].name
    for step in rollout.run():
        if step % every == 0:
            yield rollout.env.render_camera(camera, *VIDEO_SIZE)


class _Imagination:
    """Frames that lag behind the episode until it is known what really happened.

    Left the scene now; to its right, above what was imagined by the last observation that was answered, below what the
    same camera saw at that time (grey when the episode was over by then).
    """

    def __init__(self, rollout: Rollout, session: Imagining) -> None:
        self._rollout, self._session, self._env = rollout, session, rollout.env
        camera = next(f for f in self._env.features if f.is_image)
        self._camera, (height, width, _) = camera.camera, camera.shape
        self._tile = (TILE, round(TILE * width / height))
        high = 2 * TILE + CAPTION + GAP  # as two tiles, one above the other
        self._now = (high, round(high * width / height))
        self._seen: dict[int, Picture] = {}  # step -> what the policy's camera saw
        self._answers: deque[tuple[int, NDArray[np.uint8]]] = deque()  # (observed step, imagined), oldest first

    def frames(self, every: int) -> Iterator[Picture]:
        waiting: deque[tuple[int, Picture]] = deque()
        for step in self._rollout.run():
            self._look(step)
            if step % every == 0:
                waiting.append((step, self._env.render_camera(self._camera, *self._now)))
            while waiting and waiting[0][0] + self._session.imagines[-1] < step:
                yield self._frame(*waiting.popleft())
        self._look(self._rollout.steps)  # how it ended
        for step, now in waiting:
            yield self._frame(step, now)

    def _look(self, step: int) -> None:
        """Keep what is seen before a step, and what was imagined in the step before it."""
        self._seen[step] = self._env.render_camera(self._camera)
        answered = self._rollout.answered
        if answered is not None and (not self._answers or self._answers[-1][0] != answered):
            self._answers.append((answered, self._session.imagined))

    def _frame(self, step: int, now: Picture) -> Picture:
        while len(self._answers) > 1 and self._answers[1][0] <= step:
            self._seen.pop(self._answers.popleft()[0], None)
        ahead = self._session.imagines
        imagined: list[Picture | None] = [None] * len(ahead)
        happened: list[Picture | None] = [None] * len(ahead)
        origin = 0
        if self._answers and self._answers[0][0] <= step:
            origin, pictures = self._answers[0]
            imagined, happened = list(pictures), [self._seen.get(origin + periods) for periods in ahead]
        for old in [seen for seen in self._seen if seen < origin]:
            del self._seen[old]
        rows = [
            [tile(picture, f"{what} t+{periods}", *self._tile) for picture, periods in zip(row, ahead, strict=True)]
            for what, row in (("imagined", imagined), ("happened", happened))
        ]
        return tiled([[tile(now, f"now: t+{step - origin}", *self._now), tiled(rows)]])
