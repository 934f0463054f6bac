"""Recordings: rosbag2 directories of MCAP files, one file an episode, readable by rosbags, Foxglove and `ros2 bag`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from mcap.records import Message, Metadata

from contracts.robot import RobotContract
from contracts.serialization import ContractError
from episodes.bag_metadata import ROBOT_KEY, FileSummary, custom_data, read_metadata, write_metadata
from episodes.files import LOCK_NAME, Lock, LockedError
from episodes.mcap_scan import McapScan
from episodes.mcap_writer import McapWriter
from episodes.messages import MessageError, deserialize

EPISODE_TOPIC = "episode"  # last part of the topic's name
QOS_KEY = "offered_qos_profiles"
MAX_PROBLEMS = 100  # sentences kept
AND_MORE = "and more, which is not listed"


class BagError(ValueError):
    """A recording that cannot be used: says which file, what is wrong, and what would be right."""


class Topic(NamedTuple):
    """A topic to record: full name, type, the type's definition (`message_definition`), QoS (`qos_yaml`)."""

    name: str
    type: str
    definition: str
    qos: str = ""


class BagWriter:
    """Records raw CDR messages; safe to call from several threads.

    Every message is out of the process within milliseconds, so that a kill costs no more than those; metadata.yaml is
    there before the first message. The robot's contract travels in metadata.yaml and in each file.
    """

    def __init__(self, path: Path | str, topics: Sequence[tuple[str, ...]], robot: RobotContract | None = None) -> None:
        """Create the directory, its first file and metadata.yaml.

        Raises:
            BagError: the directory is there and not empty, another process records into it, or a topic stands twice.
        """
        self.path = Path(path)
        self._topics = [Topic(*topic) for topic in topics]
        names = [topic.name for topic in self._topics]
        if len(set(names)) != len(names):
            raise BagError(f"{self.path}: a topic stands twice in {sorted(names)}")
        self.path.mkdir(parents=True, exist_ok=True)
        if any(entry.name != LOCK_NAME for entry in self.path.iterdir()):
            raise BagError(f"{self.path}: is not empty; a recording needs a new directory")
        self._lock = bag_lock(self.path)
        self._custom = {} if robot is None else {ROBOT_KEY: json.dumps(robot.to_dict())}
        self._mutex = threading.Lock()
        self._finished: list[FileSummary] = []
        self._closed = False
        self._begin_file()

    def _begin_file(self) -> None:
        name = f"{self.path.resolve().name}_{len(self._finished)}.mcap"
        self._file = McapWriter(self.path / name)
        self._channels = {
            topic.name: self._file.add_channel(
                topic.name, topic.type, topic.definition.encode(), "ros2msg", {QOS_KEY: topic.qos}
            )
            for topic in self._topics
        }
        if self._custom:
            self._file.add_other(Metadata(ROBOT_KEY, self._custom))
        self._write_metadata([*self._finished, FileSummary(name)])

    def _write_metadata(self, files: list[FileSummary]) -> None:
        write_metadata(self.path, [(t.name, t.type, t.qos) for t in self._topics], files, self._custom)

    def _end_file(self) -> None:
        self._file.finish()
        counts = {name: self._file.counts[channel] for name, channel in self._channels.items()}
        self._finished.append(FileSummary(self._file.path.name, self._file.start_ns, self._file.end_ns, counts))

    def write(self, topic: str, data: bytes, log_time_ns: int, publish_time_ns: int) -> None:
        """Record one message as it came; times in ns of the recorder's and the sender's system clock.

        Raises:
            BagError: the topic was not announced, a time is below 0, or the writer is closed.
            OSError: the disk refuses; what was recorded before is safe.
        """
        with self._mutex:
            if self._closed:
                raise BagError(f"{self.path}: this recording is closed")
            if topic not in self._channels:
                raise BagError(f"{self.path}: topic {topic!r} was not announced; there are {sorted(self._channels)}")
            if min(log_time_ns, publish_time_ns) < 0:
                raise BagError(f"{topic}: times {log_time_ns}, {publish_time_ns} ns; 0 or more would be right")
            self._file.write(self._channels[topic], data, log_time_ns, publish_time_ns)

    def flush(self) -> None:
        """Bring the last messages out of the process too; for moments when no further message comes."""
        with self._mutex:
            if not self._closed:
                self._file.flush()

    def split(self) -> None:
        """Begin a new file (an episode); does nothing while the current one has no message."""
        with self._mutex:
            if self._closed or not self._file.message_count:
                return
            self._end_file()
            self._begin_file()

    def close(self) -> None:
        """Complete the last file and metadata.yaml; a second time does nothing."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            try:
                self._end_file()
                self._write_metadata(self._finished)
            finally:
                self._lock.release()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bag_lock(path: Path) -> Lock:
    """The lock that says that somebody writes here. Raises BagError when somebody else does."""
    try:
        return Lock(path / LOCK_NAME)
    except LockedError:
        raise BagError(f"{path}: is being recorded or repaired by another process; wait for it to end") from None


def bag_files(path: Path | str) -> list[Path]:
    """The MCAP files of a bag directory in the order of their numbers, or the one file given. Raises BagError."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BagError(f"{path}: no such recording; the path of a rosbag2 directory or of an .mcap file would be right")
    files = [file for file in path.glob("*.mcap") if not file.name.startswith(".")]
    if not files:
        raise BagError(f"{path}: holds no .mcap file, so it is not a recording that can be read")
    return sorted(files, key=lambda file: (_file_number(file), file.name))


