"""A robot's recording as training data, and a dataset's episode as a recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contracts.feature import Feature
from contracts.robot import Camera, RobotContract, Sensor
from contracts.serialization import ContractError
from episodes.bag import BagEpisode, BagError, BagReader, BagWriter, Topic
from episodes.data import DatasetError, EpisodeData
from episodes.dataset import Dataset
from episodes.messages import joint_state, message_definition, message_type, number_array, qos_yaml, serialize
from episodes.samples import (
    BOOL,
    IMAGE,
    JOINT_STATE,
    STRING,
    Timeline,
    check_finite,
    episode_message,
    fields_of,
    image_message,
    image_of,
    message_stamp,
    named_positions,
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


@dataclass
class ConversionReport:
    """What came of a recording.

    Attributes:
        added: episodes that are in the dataset now and were not before.
        present: episodes that it already had.
        skipped: "episode n: why not", of those that could not be converted.
        dropped: control periods left out because no sensor had spoken yet, or their command was not usable.
        stale: control periods whose newest sensor sample was older than the contract's time-out; they were kept.
        problems: damage met in the recording.
    """

    added: int = 0
    present: int = 0
    skipped: list[str] = field(default_factory=list)
    dropped: int = 0
    stale: int = 0
    problems: list[str] = field(default_factory=list)


def bag_to_dataset(
    bag: Path | str, dataset: Path | str, observation_set: str | None = None, robot: RobotContract | None = None
) -> ConversionReport:
    """Add every episode of a recording to a dataset, new or already there; a row for each command really applied.

    Row t holds the newest sensor samples at or before the stamp of the t-th `applied_command`, and that command, mapped
    by name to the robot's channels. A real robot publishes none: there it is the command that it was sent.

    Args:
        observation_set: what to keep; by default what the recording says that its policy saw.
        robot: by default the contract that lies in the recording.

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
        raise BagError(f"{bag}: no message on {topic_name(robot, 'episode')!r}, so there is no episode in it")
    observation_set = observation_set or episodes[0].description.get("observation_set")
    if not isinstance(observation_set, str):
        raise BagError(
            f"{bag}: does not say which observation set was used; name one of {sorted(robot.observation_sets)}"
        )
    report = ConversionReport()
    with DatasetWriter(dataset, robot, observation_set) as writer:
        for episode in episodes:
            try:
                data = bag_episode(reader, episode, robot, observation_set, report)
            except (BagError, ContractError) as error:
                report.skipped.append(f"episode {episode.index}: {error}")
                continue
            if writer.has(data.task_name, data.seed):
                report.present += 1
                continue
            try:
                writer.add(data)
            except DatasetError as error:
                report.skipped.append(f"episode {episode.index}: {error}")
                continue
            report.added += 1
    report.problems = reader.problems
    return report


def bag_episode(
    reader: BagReader,
    episode: BagEpisode,
    robot: RobotContract,
    observation_set: str,
    report: ConversionReport | None = None,
) -> EpisodeData:
    """One recorded episode as rows. Raises BagError when it holds no usable row or does not say which task it was."""
    report = report or ConversionReport()
    try:
        features = robot.observation_features(observation_set)
    except ValueError as error:
        raise BagError(f"observation set: {error}") from None
    recorded = _collect(reader, episode, robot, features)
    stamps = np.array(recorded.commands.stamps, dtype=np.int64)
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    actions = np.array([recorded.commands.values[i] for i in order], dtype=np.float32)
    chosen, complete = {}, np.ones(len(stamps), dtype=bool)
    late = np.zeros(len(stamps), dtype=bool)
    for name, timeline in recorded.samples.items():
        indices, ages = timeline.newest(stamps)
        chosen[name] = indices
        complete &= indices >= 0
        late |= ages > recorded.timeouts_ns[name]
    report.dropped += recorded.dropped + int((~complete).sum())
    report.stale += int((late & complete).sum())
    if not complete.any():
        raise BagError(f"has no control period with a command and all of {list(recorded.samples)}")
    rows = np.flatnonzero(complete)
    observations = {f.key: _observed(f, recorded, chosen, rows) for f in features}
    description = episode.description
    task, task_name, seed = description.get("task"), description.get("task_name"), description.get("seed")
    if not isinstance(task_name, str) or not isinstance(seed, int) or isinstance(seed, bool):
        raise BagError(f"its description has no task_name and seed: {sorted(description)}")
    text = task if isinstance(task, str) and task else task_name
    return EpisodeData(observations, actions[rows], text, task_name, seed, recorded.success)


@dataclass
class _Recorded:
    """Everything of one episode that its rows are made from: one timeline a sensor field and a camera."""

    samples: dict[str, Timeline]
    timeouts_ns: dict[str, float]
    commands: Timeline = field(default_factory=Timeline)
    success: bool = False
    dropped: int = 0


