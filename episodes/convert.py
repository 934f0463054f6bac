"""A robot's recording, or a dataset that others recorded, as training data; a dataset's episode as a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from contracts.feature import Feature
from contracts.robot import JOINT_STATE, RobotContract
from contracts.serialization import ContractError
from episodes.bag import EPISODE_TOPIC, BagError, BagReader, BagWriter, Topic
from episodes.bag_rows import ConversionReport, bag_episode, commands_topic
from episodes.data import DatasetError, EpisodeData
from episodes.dataset import Dataset
from episodes.foreign import ForeignDataset
from episodes.messages import joint_state, message_definition, message_type, number_array, qos_yaml, serialize
from episodes.samples import (
    BOOL,
    IMAGE,
    STRING,
    episode_message,
    image_message,
    is_sustained,
    sensor_message,
    sensors_of,
    topic_name,
)
from episodes.writer import DatasetWriter

FIRST_STAMP_NS = (
    1_000_000_000  # of a recording made from a dataset, which knows no date; 0 would mean "no stamp" in ROS
)
PAUSE_NS = 1_000_000_000  # between two episodes of such a recording
SENSOR_QOS = qos_yaml("best_effort", "volatile", 1)
COMMAND_QOS = qos_yaml("reliable", "volatile", 1)
LATCHED_QOS = qos_yaml("reliable", "transient_local", 1)


def bag_to_dataset(
    bag: Path | str,
    dataset: Path | str,
    observation_set: str | None = None,
    robot: RobotContract | None = None,
    assume_success: bool = False,
) -> ConversionReport:
    """Add every episode of a recording to a dataset, new or already there; a row for each command really applied.

    Row t holds the newest sensor samples at or before the stamp of the t-th `applied_command`, and that command, mapped
    by name to the robot's channels. A real robot publishes none: there it is the command that it was sent.

    A simulated episode has the seed that its scene was made of, and a dataset one episode of a task and seed. A real
    robot's seeds only number its episodes, from the same one in each run: one that is taken is replaced by a free one.

    Args:
        observation_set: what to keep; by default what the recording says that its policy saw.
        robot: by default the contract that lies in the recording.
        assume_success: what an episode is taken for of which nobody said whether it succeeded.

    Raises:
        BagError: not a recording, without an episode, or it does not say of which robot.
        DatasetError: the dataset holds other data.
    """
    reader = BagReader(Path(bag))
    robot = robot or reader.robot()
    if robot is None:
        raise BagError(f"{bag}: holds no robot contract; name the robot")
    episodes = reader.episodes()
    if not episodes:
        raise BagError(f"{bag}: no message on a topic {EPISODE_TOPIC!r}, so there is no episode in it")
    observation_set = observation_set or episodes[0].description.get("observation_set")
    if not isinstance(observation_set, str):
        raise BagError(
            f"{bag}: does not say which observation set was used; name one of {sorted(robot.observation_sets)}"
        )
    report = ConversionReport()
    with DatasetWriter(dataset, robot, observation_set) as writer:
        for episode in episodes:
            try:
                data = bag_episode(reader, episode, robot, observation_set, report, assume_success)
            except (BagError, ContractError) as error:
                report.skipped.append(f"episode {episode.index}: {error}")
                continue
            _add(writer, data, episode.index, report)
    report.problems = reader.problems
    return report


def lerobot_to_dataset(
    source: Path | str,
    dataset: Path | str,
    robot: RobotContract,
    observation_set: str | None = None,
    assume_success: bool = False,
    progress: bool = False,
) -> ConversionReport:
    """Add every episode of a LeRobotDataset v3.0 that others recorded to a dataset, new or already there.

    Nothing is written before all its numbers were read. What is wrong with one episode (a number that is not finite, an
    action outside of its channel's limits) costs that one alone. The task's short name is the instruction; the seed is
    the episode's number there, or a free one if that is taken.

    Args:
        robot: of a robot of `body: external`, by which the dataset is read.
        observation_set: what to keep; by default the contract's only one.
        assume_success: what every episode is taken for, since LeRobot does not store how it ended. (What must be
            sustained, such as walking, always counts as a success.)
        progress: show a bar.

    Raises:
        DatasetError: it does not fit the contract (with every difference), none of its episodes can be taken over, or
            `dataset` holds other data, or lies in `source`.
    """
    foreign = ForeignDataset(source, robot, observation_set)
    inside = Path(dataset).resolve()
    if foreign.path.resolve() in (inside, *inside.parents):
        raise DatasetError(f"{dataset}: is part of {source}, which is left as it is; give another directory")
    success = is_sustained(robot) or assume_success
    report = ConversionReport(unused=foreign.unused)
    unusable = foreign.unusable(progress)
    with DatasetWriter(dataset, robot, foreign.observation_set) as writer:
        for index in tqdm(range(len(foreign)), "convert", unit="episode", disable=not progress):
            if index in unusable:
                report.skipped.append(f"episode {index}: {unusable[index]}")
                continue
            _add(writer, foreign.numbers(index, success), index, report, partial(foreign.pictures, index))
    report.unjudged = 0 if is_sustained(robot) else report.added
    return report


def _add(
    writer: DatasetWriter,
    episode: EpisodeData,
    index: int,
    report: ConversionReport,
    pictures: Callable[[], dict[str, np.ndarray]] = dict,
) -> None:
    """Add an episode, number `index` of its source, unless it is there already; `pictures` are asked for only then."""
    renumber = writer.robot.body == "external"
    try:
        if writer.holds(episode, any_seed=renumber):
            report.present += 1
            return
        episode.observations |= pictures()
        if renumber and writer.has(episode.task_name, episode.seed):
            episode.seed = writer.free_seed(episode.task_name)
        writer.add(episode)
    except DatasetError as error:
        report.skipped.append(f"episode {index}: {error}")
        return
    report.added += 1


def dataset_to_bag(dataset: Dataset, bag: Path | str) -> Path:
    """Write a dataset as a recording with the robot's topics, one file an episode.

    Commands are those really executed. Every sensor whose fields the observation set holds is there; a PoseStamped
    or an Imu only when all of its fields are. Stamps begin at 1 s, since a dataset knows no date.

    Raises:
        BagError: the directory is not empty.
        DatasetError: an episode is damaged.
    """
    robot = dataset.robot
    start = FIRST_STAMP_NS
    with BagWriter(bag, recorded_topics(robot, robot.observation_features(dataset.observation_set)), robot) as writer:
        for index in range(len(dataset)):
            writer.split()
            end = start
            for topic, type_name, message, stamp in episode_messages(dataset, index, start):
                writer.write(topic, serialize(message, type_name), stamp, stamp)
                end = stamp
            start = end + PAUSE_NS
    return Path(bag)


def recorded_topics(robot: RobotContract, features: tuple[Feature, ...]) -> list[Topic]:
    """The topics that tell an episode with these features."""
    sensors, cameras = sensors_of(robot, features)
    listed = [
        ("episode", STRING, LATCHED_QOS),
        (*commands_topic(robot), COMMAND_QOS),
        ("success", BOOL, COMMAND_QOS),
    ]
    listed += dict.fromkeys((sensor.topic, sensor.type, SENSOR_QOS) for sensor in sensors)
    listed += [(camera.topic, IMAGE, SENSOR_QOS) for camera in cameras]
    full = partial(topic_name, "/" + robot.name)
    return [Topic(full(topic), kind, message_definition(kind), qos) for topic, kind, qos in listed]


def episode_messages(dataset: Dataset, index: int, start_ns: int) -> Iterator[tuple[str, str, Any, int]]:
    """(topic, type, message, stamp ns) of one episode in order of time, from `start_ns` on. Raises DatasetError."""
    robot, data = dataset.robot, dataset.episode(index)
    full = partial(topic_name, "/" + robot.name)
    features = robot.observation_features(dataset.observation_set)
    sensors, cameras = sensors_of(robot, features)
    columns = {n: data.observations[f.key][:, i] for f in features if not f.is_image for i, n in enumerate(f.names)}
    channels = [channel.name for channel in robot.command.channels]
    description = {
        "robot": robot.name,
        "task": data.task,
        "task_name": data.task_name,
        "seed": data.seed,
        "episode": index,
        "observation_set": dataset.observation_set,
    }
    yield full("episode"), STRING, episode_message(description), start_ns
    stamp = start_ns
    for row in range(len(data)):
        stamp = start_ns + round(row * robot.control_period_s * 1e9)
        for sensor in sensors:
            values = {name: float(columns[name][row]) for name in sensor.fields if name in columns}
            if sensor.type == JOINT_STATE or len(values) == len(sensor.fields):
                yield full(sensor.topic), sensor.type, sensor_message(robot, sensor, values, stamp), stamp
        for camera in cameras:
            picture = data.observations[f"observation.images.{camera.name}"][row]
            yield full(camera.topic), IMAGE, image_message(camera, picture, stamp), stamp
        topic, kind = commands_topic(robot)
        if kind == JOINT_STATE:
            yield full(topic), kind, joint_state(stamp, "", channels, data.applied[row]), stamp
        else:
            yield full(topic), kind, number_array(data.applied[row]), stamp
    yield full("success"), BOOL, message_type(BOOL)(data=data.success), stamp
