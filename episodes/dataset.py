"""Reading a dataset in the LeRobotDataset v3 layout; the writer comes with it."""

from __future__ import annotations

from pathlib import Path

from contracts.feature import Feature
from contracts.robot import RobotContract
from episodes.arrays import training_arrays
from episodes.data import DatasetError, EpisodeData, EpisodeInfo, TrainingArrays
from episodes.layout import EXECUTED, SCALARS, read_info
from episodes.reading import read_columns, read_index, read_statistics, read_tasks, whole_statistics
from episodes.statistics import Statistics
from episodes.writer import DatasetWriter

__all__ = ["Dataset", "DatasetError", "DatasetWriter", "EpisodeData", "EpisodeInfo", "TrainingArrays"]


class Dataset:
    """A dataset as it is on the disk now: the episodes that were complete when it was opened.

    Attributes:
        path: its directory.
        robot: contract of the robot that it was recorded on.
        observation_set: which of that robot's observation sets it holds.
        features: key -> Feature of everything observed, then `action` (and `action.executed` where that differs).
        episodes: what the index says of each.
        tasks: instruction texts.
    """

    def __init__(self, path: Path | str) -> None:
        """Open and check the index.

        Raises:
            DatasetError: names the file that is missing or damaged, and what would be right.
        """
        self.path = Path(path)
        self._info, self.robot = read_info(self.path)
        assert self._info.visuomotor is not None  # read_info refuses it
        self.observation_set: str = self._info.visuomotor.observation_set
        self.episodes: list[EpisodeInfo] = read_index(self.path, self._info)
        self.tasks: list[str] = read_tasks(self.path)
        self.features: dict[str, Feature] = _features(self.robot, self.observation_set, EXECUTED in self._info.features)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def frames(self) -> int:
        """Number of rows of all episodes."""
        return sum(episode.length for episode in self.episodes)

    def episode(self, index: int) -> EpisodeData:
        """One episode in full.

        Raises:
            DatasetError: there is no such episode, or its file is missing or damaged.
        """
        if not 0 <= index < len(self.episodes):
            raise DatasetError(f"{self.path}: has no episode {index}; it has 0 to {len(self.episodes) - 1}")
        info = self.episodes[index]
        columns = read_columns(self.path, self._info, info, self.features)
        actions = columns.pop("action")
        executed = columns.pop(EXECUTED, None)
        return EpisodeData(columns, actions, info.task, info.task_name, info.seed, info.success, executed)

    def statistics(self) -> dict[str, Statistics]:
        """Key -> {min, max, mean, std, count, q01, q10, q50, q90, q99} over all frames, float64.

        Every entry is [D] of a vector, (3, 1, 1) of an image, scaled to [0, 1]; `count` is [1]. Read from
        meta/stats.json when that is up to date, else worked out.

        Raises:
            DatasetError: the dataset is empty, or a file is damaged.
        """
        if not self.episodes:
            raise DatasetError(f"{self.path}: has no episode, so it has no statistics")
        statistics = read_statistics(self.path, self._info, self.frames)
        if statistics is None:
            statistics = whole_statistics(self.path, self._info, self.episodes)
        return {key: values for key, values in statistics.items() if key not in SCALARS}

    def arrays(self) -> TrainingArrays:
        """The whole dataset as memory-mapped arrays, cached in `.cache` within the dataset; made anew when stale.

        Raises:
            DatasetError: the dataset is empty, an episode is damaged, or the cache cannot be written.
        """
        return training_arrays(self.path, self._info, self.episodes, self.tasks)


def _features(robot: RobotContract, observation_set: str, executed: bool) -> dict[str, Feature]:
    action = robot.action_feature
    features = {feature.key: feature for feature in robot.observation_features(observation_set)}
    features["action"] = action
    if executed:
        features[EXECUTED] = Feature(key=EXECUTED, shape=action.shape, names=action.names, units=action.units)
    return features