def _file_number(file: Path) -> int:
    found = re.search(r"_(\d{1,18})$", file.stem)
    return int(found.group(1)) if found else 0


@dataclass(frozen=True)
class RecordedMessage:
    """One message of a recording: topic, time of recording (ns), type name and the CDR bytes as they came."""

    topic: str
    log_time_ns: int
    type: str
    data: bytes

    def decoded(self) -> Any:
        """The message as an object with the fields of its type. Raises MessageError."""
        return deserialize(self.data, self.type)


@dataclass(frozen=True)
class BagEpisode:
    """An episode of a recording: what the `episode` topic said of it, its files, first and last log time (ns).

    `namespace` is the robot's when it was recorded: that of the `episode` topic, such as `/left`.
    """

    index: int
    namespace: str
    description: dict[str, Any]
    files: tuple[Path, ...]
    start_ns: int
    end_ns: int


@dataclass
class BagReader:
    """Reads a recording, complete or torn off by a kill, without changing it.

    Attributes:
        path: a rosbag2 directory or one .mcap file.
        problems: damage met and messages left out so far, a sentence each; of many the first ones, and AND_MORE.
    """

    path: Path
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.files = bag_files(self.path)

    def raw(
        self, topics: Collection[str] | None = None, files: Sequence[Path] | None = None
    ) -> Iterator[RecordedMessage]:
        """Messages in the order in which they were recorded, of all topics or of those named. Raises BagError."""
        for file in self.files if files is None else files:
            scan = McapScan(file)
            try:
                for record in scan.records():
                    if isinstance(record, Message):
                        channel = scan.channels[record.channel_id]
                        if topics is None or channel.topic in topics:
                            schema = scan.schemas.get(channel.schema_id)
                            yield RecordedMessage(
                                channel.topic, record.log_time, schema.name if schema else "", record.data
                            )
            except OSError as error:
                raise BagError(f"{file}: cannot be read ({error.strerror})") from None
            for problem in scan.problems:
                self.note(f"{file.name} {problem}")

    def messages(self, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, Any]]:
        """(topic, log time ns, decoded message); what cannot be decoded is left out and noted in `problems`."""
        for message in self.raw(topics):
            decoded = self.decode(message)
            if decoded is not None:
                yield message.topic, message.log_time_ns, decoded

    def decode(self, message: RecordedMessage) -> Any | None:
        """The message, or None and a note where it cannot be decoded."""
        try:
            return message.decoded()
        except MessageError as error:
            self.note(f"{message.topic} at {message.log_time_ns} ns left out: {error}")
            return None

    def note(self, problem: str) -> None:
        """Remember that something was wrong; the same thing, met again, counts once."""
        if problem not in self.problems and len(self.problems) <= MAX_PROBLEMS:
            self.problems.append(problem if len(self.problems) < MAX_PROBLEMS else AND_MORE)

    def robot(self) -> RobotContract | None:
        """The contract of the robot that was recorded, if the recording holds it.

        Raises:
            BagError: it holds one that is damaged.
        """
        text = custom_data(read_metadata(self.path)).get(ROBOT_KEY) if self.path.is_dir() else None
        try:
            for file in self.files if text is None else []:
                metadata = (r for r in McapScan(file).records() if isinstance(r, Metadata) and r.name == ROBOT_KEY)
                text = next((record.metadata.get(ROBOT_KEY) for record in metadata), None)
                if text is not None:
                    break
            return None if text is None else RobotContract.from_json(text, source=f"{self.path}: robot contract")
        except OSError as error:
            raise BagError(f"{self.path}: cannot be read ({error.strerror})") from None
        except ContractError as error:
            raise BagError(str(error)) from None

    def episodes(self) -> list[BagEpisode]:
        """The episodes recorded: one begins where the `episode` topic says something new; later files continue it.

        Each robot's, by its namespace: those of two robots may go on at the same time.
        """
        found: list[BagEpisode] = []
        latest: dict[str, int] = {}  # of each namespace, the index of its newest episode
        for file in self.files:
            start: int | None = None
            for message in self.raw(files=[file]):
                start = message.log_time_ns if start is None else start
                namespace, _, name = message.topic.rpartition("/")
                description = self._description(message) if name == EPISODE_TOPIC else None
                before = found[latest[namespace]] if namespace in latest else None
                if description is not None and not (before is not None and before.description == description):
                    begin = message.log_time_ns if before is not None and file in before.files else start
                    latest[namespace] = len(found)
                    found.append(BagEpisode(len(found), namespace, description, (file,), begin, begin))
                for index in latest.values():
                    files = found[index].files if file in found[index].files else (*found[index].files, file)
                    found[index] = replace(found[index], files=files, end_ns=message.log_time_ns)
        return found

    def episode(self, index: int) -> BagEpisode:
        """The episode of that index, from 0. Raises BagError: there is none."""
        episodes = self.episodes()
        if not 0 <= index < len(episodes):
            raise BagError(f"{self.path}: has {len(episodes)} episodes (from 0 on), no episode {index}")
        return episodes[index]

    def _description(self, message: RecordedMessage) -> dict[str, Any] | None:
        decoded = self.decode(message)
        try:
            description = json.loads(decoded.data) if decoded is not None else None
        except (ValueError, RecursionError, AttributeError, TypeError):
            description = None
        if not isinstance(description, dict):
            self.note(f"{message.topic} at {message.log_time_ns} ns left out: not a JSON object")
            return None
        return description
