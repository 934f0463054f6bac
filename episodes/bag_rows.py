"""The rows of a recorded episode: what was measured, asked for and applied in each control period."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contracts.feature import Feature
from contracts.messages import concerns, image_array, sensor_fields
from contracts.robot import JOINT_STATE, Camera, RobotContract, Sensor
from episodes.bag import BagEpisode, BagError, BagReader
from episodes.data import EpisodeData
from episodes.samples import (
    Timeline,
    check_finite,
    is_sustained,
    message_stamp,
    named_positions,
    sensors_of,
    topic_name,
)

RUN, STOPPED = "run", "stopped"  # modes of the controller
RATE_TOLERANCE = 0.1  # relative, of commands by whoever drove the robot
NOTHING = -1  # index of what is added to a row of values: none, which counts as 0


@dataclass
class ConversionReport:
    """What came of a recording, or of a dataset that others recorded.

    Attributes:
        added: episodes that are in the dataset now and were not before.
        present: episodes that it already had.
        skipped: "episode n: why not", of those that could not be converted.
        dropped: control periods left out because no sensor had spoken yet, or their command was not usable.
        stale: control periods whose newest sensor sample was older than the contract's time-out; they were kept.
        unjudged: episodes of which nobody said whether they succeeded; of a real robot, often nobody does.
        problems: damage met in the recording.
        unused: what the other dataset holds and the observation set does not name.
    """

    added: int = 0
    present: int = 0
    skipped: list[str] = field(default_factory=list)
    dropped: int = 0
    stale: int = 0
    unjudged: int = 0
    problems: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def bag_episode(
    reader: BagReader,
    episode: BagEpisode,
    robot: RobotContract,
    observation_set: str,
    report: ConversionReport | None = None,
    assume_success: bool = False,
) -> EpisodeData:
    """One recorded episode as rows.

    Args:
        report: is added to.
        assume_success: what an episode is taken for of which nobody said whether it succeeded, unless its controller
            stopped.

    Raises:
        BagError: it holds no usable row, a real robot's commands come at another rate than its control, or it does not
            say which task it was.
    """
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
    _check_rate(stamps, robot)
    chosen, complete = {}, np.ones(len(stamps), dtype=bool)
    late = np.zeros(len(stamps), dtype=bool)
    for name, timeline in recorded.samples.items():
        indices, ages = timeline.newest(stamps)
        stale = ages > recorded.timeouts_ns[name]
        chosen[name] = np.where(stale, NOTHING, indices) if name in recorded.requests else indices
        if name not in recorded.requests:
            complete &= indices >= 0
            late |= stale
    report.dropped += recorded.dropped + int((~complete).sum())
    report.stale += int((late & complete).sum())
    report.unjudged += recorded.success is None and not is_sustained(robot)
    if not complete.any():
        raise BagError(f"has no control period with a command and all of {list(recorded.samples)}")
    rows = np.flatnonzero(complete)
    observations = {f.key: _observed(f, recorded, chosen, rows) for f in features}
    description = episode.description
    task, task_name, seed = description.get("task"), description.get("task_name"), description.get("seed")
    if not isinstance(task_name, str) or not isinstance(seed, int) or isinstance(seed, bool):
        raise BagError(f"its description has no task_name and seed: {sorted(description)}")
    text = task if isinstance(task, str) and task else task_name
    pushes = _pushes(recorded, stamps[rows], reader)
    success = _succeeded(recorded, is_sustained(robot), assume_success)
    return EpisodeData(observations, actions[rows], text, task_name, seed, success, pushes=pushes)


@dataclass
class _Recorded:
    """Everything of one episode that its rows are made from: one timeline a sensor field and a camera.

    `requests` are the fields that hold what was asked for: silence, or none for too long, is 0. `pushes` is None of a
    robot that nothing could push. `success` is None as long as nobody said; `modes` are those of the controller;
    `delays_ns`, of each sensor and camera, from a message's stamp to its recording. `strangers`, what to say of a
    sensor if of its topic nothing but other joints was heard.
    """

    samples: dict[str, Timeline]
    timeouts_ns: dict[str, float]
    requests: frozenset[str] = frozenset()
    pushes: Timeline | None = None
    commands: Timeline = field(default_factory=Timeline)
    success: bool | None = None
    modes: list[str] = field(default_factory=list)
    delays_ns: dict[str, list[int]] = field(default_factory=dict)
    strangers: dict[str, str] = field(default_factory=dict)
    dropped: int = 0


def _collect(reader: BagReader, episode: BagEpisode, robot: RobotContract, features: tuple[Feature, ...]) -> _Recorded:
    """Read an episode's messages; unusable ones are noted in the reader's problems."""
    sensors, cameras = sensors_of(robot, features)
    needed = {name for feature in features if not feature.is_image for name in feature.names}
    timeouts = {name: s.timeout_s * 1e9 for s in sensors for name in s.fields if name in needed}
    timeouts |= {camera.name: camera.timeout_s * 1e9 for camera in cameras}
    requests = frozenset(name for sensor in sensors if sensor.is_request for name in sensor.fields)
    recorded = _Recorded({name: Timeline() for name in timeouts}, timeouts, requests)
    recorded.pushes = Timeline() if robot.body == "quadruped" else None
    parts: list[Sensor | Camera] = [*sensors, *cameras]
    by_topic: dict[str, list[Sensor | Camera]] = {}
    for part in parts:
        by_topic.setdefault(topic_name(episode.namespace, part.topic), []).append(part)
    others = (commands_topic(robot)[0], "success", "applied_push", "controller_state")
    applied, success, pushed, mode = (topic_name(episode.namespace, topic) for topic in others)
    for message in reader.raw({*by_topic, applied, success, pushed, mode}, episode.files):
        if not episode.start_ns <= message.log_time_ns <= episode.end_ns:
            continue
        decoded = reader.decode(message)
        try:
            if decoded is None:
                recorded.dropped += message.topic == applied
            elif message.topic == success:
                recorded.success = bool(decoded.data) or (recorded.success is True and not is_sustained(robot))
                if recorded.success and robot.body == "external" and not is_sustained(robot):
                    break  # what follows, such as bringing the arm back, is no part of the task
            elif message.topic == mode:
                recorded.modes.append(str(decoded.data))
            elif message.topic == applied:
                recorded.commands.add(*_command(robot, decoded, message.log_time_ns))
            elif message.topic == pushed:
                if recorded.pushes is not None:
                    recorded.pushes.add(message_stamp(decoded), _force(decoded))
            else:
                for part in by_topic[message.topic]:
                    _add(recorded, part, decoded, message.log_time_ns, needed)
        except (ValueError, AttributeError) as error:  # AttributeError: a message of another type than the contract's
            recorded.dropped += message.topic == applied
            reader.note(f"{message.topic} at {message.log_time_ns} ns left out: {error}")
    for name, heard in recorded.strangers.items():
        if name not in recorded.delays_ns:
            reader.note(heard)
    _check_clocks(recorded, sensors, cameras, robot)
    return recorded


def _add(recorded: _Recorded, part: Sensor | Camera, message: Any, log_time_ns: int, needed: set[str]) -> None:
    """Take a message of a sensor or a camera. Raises ValueError: it is not usable."""
    if isinstance(part, Camera):
        picture = image_array(message, part)
        recorded.samples[part.name].add(_stamp(recorded, part, message, log_time_ns), picture)
        return
    if not concerns(message, part):
        recorded.strangers[part.name] = f"none of the joints of {part.name!r} came on its topic, but {message.name}"
        return
    names, values = sensor_fields(message, part, needed)
    check_finite(values)
    stamp = log_time_ns if part.is_request else _stamp(recorded, part, message, log_time_ns)
    for name, value in zip(names, values, strict=True):
        if name in recorded.samples:
            recorded.samples[name].add(stamp, value)


def _stamp(recorded: _Recorded, part: Sensor | Camera, message: Any, log_time_ns: int) -> int:
    """A message's own stamp, ns; how long before its recording that was is kept."""
    stamp = message_stamp(message)
    recorded.delays_ns.setdefault(part.name, []).append(log_time_ns - stamp)
    return stamp


