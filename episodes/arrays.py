"""A whole dataset as memory-mapped arrays, unpacked once and kept beside it, so that training reads no parquet."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from episodes.data import DatasetError, EpisodeInfo, TrainingArrays
from episodes.files import Lock
from episodes.layout import EXECUTED, SCALARS, Info, data_file, encode_info
from episodes.reading import read_columns

CACHE = ".cache"
FORMAT = b"arrays-1"  # change it, and every cache is made anew
TASK_INDEX = "task_index"


def training_arrays(root: Path, info: Info, episodes: list[EpisodeInfo], tasks: list[str]) -> TrainingArrays:
    """Map the dataset's arrays, building the cache first where it is missing or stale. Raises DatasetError."""
    if not episodes:
        raise DatasetError(f"{root}: has no episode to train from")
    keys = [key for key in info.features if key not in SCALARS and key != EXECUTED] + [TASK_INDEX]
    directory = root / CACHE / _fingerprint(root, info, episodes)
    arrays = _mapped(directory, info, episodes, keys)
    if arrays is None:
        try:
            _build(root, directory, info, episodes, keys)
        except DatasetError:
            raise
        except OSError as error:
            raise DatasetError(f"{directory}: the arrays cannot be written there ({error.strerror})") from None
        arrays = _mapped(directory, info, episodes, keys)
        if arrays is None:
            raise DatasetError(f"{directory}: changed while it was read; is another process writing to it?")
    if arrays[TASK_INDEX].min() < 0 or arrays[TASK_INDEX].max() >= len(tasks):
        raise DatasetError(f"{root}: a task_index is outside the {len(tasks)} tasks of meta/tasks.parquet")
    ends = np.cumsum([episode.length for episode in episodes], dtype=np.int64)
    return TrainingArrays(
        observations={key: arrays[key] for key in keys if key.startswith("observation.")},
        actions=arrays["action"],
        starts=ends - np.array([episode.length for episode in episodes], dtype=np.int64),
        ends=ends,
        task_index=arrays[TASK_INDEX],
        tasks=tasks,
    )


def _fingerprint(root: Path, info: Info, episodes: list[EpisodeInfo]) -> str:
    """Changes with the features, the episodes, or any file of data."""
    digest = hashlib.sha256(FORMAT + encode_info(info))
    for episode in episodes:
        path = data_file(root, episode.index)
        try:
            status = path.stat()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
        digest.update(f"{episode.length} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _shape(info: Info, episodes: list[EpisodeInfo], key: str) -> tuple[int, ...]:
    rows = sum(episode.length for episode in episodes)
    return (rows,) if key in SCALARS else (rows, *info.features[key].shape)


def _dtype(info: Info, key: str) -> np.dtype[Any]:
    return np.dtype("uint8" if info.features[key].dtype == "image" else info.features[key].dtype)


def _mapped(directory: Path, info: Info, episodes: list[EpisodeInfo], keys: list[str]) -> dict[str, np.ndarray] | None:
    """The arrays of a complete cache, read-only; None where it is missing or not what it should be."""
    arrays = {}
    for key in keys:
        try:
            array = np.load(directory / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError, TokenError, OverflowError):  # what numpy raises of a header
            return None
        if array.shape != _shape(info, episodes, key) or array.dtype != _dtype(info, key):
            return None
        arrays[key] = array
    return arrays


def _build(root: Path, directory: Path, info: Info, episodes: list[EpisodeInfo], keys: list[str]) -> None:
    """Unpack every episode into a new directory, then give it its name; older caches go."""
    (root / CACHE).mkdir(exist_ok=True)
    with Lock(root / CACHE / ".lock", wait=True):
        if _mapped(directory, info, episodes, keys) is not None:
            return  # another process built it while we waited
        for old in (root / CACHE).iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        unfinished = directory.with_name(f"{directory.name}.tmp")
        unfinished.mkdir()
        arrays = {
            key: np.lib.format.open_memmap(
                unfinished / f"{key}.npy", mode="w+", dtype=_dtype(info, key), shape=_shape(info, episodes, key)
            )
            for key in keys
        }
        start = 0
        for episode in episodes:
            for key, values in read_columns(root, info, episode, keys).items():
                arrays[key][start : start + episode.length] = values
            start += episode.length
        for array in arrays.values():
            array.flush()
        unfinished.rename(directory)
