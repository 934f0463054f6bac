"""A LeRobotDataset v3.0 that others recorded, read by the contract that somebody wrote for its robot.

Nothing is guessed: what the contract names is found by its name, never by its place. LeRobot stores no units, so
numbers are taken to be in the contract's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from contracts.feature import Feature
from contracts.robot import RobotContract
from episodes.data import DatasetError, EpisodeData
from episodes.layout import (
    DATA_PATH,
    SCALARS,
    VIDEO_PATH,
    Info,
    StoredFeature,
    frames_per_second,
    read_any_info,
)
from episodes.tables import column_type, from_column, read_table
from episodes.video import OFF_TIME, read_pictures

POSITION = ".pos"  # what LeRobot's robots add to the name of a motor; the contract may leave it out
MAX_SECONDS = 1e9  # of a video
MAX_REASONS = 10  # why episodes cannot be used, where none can
INDEX_COLUMNS = ("episode_index", "length", "tasks", "data/chunk_index", "data/file_index")


class ForeignDataset:
    """A LeRobotDataset v3.0 without a contract in it, of which an observation set and the action are read.

    Attributes:
        path: its directory, in which nothing is ever written.
        observation_set: of the robot's contract.
        unused: what it holds besides.
    """

    def __init__(self, path: Path | str, robot: RobotContract, observation_set: str | None = None) -> None:
        """Compare it with the contract; `observation_set` may be left out if the contract has only one.

        Raises:
            DatasetError: it cannot be read, or does not fit: every difference is listed.
        """
        self.path = Path(path)
        self.robot = robot
        self.observation_set = _only_set(robot) if observation_set is None else observation_set
        try:
            self._observations = robot.observation_features(self.observation_set)
        except ValueError as error:
            raise DatasetError(str(error)) from None
        self._info = read_any_info(self.path)
        wanted = (*self._observations, robot.action_feature)
        found = _differences(self._info, robot, wanted)
        if found:
            listed = "\n".join(f"  - {difference}" for difference in found)
            raise DatasetError(f"{path} does not fit the contract of {robot.name}; nothing was written:\n{listed}")
        self._places = {f.key: _places(f, self._info.features[f.key]) for f in wanted if not f.is_image}
        self.unused = _unused(self._info, self._places, {feature.key for feature in wanted})
        self._videos = [f for f in self._observations if f.is_image and self._info.features[f.key].dtype == "video"]
        self._rows = self._read_index()

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._rows)

    def unusable(self, progress: bool = False) -> dict[int, str]:
        """Episode -> why its numbers cannot be used. Raises DatasetError: none of the episodes can be."""
        reasons = {}
        for index in tqdm(range(len(self)), "check", unit="episode", disable=not progress):
            try:
                self.numbers(index)
            except DatasetError as error:
                reasons[index] = str(error)
        if len(reasons) == len(self):
            said = f"{self.path}: no episode can be used (by the contract's names and units); nothing was written:"
            listed = [f"  - episode {index}: {reasons[index]}" for index in list(reasons)[:MAX_REASONS]]
            more = [f"  - and {len(reasons) - MAX_REASONS} more"] if len(reasons) > MAX_REASONS else []
            raise DatasetError("\n".join([said, *listed, *more]))
        return reasons

    def numbers(self, index: int, success: bool = False) -> EpisodeData:
        """An episode without its pictures, elements in the order of the contract.

        Raises:
            DatasetError: a file is missing or damaged, there are several instructions, a row is off its time, a number
                is not finite, or an action is outside of its channel's limits.
        """
        row = self._rows[index]
        path, table = self._table(row, [*self._places, "timestamp"])
        vectors = {
            key: _column(path, key, self._info.features[key].shape, table)[:, places]
            for key, places in self._places.items()
        }
        _check_times(_column(path, "timestamp", (1,), table)[:, 0], self._info.fps)
        actions = vectors.pop("action")
        _check_limits(actions, self.robot)
        tasks = row["tasks"] or []
        if len(tasks) != 1:
            raise DatasetError(f"has the instructions {tasks}; exactly one would be right")
        task = tasks[0]
        return EpisodeData(vectors, actions, task, task, seed=index, success=success)

    def pictures(self, index: int) -> dict[str, np.ndarray]:
        """Key -> uint8 [T, height, width, 3] of every camera. Raises DatasetError."""
        row = self._rows[index]
        found = {feature.key: self._from_video(feature, row) for feature in self._videos}
        stored = [f for f in self._observations if f.is_image and f.key not in found]
        if stored:
            path, table = self._table(row, [feature.key for feature in stored])
            for feature in stored:
                kind = StoredFeature(dtype="image", shape=feature.shape)
                found[feature.key] = from_column(path, feature.key, kind, table.column(feature.key))
        return found

    def _from_video(self, feature: Feature, row: dict[str, Any]) -> np.ndarray:
        chunk, number, start_s = (row[name] for name in _video_columns(feature))
        path = self.path / VIDEO_PATH.format(video_key=feature.key, chunk_index=chunk, file_index=number)
        try:
            return read_pictures(path, start_s, row["length"], self._info.fps, *feature.shape[:2])
        except ValueError as error:
            raise DatasetError(str(error)) from None

    def _table(self, row: dict[str, Any], columns: list[str]) -> tuple[Path, pa.Table]:
        """The file that an episode lies in, among others, and the episode's rows. Raises DatasetError."""
        place = DATA_PATH.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        path = self.path / place
        table = read_table(path, [*columns, "episode_index"], row["episode_index"])
        if table.num_rows != row["length"]:
            raise DatasetError(f"{path}: has {table.num_rows} rows of it; {row['length']} would be right")
        return path, table

    def _read_index(self) -> list[dict[str, Any]]:
        """What meta/episodes says of every episode. Raises DatasetError."""
        columns = [*INDEX_COLUMNS, *(name for feature in self._videos for name in _video_columns(feature))]
        files = sorted((self.path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        rows = [row for file in files for row in read_table(file, columns).to_pylist()]
        for position, row in enumerate(rows):
            numbers = [row[name] for name in columns if name.endswith("_index") or name == "length"]
            whole = all(isinstance(number, int) and number >= 0 for number in numbers)
            times = [row[name] for name in columns if name.endswith("_timestamp")]
            timed = all(isinstance(time, float) and 0 <= time < MAX_SECONDS for time in times)
            if not whole or not timed or row["episode_index"] != position:
                raise DatasetError(f"{self.path / 'meta/episodes'}: row {position} is damaged: {row}")
        if not rows or len(rows) != self._info.total_episodes:
            raise DatasetError(
                f"{self.path / 'meta/episodes'}: lists {len(rows)} episodes, but meta/info.json counts "
                f"{self._info.total_episodes}; was the recording finished?"
            )
        return rows


def _video_columns(feature: Feature) -> tuple[str, str, str]:
    """Where meta/episodes says in which video an episode's pictures are, and from which second on."""
    key = feature.key
    return f"videos/{key}/chunk_index", f"videos/{key}/file_index", f"videos/{key}/from_timestamp"


def _only_set(robot: RobotContract) -> str:
    names = sorted(robot.observation_sets)
    if len(names) != 1:
        raise DatasetError(
            f"the contract of {robot.name} has several observation sets: name one of {names} (--observations)"
        )
    return names[0]


def _differences(info: Info, robot: RobotContract, wanted: tuple[Feature, ...]) -> list[str]:
    """Every way in which the dataset does not fit the contract, a sentence each."""
    found = []
    if robot.body != "external":
        found.append(
            f"body: {robot.body}: a seed of this robot stands for a scene of its simulation; external is right"
        )
    if info.fps != frames_per_second(robot):
        found.append(f"fps: {info.fps} in the dataset; control_rate_hz is {robot.control_rate_hz:g} in the contract")
    videos = any(info.features[f.key].dtype == "video" for f in wanted if f.key in info.features)
    for name, path in (("data_path", DATA_PATH), *([("video_path", VIDEO_PATH)] if videos else [])):
        if getattr(info, name) != path:
            found.append(f"{name}: {getattr(info, name)!r}; {path!r} would be right")
    for feature in wanted:
        if feature.key not in info.features:
            found.append(f"{feature.key}: not in the dataset, which has {sorted(set(info.features) - set(SCALARS))}")
        elif feature.is_image:
            found += _picture_differences(feature, info.features[feature.key])
        else:
            found += _vector_differences(feature, info.features[feature.key])
    return found


def _picture_differences(feature: Feature, stored: StoredFeature) -> list[str]:
    key, shape, names = feature.key, stored.shape, stored.names
    if stored.dtype not in ("image", "video") or len(shape) != 3:
        return [f"{key}: {stored.dtype} of shape {shape} in the dataset; image or video would be right"]
    named = isinstance(names, list) and len(names) == 3 and {"height", "width"} <= set(names)
    axes = names if isinstance(names, list) and named else ["height", "width"]
    size = tuple(shape[axes.index(name)] for name in ("height", "width"))
    if size != feature.shape[:2]:
        (height, width), (right_height, right_width) = size, feature.shape[:2]
        return [
            f"{key}: pictures of {height}x{width} (height x width) in the dataset, {right_height}x{right_width} in the "
            "contract; nothing is resized"
        ]
    return []


def _vector_differences(feature: Feature, stored: StoredFeature) -> list[str]:
    key, names = feature.key, _names(stored)
    if stored.dtype not in ("float32", "float64") or len(stored.shape) != 1:
        return [f"{key}: {stored.dtype} of shape {stored.shape} in the dataset; a vector of float32 would be right"]
    if len(names) != stored.shape[0] or len(set(names)) != len(names):
        return [
            f"{key}: the dataset gives its {stored.shape[0]} elements the names {names}; one each would be right, "
            f"{list(feature.names)} among them"
        ]
    found = []
    missing = [name for name in feature.names if _place(name, names) is None]
    if missing:
        found.append(f"{key}: the contract has {missing}, the dataset does not: its names are {names}")
    taken = {_place(name, names) for name in feature.names}
    others = [name for place, name in enumerate(names) if place not in taken]
    if key == "action" and others:
        found.append(f"{key}: the dataset has {others}, the contract has no such channel: {list(feature.names)}")
    return found


def _names(stored: StoredFeature) -> list[str]:
    """One name an element; LeRobot also writes them as the value of a dict's one key. Empty: there are none."""
    names: Any = stored.names
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _place(name: str, names: list[str]) -> int | None:
    """Where an element of the contract stands; None: nowhere."""
    return next((names.index(found) for found in (name, name + POSITION) if found in names), None)


def _places(feature: Feature, stored: StoredFeature) -> list[int]:
    """Where the contract's elements stand, all of which are there."""
    found = (_place(name, _names(stored)) for name in feature.names)
    return [place for place in found if place is not None]


def _unused(info: Info, places: dict[str, list[int]], wanted: set[str]) -> list[str]:
    """Features and elements that nobody asks for."""
    features = [key for key in info.features if key not in wanted and key not in SCALARS]
    elements = [
        f"{key}.{name}"
        for key, taken in places.items()
        for place, name in enumerate(_names(info.features[key]))
        if place not in taken
    ]
    return [*features, *elements]


def _column(path: Path, key: str, shape: tuple[int, ...], table: pa.Table) -> np.ndarray:
    """A column of numbers as float32 [T, *shape], whichever kind of list it is stored as. Raises DatasetError."""
    kind = StoredFeature(dtype="float32", shape=shape)
    try:
        column = table.column(key).cast(column_type(kind))
    except (pa.ArrowException, NotImplementedError) as error:
        raise DatasetError(f"{path}: column {key!r} does not hold vectors of {shape[0]} numbers ({error})") from None
    return from_column(path, key, kind, column)


def _check_times(timestamps: np.ndarray, fps: int) -> None:
    """Raises DatasetError: a row is not at its multiple of the period. `timestamps` [T], s."""
    wrong = np.flatnonzero(np.abs(timestamps * fps - np.arange(len(timestamps))) > OFF_TIME)
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(f"row {row} is at {timestamps[row]:.4f} s; {row / fps:.4f} s (row / fps) would be right")


def _check_limits(actions: np.ndarray, robot: RobotContract) -> None:
    """Raises DatasetError: some of `actions` [T, dim] are outside of a channel's limits."""
    found = []
    for channel, values in zip(robot.command.channels, actions.T, strict=True):
        wrong = np.flatnonzero((values < np.float32(channel.min)) | (values > np.float32(channel.max)))
        if len(wrong):
            unit = "" if channel.unit == "1" else f" {channel.unit}"
            found.append(
                f"{channel.name!r} is {values[wrong[0]]:g} in row {wrong[0]} (outside in {len(wrong)} of {len(values)} "
                f"rows); {channel.min:g} to {channel.max:g}{unit} would be right"
            )
    if found:
        raise DatasetError(f"action: {'; '.join(found)}")
