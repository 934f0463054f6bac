"""What reader and writer share: the index of the episodes, one episode's columns, statistics of a whole dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from episodes.data import DatasetError, EpisodeInfo
from episodes.layout import INDEX_PATH, SCALARS, STATS, TASKS, Info, data_file, index_file, read_bounded
from episodes.statistics import NAMES, Statistics, pooled_statistics, vector_statistics
from episodes.tables import from_column, read_table

INDEX_COLUMNS = {
    "episode_index": pa.int64(),
    "tasks": pa.list_(pa.string()),
    "length": pa.int64(),
    "dataset_from_index": pa.int64(),
    "dataset_to_index": pa.int64(),
    "task_name": pa.string(),
    "seed": pa.int64(),
    "success": pa.bool_(),
}
EPISODE_INDEX = "episode_index"
REMAKE = "delete the file, and it is made anew"


def read_index(root: Path, info: Info) -> list[EpisodeInfo]:
    """Every completed episode, in order.

    These rows are the truth about which episodes there are: info.json may be one episode behind after a crash.

    Raises:
        DatasetError: a file is missing or damaged, or episodes that info.json counts are gone.
    """
    episodes: list[EpisodeInfo] = []
    start = 0
    for path in index_files(root):
        for row in _checked_rows(path):
            found = (row["episode_index"], row["dataset_from_index"], row["dataset_to_index"])
            wanted = (len(episodes), start, start + row["length"])
            if found != wanted or row["length"] <= 0:
                raise DatasetError(
                    f"{path}: (episode_index, dataset_from_index, dataset_to_index) is {found}; {wanted} would be right"
                )
            start += row["length"]
            episodes.append(
                EpisodeInfo(
                    index=row["episode_index"],
                    length=row["length"],
                    task=row["tasks"][0],
                    task_name=row["task_name"],
                    seed=row["seed"],
                    success=row["success"],
                )
            )
    if len(episodes) < info.total_episodes:
        raise DatasetError(
            f"{root / 'meta/episodes'}: lists {len(episodes)} episodes, but meta/info.json counts "
            f"{info.total_episodes}; restore the missing rows from a copy"
        )
    return episodes


def index_files(root: Path) -> list[Path]:
    """The files of episode rows, in order. Raises DatasetError when one between them is missing."""
    count = len(list((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")))
    files = [index_file(root, number) for number in range(count)]
    for path in files:
        if not path.exists():
            raise DatasetError(f"{path}: not there, though later files are; the layout is {INDEX_PATH} without gaps")
    return files


def _checked_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one index file as dicts."""
    table = read_table(path, list(INDEX_COLUMNS))
    for name, kind in INDEX_COLUMNS.items():
        column = table.column(name)
        if name == "tasks":  # the name of a list's element differs between writers
            fits = pa.types.is_list(column.type) and column.type.value_type == pa.string()
        else:
            fits = column.type == kind
        if not fits or column.null_count:
            found = f"{column.type} with {column.null_count} gaps"
            raise DatasetError(f"{path}: column {name!r} is {found}; {kind} would be right")
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        if len(row["tasks"]) != 1 or row["tasks"][0] is None:
            raise DatasetError(f"{path}: row {number} has tasks {row['tasks']}; exactly one would be right")
    return rows


def read_tasks(root: Path) -> list[str]:
    """Task texts by their index. Raises DatasetError."""
    path = root / TASKS
    table = read_table(path, ["task_index", "task"])
    indices, tasks = table.column("task_index").to_pylist(), table.column("task").to_pylist()
    if indices != list(range(len(tasks))) or not all(isinstance(task, str) for task in tasks):
        raise DatasetError(f"{path}: task_index must count from 0 and every task must be a text")
    return tasks


def read_columns(root: Path, info: Info, episode: EpisodeInfo, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Some features of one episode, each [T, *shape]; [T] of LeRobot's own scalars. Raises DatasetError."""
    path = data_file(root, episode.index)
    wanted = list(keys)
    table = read_table(path, list(dict.fromkeys([*wanted, EPISODE_INDEX])))
    if table.num_rows != episode.length:
        raise DatasetError(f"{path}: has {table.num_rows} rows; the index says that {episode.length} would be right")
    stored = from_column(path, EPISODE_INDEX, info.features[EPISODE_INDEX], table.column(EPISODE_INDEX))
    numbers = set(stored.ravel().tolist())
    if numbers != {episode.index}:
        raise DatasetError(f"{path}: holds the episodes {sorted(numbers)[:3]}; {episode.index} alone would be right")
    columns = {}
    for key in wanted:
        values = from_column(path, key, info.features[key], table.column(key))
        columns[key] = values.reshape(-1) if key in SCALARS else values
    return columns


def whole_statistics(root: Path, info: Info, episodes: list[EpisodeInfo]) -> dict[str, Statistics]:
    """Statistics of every feature over all episodes: exact of vectors, pooled from the episodes' own of images."""
    if not episodes:
        return {}
    vectors = [key for key, feature in info.features.items() if feature.dtype != "image"]
    parts = [read_columns(root, info, episode, vectors) for episode in episodes]
    result = {}
    for key, feature in info.features.items():
        if feature.dtype == "image":
            result[key] = pooled_statistics(_stored_statistics(root, key))
        else:
            values = np.concatenate([part[key] for part in parts])
            result[key] = vector_statistics(values.reshape(len(values), -1))
    return result


def _stored_statistics(root: Path, key: str) -> list[Statistics]:
    """Every episode's own statistics of one feature, from the index."""
    columns = {name: f"stats/{key}/{name}" for name in NAMES}
    found = []
    for path in index_files(root):
        for row in read_table(path, list(columns.values())).to_pylist():
            found.append({name: np.array(row[column]) for name, column in columns.items()})
    return found


def encode_statistics(statistics: dict[str, Statistics]) -> bytes:
    """meta/stats.json's text."""
    plain = {key: {name: values.tolist() for name, values in entry.items()} for key, entry in statistics.items()}
    return msgspec.json.format(msgspec.json.encode(plain), indent=2)


def read_statistics(root: Path, info: Info, frames: int) -> dict[str, Statistics] | None:
    """meta/stats.json, or None when it is not there or does not cover exactly `frames` frames. Raises DatasetError."""
    path = root / STATS
    if not path.exists():
        return None
    try:
        stored = msgspec.json.decode(read_bounded(path), type=dict[str, dict[str, list[Any]]])
        statistics = {
            key: {
                name: np.array(stored[key][name], dtype=np.int64 if name == "count" else np.float64) for name in NAMES
            }
            for key in info.features
        }
    except KeyError as error:
        raise DatasetError(f"{path}: has no entry {error}; {REMAKE}") from None
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError, OSError) as error:
        raise DatasetError(f"{path}: damaged ({error}); {REMAKE}") from None
    for key, feature in info.features.items():
        shape = (3, 1, 1) if feature.dtype == "image" else feature.shape
        for name, values in statistics[key].items():
            if values.shape != ((1,) if name == "count" else shape) or not np.isfinite(values).all():
                raise DatasetError(f"{path}: {key}.{name} does not fit shape {shape}; {REMAKE}")
    return statistics if int(statistics["index"]["count"][0]) == frames else None
