"""How chunks that overlap become one stream of actions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from execution.chunk import ActionChunk

MAX_CHUNKS = 256  # more overlapping chunks than this are never useful; the oldest is forgotten
PREFIX_ACTIONS = 4
"""That a chunk repeats of the one before it unless a user says otherwise: 50 ms at 80 Hz."""


class Stitching(Protocol):
    """Chunks in, one action at a time out. All times are on one clock of the caller's.

    Attributes:
        age: of the action that `sample` gave last: periods from the start of the newest chunk in it to its own time.
    """

    age: int

    def add(self, chunk: ActionChunk) -> bool:
        """Take a chunk; False if it is refused because it starts before one that was already taken."""

    def sample(self, now_ns: int, oldest_ns: int | None = None) -> NDArray[np.float64] | None:
        """The action [dim] for `now_ns`, or None: nothing is meant for now.

        Chunks that start before `oldest_ns` do not count.
        """

    def clear(self) -> None:
        """Forget everything."""


class LatestChunk:
    """Receding horizon: a newer chunk replaces the older one from its own start on; its past actions are dropped.

    Within a period the action stays (zero-order hold).
    """

    def __init__(self) -> None:
        self.age = 0
        self._chunks: deque[ActionChunk] = deque(maxlen=MAX_CHUNKS)

    def add(self, chunk: ActionChunk) -> bool:
        """Take a chunk. One with the start of the newest replaces it; an older one is refused (False)."""
        return _append(self._chunks, chunk)

    def sample(self, now_ns: int, oldest_ns: int | None = None) -> NDArray[np.float64] | None:
        """The action [dim] of the newest chunk that has begun, or None when it is over, too old, or there is none."""
        while len(self._chunks) > 1 and self._chunks[1].index(now_ns) >= 0:
            self._chunks.popleft()
        if not self._chunks:
            return None
        chunk = self._chunks[0]
        if oldest_ns is not None and chunk.start_ns < oldest_ns:
            return None
        index = chunk.index(now_ns)
        if not 0 <= index < chunk.horizon:
            return None
        self.age = index
        return chunk.actions[index]

    def clear(self) -> None:
        """Forget every chunk."""
        self._chunks.clear()


class TemporalEnsemble:
    """The mean of what all chunks say about now, weighted by exp(-decay * i), i = 0 for the oldest of them.

    Source: ACT (Zhao et al. 2023, arXiv 2304.13705), section IV-A; their decay m is 0.01.
    """

    def __init__(self, decay: float = 0.01) -> None:
        self.age = 0
        self._decay = decay
        self._chunks: deque[ActionChunk] = deque(maxlen=MAX_CHUNKS)

    def add(self, chunk: ActionChunk) -> bool:
        """Take a chunk. One with the start of the newest replaces it; an older one is refused (False)."""
        return _append(self._chunks, chunk)

    def sample(self, now_ns: int, oldest_ns: int | None = None) -> NDArray[np.float64] | None:
        """The weighted mean [dim] of the actions meant for `now_ns`, or None when no chunk has one."""
        young = [c for c in self._chunks if oldest_ns is None or c.start_ns >= oldest_ns]
        alive = [c for c in young if c.index(now_ns) < c.horizon]
        self._chunks = deque(alive, MAX_CHUNKS)
        begun = [c for c in alive if c.index(now_ns) >= 0]
        if not begun:
            return None
        self.age = begun[-1].index(now_ns)
        said = [c.actions[c.index(now_ns)] for c in begun]
        weights = np.exp(-self._decay * np.arange(len(said)))
        return np.asarray(weights @ np.stack(said) / weights.sum())

    def clear(self) -> None:
        """Forget every chunk."""
        self._chunks.clear()


KINDS: dict[str, Callable[[], Stitching]] = {"latest": LatestChunk, "ensemble": TemporalEnsemble}
PREFIX = "prefix"  # the latest chunk too, but the policy makes it begin as the chunk before goes on


def make_stitching(name: str) -> Stitching:
    """A new stitching of the controller, by its name. Raises ValueError: there is none of that name."""
    if name not in KINDS:
        raise ValueError(f"stitching: there is {' and '.join(KINDS)}, not {name!r}")
    return KINDS[name]()


def split_stitching(name: str, prefix: int = PREFIX_ACTIONS) -> tuple[str, int]:
    """What a user's choice means for the two sides: the controller's stitching, and the prefix of the policy's session.

    Args:
        name: `latest`, `ensemble` or `prefix`.
        prefix: actions that a chunk repeats of the one before it; counts for the stitching `prefix` only.

    Raises:
        ValueError: there is no such stitching, or the prefix would be none.
    """
    if name in KINDS:
        return name, 0
    if name != PREFIX:
        raise ValueError(f"stitching: there is {', '.join(KINDS)} and {PREFIX}, not {name!r}")
    if prefix < 1:
        raise ValueError(f"stitching {PREFIX} needs a prefix of at least 1 action, not {prefix}")
    return "latest", prefix


def _append(chunks: deque[ActionChunk], chunk: ActionChunk) -> bool:
    """Keep `chunks` in the order of their starts."""
    if chunks and chunk.start_ns < chunks[-1].start_ns:
        return False
    if chunks and chunk.start_ns == chunks[-1].start_ns:
        chunks.pop()
    chunks.append(chunk)
    return True
