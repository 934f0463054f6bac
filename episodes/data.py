"""One episode in memory, and what may stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contracts.feature import Feature

SEED_LIMIT = 2**63  # a seed is stored as a signed 64-bit integer


class DatasetError(ValueError):
    """A dataset or an episode that cannot be used: says which file, what is wrong there, and what would be right."""


@dataclass
class EpisodeData:
    """One episode: row t is what was seen at the start of control period t and the action meant for that period.

    Attributes:
        observations: feature key -> [T, *feature.shape], float32 of a vector, uint8 of an image.
        actions: float32 [T, dim], the recorded label, in the units of the robot's command channels.
        task: the instruction as text.
        task_name: the task's short name (`drawer-open`).
        seed: of the episode; with the actions it reproduces a simulated one.
        success: whether the task was solved.
        executed: float32 [T, dim], what was really executed where that differs from the label (noise was added, the
            safety filter stepped in); None: exactly `actions`.
        pushes: float64 [T, 3], the force on the robot in each period, in the world, N; None: nothing could push it.
            Recordings hold it; datasets do not keep it.
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    task: str
    task_name: str
    seed: int
    success: bool
    executed: np.ndarray | None = None
    pushes: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of control periods, T."""
        return len(self.actions)

    @property
    def applied(self) -> np.ndarray:
        """What the robot did, [T, dim]: `executed`, or `actions` where that is the same."""
        return self.actions if self.executed is None else self.executed


@dataclass(frozen=True)
class EpisodeInfo:
    """What the dataset's index says of one episode; attributes as in EpisodeData, `length` in control periods."""

    index: int
    length: int
    task: str
    task_name: str
    seed: int
    success: bool


@dataclass(frozen=True)
class TrainingArrays:
    """A whole dataset as memory-mapped, read-only arrays of N rows in E episodes.

    Attributes:
        observations: feature key -> [N, *feature.shape].
        actions: float32 [N, dim].
        starts, ends: int64 [E]; episode e is the rows starts[e] up to, not including, ends[e].
        task_index: int64 [N], into `tasks`.
        tasks: instruction texts.
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    task_index: np.ndarray
    tasks: list[str]


def checked_episode(episode: EpisodeData, observations: Sequence[Feature], action: Feature) -> EpisodeData:
    """The episode with every array in its feature's dtype, C-contiguous.

    Raises:
        DatasetError: a feature is missing or not known, a shape or length does not fit, or a number is not finite.
    """
    length = len(episode.actions) if np.ndim(episode.actions) else 0
    if length == 0:
        raise DatasetError("an empty episode (no action in it) cannot be added")
    wanted = [feature.key for feature in observations]
    if sorted(wanted) != sorted(episode.observations):
        raise DatasetError(f"the episode observes {sorted(episode.observations)}; this dataset needs {sorted(wanted)}")
    _check_label(episode)
    checked = {f.key: _checked_array(f.key, episode.observations[f.key], f, length) for f in observations}
    executed = episode.executed
    return EpisodeData(
        observations=checked,
        actions=_checked_array("action", episode.actions, action, length),
        task=episode.task,
        task_name=episode.task_name,
        seed=int(episode.seed),
        success=bool(episode.success),
        executed=None if executed is None else _checked_array("action.executed", executed, action, length),
    )


def _check_label(episode: EpisodeData) -> None:
    """The texts are texts and the seed fits."""
    for what, text in (("task", episode.task), ("task_name", episode.task_name)):
        if not isinstance(text, str) or not text or not _is_unicode(text):
            raise DatasetError(f"{what} must be a text of Unicode characters that is not empty, not {text!r}")
    if not isinstance(episode.seed, int | np.integer) or not -SEED_LIMIT <= int(episode.seed) < SEED_LIMIT:
        raise DatasetError(f"seed must be a whole number that fits 64 bits with sign, not {episode.seed!r}")


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_array(key: str, values: np.ndarray, feature: Feature, length: int) -> np.ndarray:
    """`values` as [length, *feature.shape] of the feature's dtype."""
    array = np.asarray(values)
    shape = (length, *feature.shape)
    if array.shape != shape:
        raise DatasetError(f"{key}: has shape {array.shape}; {shape} would be right")
    if feature.is_image:
        if array.dtype != np.uint8:
            raise DatasetError(f"{key}: has dtype {array.dtype}; an image is uint8")
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{key}: has dtype {array.dtype}; numbers would be right")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        row, element = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DatasetError(
            f"{key}: {feature.names[element]!r} in row {row} is {array[row, element]}, not a finite number"
        )
    return array
