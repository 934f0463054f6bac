"""Open whatever an episode lies in: a dataset's folder, a bag's folder, or one file of a bag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contracts import RobotContract
from episodes.bag import BagError, BagReader
from episodes.bag_rows import bag_episode
from episodes.convert import bag_to_dataset, dataset_to_bag, lerobot_to_dataset
from episodes.data import DatasetError, EpisodeData
from episodes.dataset import Dataset
from episodes.layout import read_any_info


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode and what it was recorded with."""

    robot: RobotContract
    observation_set: str
    data: EpisodeData


def open_episode(path: Path | str, index: int) -> RecordedEpisode:
    """Episode `index`, from 0, of a dataset or a bag.

    Raises:
        DatasetError, BagError: neither of the two, damaged, or it has no such episode.
    """
    path = Path(path)
    if is_dataset(path):
        dataset = Dataset(path)
        return RecordedEpisode(dataset.robot, dataset.observation_set, dataset.episode(index))
    reader = BagReader(path)
    robot = reader.robot()
    if robot is None:
        raise BagError(f"{path} does not say which robot it is of: it was not recorded by this project")
    episode = reader.episode(index)
    observation_set = str(episode.description.get("observation_set"))
    return RecordedEpisode(robot, observation_set, bag_episode(reader, episode, robot, observation_set))


def convert(
    source: Path | str,
    target: Path | str,
    observation_set: str | None = None,
    robot: RobotContract | None = None,
    assume_success: bool = False,
    progress: bool = False,
) -> str:
    """A dataset to a bag, or a bag or what others recorded to a dataset; returns lines that say what was done.

    See `dataset_to_bag`, `bag_to_dataset` and `lerobot_to_dataset`.

    Raises:
        DatasetError, BagError: `source` cannot be read, or `target` cannot be written.
    """
    said = ", on the topic `success`,"
    if not is_dataset(Path(source)):
        report = bag_to_dataset(source, target, observation_set, robot, assume_success)
    elif read_any_info(Path(source)).visuomotor is not None:
        return f"bag: {dataset_to_bag(Dataset(source), target)}"
    elif robot is None:
        raise DatasetError(f"{source}: others recorded it, and it holds no robot contract; name the robot (--robot)")
    else:
        report = lerobot_to_dataset(source, target, robot, observation_set, assume_success, progress)
        said = ""
    lines = [f"dataset: {target}: {report.added} episodes added, {report.present} were there already"]
    if report.unjudged:
        taken = "a success" if assume_success else "failed, and not learned from unless --assume-success"
        lines.append(f"of {report.unjudged} nobody said{said} how they ended: taken for {taken}")
    if report.dropped:
        lines.append(f"{report.dropped} control periods left out: a sensor had not spoken yet, or no usable command")
    if report.stale:
        lines.append(f"{report.stale} control periods kept whose newest sample was older than its sensor's time-out")
    if report.unused:
        lines.append(f"not of the observation set, and not kept: {', '.join(report.unused)}")
    lines += [f"left out: {reason}" for reason in report.skipped]
    lines += [f"damage: {problem}" for problem in report.problems]
    return "\n".join(lines)


def is_dataset(path: Path) -> bool:
    """Whether a folder is a dataset rather than a bag."""
    return (path / "meta").is_dir()
