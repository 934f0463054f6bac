"""Writing a LeRobotDataset v3, an episode at a time, so that a crash never costs a finished episode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from contracts.robot import RobotContract
from episodes.data import DatasetError, EpisodeData, EpisodeInfo, checked_episode
from episodes.files import LOCK_NAME, Lock, LockedError, is_temporary, write_atomic
from episodes.layout import (
    EPISODES_PER_INDEX_FILE,
    EXECUTED,
    INFO,
    STATS,
    TASKS,
    data_file,
    encode_info,
    index_file,
    new_info,
    read_info,
    stored_features,
)
from episodes.reading import encode_statistics, read_columns, read_index, read_tasks, whole_statistics
from episodes.statistics import Statistics, image_statistics, vector_statistics
from episodes.tables import episode_row, read_table, tasks_table, to_column, write_table


class DatasetWriter:
    """Adds episodes to a dataset, new or already there; a context manager that finalizes on leaving.

    An episode is there once its row of meta/episodes is: tasks, data file, row and info.json are each replaced whole,
    in this order. What a killed writer left unfinished is cleaned up when the next one opens the dataset.
    """

    def __init__(self, path: Path | str, robot: RobotContract, observation_set: str) -> None:
        """Create the dataset, or continue it.

        Raises:
            DatasetError: another process writes to it, it is damaged, or it holds other data than this robot's
                `observation_set`.
        """
        self.path = Path(path)
        self.robot = robot
        self.observation_set = observation_set
        self._closed = False
        try:
            self._observations = robot.observation_features(observation_set)
        except ValueError as error:
            raise DatasetError(str(error)) from None
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = Lock(self.path / LOCK_NAME)
        except LockedError:
            raise DatasetError(f"{self.path}: another process is writing to this dataset; wait for it to end") from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        """Read what is there, or begin; mend what a crash left."""
        if not (self.path / INFO).exists():
            self._create()
        self._info, stored_robot = read_info(self.path)
        self._check_same_data(stored_robot)
        self._episodes = read_index(self.path, self._info)
        self._tasks = read_tasks(self.path)
        self._done = {(episode.task_name, episode.seed) for episode in self._episodes}
        self._frames = sum(episode.length for episode in self._episodes)
        unfinished = len(self._episodes) % EPISODES_PER_INDEX_FILE
        last = index_file(self.path, len(self._episodes) // EPISODES_PER_INDEX_FILE)
        self._rows: list[pa.Table] = [read_table(last)] if unfinished else []
        self._clean()
        self._write_info()

    def _create(self) -> None:
        """Lay out an empty dataset; refuse a directory that holds something else."""
        foreign = [
            path
            for path in self.path.rglob("*")
            if path.is_file() and path.name != LOCK_NAME and not is_temporary(path) and path != self.path / TASKS
        ]
        if foreign:
            raise DatasetError(
                f"{self.path}: not a dataset, but not empty either ({foreign[0].name}); give a new directory"
            )
        write_table(self.path / TASKS, tasks_table([]))
        write_atomic(self.path / INFO, encode_info(new_info(self.robot, self.observation_set, executed=False)))

    def _check_same_data(self, stored_robot: RobotContract) -> None:
        """Only data of the same meaning may be appended."""
        assert self._info.visuomotor is not None  # read_info refuses it
        stored = (stored_robot.name, self._info.visuomotor.observation_set, stored_robot.control_rate_hz)
        given = (self.robot.name, self.observation_set, self.robot.control_rate_hz)
        if stored != given:
            raise DatasetError(
                f"{self.path}: holds (robot, observation set, rate) {stored}; {given} cannot be added to it"
            )
        if (stored_robot.action_feature, stored_robot.observation_features(stored[1])) != (
            self.robot.action_feature,
            self._observations,
        ):
            raise DatasetError(
                f"{self.path}: its features (names, units, sizes) are not those of the robot contract given"
            )

    def _clean(self) -> None:
        """Remove what a killed writer left: files in the making, and a data file that never got its row."""
        for path in [p for part in ("meta", "data") for p in (self.path / part).rglob(".*") if is_temporary(p)]:
            path.unlink()
        expected = {data_file(self.path, episode.index) for episode in self._episodes}
        stray = set((self.path / "data").glob("chunk-*/file-*.parquet")) - expected
        unfinished = data_file(self.path, len(self._episodes))
        if stray - {unfinished}:
            raise DatasetError(
                f"{min(stray)}: no row of meta/episodes names this data; its rows were lost: restore them"
            )
        unfinished.unlink(missing_ok=True)

    def has(self, task_name: str, seed: int) -> bool:
        """True if the dataset already holds an episode of this task with this seed."""
        return (task_name, seed) in self._done

    def holds(self, episode: EpisodeData, any_seed: bool = False) -> bool:
        """True if the dataset already holds this very episode: the same actions and measurements.

        Pictures are not compared, and need not be there yet.

        `any_seed`: under whatever seed, and not under its own alone. Raises DatasetError: it does not fit the contract,
        or a file is damaged.
        """
        vectors = [feature for feature in self._observations if not feature.is_image]
        pictures = {feature.key for feature in self._observations if feature.is_image}
        seen = {key: values for key, values in episode.observations.items() if key not in pictures}
        episode = checked_episode(replace(episode, observations=seen), vectors, self.robot.action_feature)
        keys = [feature.key for feature in vectors]
        values = {"action": episode.actions} | {key: episode.observations[key] for key in keys}
        alike = (episode.task_name, len(episode))
        for info in self._episodes:
            if (info.task_name, info.length) == alike and (any_seed or info.seed == episode.seed):
                stored = read_columns(self.path, self._info, info, values)
                if all(np.array_equal(stored[key], values[key]) for key in values):
                    return True
        return False

    def free_seed(self, task_name: str) -> int:
        """A seed that no episode of the task has."""
        return 1 + max((episode.seed for episode in self._episodes if episode.task_name == task_name), default=-1)

    def __len__(self) -> int:
        """Number of completed episodes."""
        return len(self._episodes)

    def add(self, episode: EpisodeData) -> None:
        """Append one episode; when this returns it survives any crash.

        `action.executed` becomes a feature of the dataset with the first episode if that one has it; a later episode
        without it executed exactly its actions.

        Raises:
            DatasetError: it does not fit the contract, is already there, or has `executed` where the dataset does not.
        """
        if self._closed:
            raise DatasetError(f"{self.path}: this writer is closed")
        if self.has(episode.task_name, episode.seed):
            raise DatasetError(
                f"{self.path}: already has an episode of {episode.task_name!r} with seed {episode.seed}; "
                "one of another seed, or another dataset, would be right"
            )
        episode = checked_episode(episode, self._observations, self.robot.action_feature)
        self._settle_executed(episode)
        info = EpisodeInfo(
            len(self._episodes), len(episode), episode.task, episode.task_name, episode.seed, episode.success
        )
        task_index = self._task_index(episode.task)
        values = self._values(episode, info.index, task_index)
        columns = {key: to_column(feature, values[key]) for key, feature in self._info.features.items()}
        row = episode_row(info, self._frames, self._statistics(values))
        write_table(data_file(self.path, info.index), pa.table(columns))
        number = info.index // EPISODES_PER_INDEX_FILE
        rows = [*self._rows, row]
        write_table(index_file(self.path, number), pa.concat_tables(rows).combine_chunks())
        self._rows = [] if (info.index + 1) % EPISODES_PER_INDEX_FILE == 0 else rows
        self._episodes.append(info)
        self._done.add((info.task_name, info.seed))
        self._frames += info.length
        self._write_info()

    def _settle_executed(self, episode: EpisodeData) -> None:
        """Decide with the first episode whether the dataset has `action.executed`; hold later ones to it."""
        if not self._episodes:
            executed = episode.executed is not None
            self._info.features = stored_features(self.robot, self.observation_set, executed)
            self._write_info()
            return
        if EXECUTED not in self._info.features and not np.array_equal(episode.applied, episode.actions):
            raise DatasetError(
                f"{self.path}: has no feature {EXECUTED!r} because its first episode had none; "
                "record episodes whose executed actions differ into a new dataset"
            )

    def _task_index(self, task: str) -> int:
        """The task's index; a new task is written down before the episode that needs it."""
        if task not in self._tasks:
            write_table(self.path / TASKS, tasks_table([*self._tasks, task]))
            self._tasks.append(task)
        return self._tasks.index(task)

    def _values(self, episode: EpisodeData, index: int, task_index: int) -> dict[str, np.ndarray]:
        """Every column's values."""
        length = len(episode)
        frame = np.arange(length, dtype=np.int64)
        return {
            **episode.observations,
            "action": episode.actions,
            EXECUTED: episode.applied,
            "timestamp": (frame / self._info.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, index, dtype=np.int64),
            "index": frame + self._frames,
            "task_index": np.full(length, task_index, dtype=np.int64),
        }

    def _statistics(self, values: dict[str, np.ndarray]) -> dict[str, Statistics]:
        """One episode's statistics of every feature."""
        return {
            key: image_statistics(values[key])
            if feature.dtype == "image"
            else vector_statistics(values[key].reshape(len(values[key]), -1))
            for key, feature in self._info.features.items()
        }

    def _write_info(self) -> None:
        """Bring info.json up to date."""
        before = encode_info(self._info)
        info = self._info
        info.total_episodes = len(self._episodes)
        info.total_frames = self._frames
        info.total_tasks = len(self._tasks)
        info.splits = {"train": f"0:{len(self._episodes)}"}
        content = encode_info(info)
        if content != before or not (self.path / INFO).exists() or (self.path / INFO).read_bytes() != content:
            write_atomic(self.path / INFO, content)

    def finalize(self) -> None:
        """Write meta/stats.json over all episodes and let other writers in; a second time does nothing.

        Raises:
            DatasetError: an episode's file was damaged behind our back.
        """
        if self._closed:
            return
        self._closed = True
        try:
            write_atomic(self.path / STATS, encode_statistics(whole_statistics(self.path, self._info, self._episodes)))
        finally:
            self._lock.release()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finalize()