def _collect(reader: BagReader, episode: BagEpisode, robot: RobotContract, features: tuple[Feature, ...]) -> _Recorded:
    """Read an episode's messages; unusable ones are noted in the reader's problems."""
    sensors, cameras = sensors_of(robot, features)
    needed = {name for feature in features if not feature.is_image for name in feature.names}
    timeouts = {name: s.timeout_s * 1e9 for s in sensors for name in s.fields if name in needed}
    timeouts |= {camera.name: camera.timeout_s * 1e9 for camera in cameras}
    recorded = _Recorded({name: Timeline() for name in timeouts}, timeouts)
    parts: list[Sensor | Camera] = [*sensors, *cameras]
    by_topic = {topic_name(robot, part.topic): part for part in parts}
    applied, success = topic_name(robot, commands_topic(robot)[0]), topic_name(robot, "success")
    for message in reader.raw({*by_topic, applied, success}, episode.files):
        if not episode.start_ns <= message.log_time_ns <= episode.end_ns:
            continue
        decoded = reader.decode(message)
        try:
            if decoded is None:
                recorded.dropped += message.topic == applied
            elif message.topic == success:
                recorded.success |= bool(decoded.data)
            elif message.topic == applied:
                recorded.commands.add(*_command(robot, decoded, message.log_time_ns))
            elif isinstance(part := by_topic[message.topic], Camera):
                recorded.samples[part.name].add(message_stamp(decoded), image_of(part, decoded))
            else:
                for name, value in fields_of(part, decoded).items():
                    if name in recorded.samples:
                        recorded.samples[name].add(message_stamp(decoded), value)
        except (ValueError, AttributeError) as error:  # AttributeError: a message of another type than the contract's
            recorded.dropped += message.topic == applied
            reader.note(f"{message.topic} at {message.log_time_ns} ns left out: {error}")
    return recorded


def commands_topic(robot: RobotContract) -> tuple[str, str]:
    """Topic and type of what the robot did: a simulated one says so; of a real one it is known what it was told."""
    return (robot.command.topic, robot.command.type) if robot.body == "external" else ("applied_command", JOINT_STATE)


def _command(robot: RobotContract, message: Any, log_time_ns: int) -> tuple[int, np.ndarray]:
    """Stamp (ns) and command in the contract's order; a bare array is stamped by its recorder. Raises ValueError."""
    channels = [channel.name for channel in robot.command.channels]
    if robot.body == "external":
        stamp, command = log_time_ns, list(message.data)
        if len(command) != len(channels):
            raise ValueError(f"{len(command)} elements; {len(channels)} would be right")
    else:
        stamp, values = message_stamp(message), named_positions(message)
        if sorted(values) != sorted(channels):
            raise ValueError(f"names {sorted(values)}; {sorted(channels)} would be right")
        command = [values[name] for name in channels]
    check_finite(command)
    return stamp, np.array(command)


def _observed(feature: Feature, recorded: _Recorded, chosen: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """[T, *feature.shape] from the samples chosen for each row."""
    if feature.is_image:
        pictures = recorded.samples[feature.camera].values
        return np.stack([pictures[i] for i in chosen[feature.camera][rows]])
    columns = [np.array(recorded.samples[name].values)[chosen[name][rows]] for name in feature.names]
    return np.stack(columns, axis=1).astype(np.float32)


def dataset_to_bag(dataset: Dataset, bag: Path | str, episodes: Iterable[int] | None = None) -> Path:
    """Write episodes of a dataset as a recording with the robot's topics, one file an episode.

    Commands are those really executed. Every sensor whose fields the observation set holds is there; a PoseStamped
    or an Imu only when all of its fields are. Stamps begin at 1 s, since a dataset knows no date.

    Raises:
        BagError: the directory is not empty.
        DatasetError: no such episode, or a damaged one.
    """
    robot = dataset.robot
    start = FIRST_STAMP_NS
    with BagWriter(bag, recorded_topics(robot, robot.observation_features(dataset.observation_set)), robot) as writer:
        for index in range(len(dataset)) if episodes is None else episodes:
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
    listed += [(sensor.topic, sensor.type, SENSOR_QOS) for sensor in sensors]
    listed += [(camera.topic, IMAGE, SENSOR_QOS) for camera in cameras]
    return [Topic(topic_name(robot, topic), kind, message_definition(kind), qos) for topic, kind, qos in listed]


def episode_messages(dataset: Dataset, index: int, start_ns: int) -> Iterator[tuple[str, str, Any, int]]:
    """(topic, type, message, stamp ns) of one episode in order of time, from `start_ns` on. Raises DatasetError."""
    robot, data = dataset.robot, dataset.episode(index)
    features = robot.observation_features(dataset.observation_set)
    sensors, cameras = sensors_of(robot, features)
    columns = {n: data.observations[f.key][:, i] for f in features if not f.is_image for i, n in enumerate(f.names)}
    commands = data.actions if data.executed is None else data.executed
    channels = [channel.name for channel in robot.command.channels]
    description = {
        "robot": robot.name,
        "task": data.task,
        "task_name": data.task_name,
        "seed": data.seed,
        "episode": index,
        "observation_set": dataset.observation_set,
    }
    yield topic_name(robot, "episode"), STRING, episode_message(description), start_ns
    stamp = start_ns
    for row in range(len(data)):
        stamp = start_ns + round(row * robot.control_period_s * 1e9)
        for sensor in sensors:
            values = {name: float(columns[name][row]) for name in sensor.fields if name in columns}
            if sensor.type == JOINT_STATE or len(values) == len(sensor.fields):
                yield topic_name(robot, sensor.topic), sensor.type, sensor_message(robot, sensor, values, stamp), stamp
        for camera in cameras:
            picture = data.observations[f"observation.images.{camera.name}"][row]
            yield topic_name(robot, camera.topic), IMAGE, image_message(camera, picture, stamp), stamp
        topic, kind = commands_topic(robot)
        if kind == JOINT_STATE:
            yield topic_name(robot, topic), kind, joint_state(stamp, "", channels, commands[row]), stamp
        else:
            yield topic_name(robot, topic), kind, number_array(commands[row]), stamp
    yield topic_name(robot, "success"), BOOL, message_type(BOOL)(data=data.success), stamp