def _check_clocks(recorded: _Recorded, sensors: list[Sensor], cameras: list[Camera], robot: RobotContract) -> None:
    """Raises BagError: a real robot's stamps are of another clock than the recording's, by which its commands go."""
    parts: list[Sensor | Camera] = [*sensors, *cameras]
    for part in parts if robot.body == "external" else []:
        delay_s = float(np.median(recorded.delays_ns.get(part.name, [0]))) / 1e9
        if not -robot.control_period_s <= delay_s <= part.timeout_s:
            raise BagError(
                f"{part.name!r} is stamped {abs(delay_s):.3g} s {'before' if delay_s > 0 else 'after'} it was recorded"
                f" (the median; its time-out is {part.timeout_s:g} s): the robot's clock and the recorder's differ, so"
                " nobody knows what was seen when a command was given"
            )


def _check_rate(stamps: np.ndarray, robot: RobotContract) -> None:
    """Raises BagError: a real robot's commands, at `stamps` [T] in ns, come at another rate than its control."""
    if robot.body == "external" and len(stamps) > 1:
        rate_hz = 1e9 / max(1.0, float(np.median(np.diff(stamps))))
        if abs(rate_hz / robot.control_rate_hz - 1) > RATE_TOLERANCE:
            raise BagError(
                f"its commands come at {rate_hz:.3g} Hz, and each would be taken for a control period; "
                f"control_rate_hz, {robot.control_rate_hz:g}, would be right"
            )


def _succeeded(recorded: _Recorded, sustained: bool, assumed: bool) -> bool:
    """What was said, or is assumed; of what must be sustained or nobody judged, that the controller went on besides."""
    judged = recorded.success is not None
    ran = recorded.modes.index(RUN) if RUN in recorded.modes else len(recorded.modes)
    if (sustained or not judged) and STOPPED in recorded.modes[ran:]:
        return False
    return bool(recorded.success) if judged else sustained or assumed


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


def _force(message: Any) -> np.ndarray:
    """A WrenchStamped's force, [3]. Raises ValueError."""
    force = [message.wrench.force.x, message.wrench.force.y, message.wrench.force.z]
    check_finite(force)
    return np.array(force)


def _pushes(recorded: _Recorded, stamps: np.ndarray, reader: BagReader) -> np.ndarray | None:
    """The force of each row, [T, 3]: what carries the row's own stamp."""
    if recorded.pushes is None:
        return None
    indices, ages = recorded.pushes.newest(stamps)
    known = (indices >= 0) & (ages == 0)
    if not known.all():
        reader.note(f"in {int((~known).sum())} of {len(stamps)} periods the push is not known, and taken as none")
    values = np.array([*recorded.pushes.values, np.zeros(3)])
    return values[np.where(known, indices, NOTHING)]


def _observed(feature: Feature, recorded: _Recorded, chosen: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """[T, *feature.shape] from the samples chosen for each row."""
    if feature.is_image:
        pictures = recorded.samples[feature.camera].values
        return np.stack([pictures[i] for i in chosen[feature.camera][rows]])
    columns = [np.array([*recorded.samples[name].values, 0.0])[chosen[name][rows]] for name in feature.names]
    return np.stack(columns, axis=1).astype(np.float32)
