"""Mends a recording that was torn off or damaged; the damaged original always stays beside the mended file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mcap.records import Attachment, Message, Metadata, Schema

from episodes.bag import QOS_KEY, BagError, bag_files, bag_lock
from episodes.bag_metadata import (
    NAME,
    ROBOT_KEY,
    FileSummary,
    agrees,
    custom_data,
    listed_topics,
    metadata,
    read_metadata,
    usable_qos,
    write_metadata,
)
from episodes.files import is_temporary, sync_directory, temporary_name
from episodes.mcap_scan import McapScan
from episodes.mcap_writer import McapWriter
from episodes.messages import MessageError, is_definition, message_definition

DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True)
class RepairReport:
    """What `repair` found and did.

    Attributes:
        path: the recording.
        actions: what was done, a sentence each; empty when the recording was in order.
        messages: messages that can be read now.
    """

    path: Path
    actions: tuple[str, ...]
    messages: int

    def __str__(self) -> str:
        if not self.actions:
            return f"{self.path}: in order, {self.messages} messages"
        done = [f"  - {action}" for action in self.actions]
        return "\n".join([f"{self.path}: repaired, {self.messages} messages", *done])


@dataclass
class _Contents:
    """What one scan of a file found."""

    summary: FileSummary
    topics: dict[str, tuple[str, str]]  # name -> (type, qos yaml)
    other: dict[str, str]  # our own metadata records
    problems: list[str]


def repair(path: Path | str) -> RepairReport:
    """Make a recording complete again: every file with its index and footer, metadata.yaml that says what is there.

    A file that is in order is not touched; one that is not is written anew with every message that can be read, and the
    original is kept beside it as `<name>.damaged`. A second call finds everything in order.

    Args:
        path: a rosbag2 directory of MCAP files.

    Raises:
        BagError: no such recording, not one of ROS 2 messages, or somebody records into it at this moment.
        OSError: the disk refuses; the originals are still there.
    """
    path = Path(path)
    if not path.is_dir():
        raise BagError(f"{path}: not the directory of a recording")
    bag_files(path)  # raises when there is nothing to repair
    with bag_lock(path):
        return _repair(path)


def _repair(path: Path) -> RepairReport:
    actions = []
    for litter in [file for file in path.iterdir() if is_temporary(file)]:
        litter.unlink()  # a repair that was killed; its original is still in place
    contents = []
    for file in bag_files(path):
        found = _scan(file)
        if found.problems:
            kept = _rewrite(file, listed_topics(read_metadata(path)))
            problem = "; ".join(found.problems[:3])
            found = _scan(file)
            actions.append(
                f"{file.name} {problem}: written anew with {found.summary.message_count} messages, "
                f"original kept as {kept.name}"
            )
        contents.append(found)
    actions += _mend_metadata(path, contents)
    return RepairReport(path, tuple(actions), sum(found.summary.message_count for found in contents))


def _scan(file: Path) -> _Contents:
    """Read a file to its end."""
    scan = McapScan(file)
    summary = FileSummary(file.name)
    other = {}
    for record in scan.records():
        if isinstance(record, Message):
            topic = scan.channels[record.channel_id].topic
            summary.start_ns = record.log_time if not summary.counts else min(summary.start_ns, record.log_time)
            summary.end_ns = max(summary.end_ns, record.log_time)
            summary.counts[topic] = summary.counts.get(topic, 0) + 1
        elif isinstance(record, Metadata) and record.name == ROBOT_KEY:
            other.update(record.metadata)
    topics = {}
    for channel in scan.channels.values():
        if channel.message_encoding != "cdr":
            raise BagError(
                f"{file}: {channel.topic} is encoded as {channel.message_encoding!r}; ROS 2's cdr is repaired"
            )
        schema = scan.schemas.get(channel.schema_id)
        if schema is not None and not _is_whole(schema):
            scan.problems.append(f"has an unreadable definition of {schema.name}")
        qos = channel.metadata.get(QOS_KEY, "")
        if usable_qos(qos) != qos:
            scan.problems.append(f"has an unreadable quality of service of {channel.topic}")
        topics[channel.topic] = (schema.name if schema else "", usable_qos(qos))
    return _Contents(summary, topics, other, scan.problems)


def _rewrite(file: Path, listed: dict[str, tuple[str, str]]) -> Path:
    """Write what can be read of `file` in its place; returns the name under which the original stays.

    `listed` are the topics' (type, qos yaml) in metadata.yaml, for those whose description in the file is damaged.
    """
    mended = temporary_name(file)
    with McapWriter(mended) as writer:
        _copy(McapScan(file), writer, listed)
    kept = _keep(file)
    mended.replace(file)
    sync_directory(file.parent)
    return kept


def _copy(scan: McapScan, writer: McapWriter, listed: dict[str, tuple[str, str]]) -> None:
    """Copy messages, channels without a message, attachments and metadata."""
    ids: dict[int, int] = {}

    def announce(channels: Iterable[int]) -> None:
        for number in channels:
            if number not in ids:
                channel = scan.channels[number]
                type_name, qos = listed.get(channel.topic, ("", ""))
                schema = scan.schemas.get(channel.schema_id)
                if schema is None or not _is_whole(schema):
                    schema = _standard_schema(type_name or (schema.name if schema else ""))
                details = dict(channel.metadata)
                details[QOS_KEY] = usable_qos(details.get(QOS_KEY, "")) or qos
                ids[number] = writer.add_channel(channel.topic, schema.name, schema.data, schema.encoding, details)

    for record in scan.records():
        announce(scan.channels)
        if isinstance(record, Message):
            writer.write(ids[record.channel_id], record.data, record.log_time, record.publish_time)
        elif isinstance(record, Attachment | Metadata):
            writer.add_other(record)
    announce(scan.channels)


def _is_whole(schema: Schema) -> bool:
    """False for a definition that no reader understands."""
    return schema.encoding != "ros2msg" or is_definition(schema.name, schema.data.decode())


def _standard_schema(type_name: str) -> Schema:
    """The schema of a standard message type; an empty one of any other."""
    try:
        return Schema(id=0, data=message_definition(type_name).encode(), encoding="ros2msg", name=type_name)
    except MessageError:
        return Schema(id=0, data=b"", encoding="", name=type_name)


def _keep(file: Path) -> Path:
    """Give the original a second name, so that at no moment the recording lacks the file."""
    number = 0
    while True:
        kept = file.with_name(file.name + DAMAGED_SUFFIX + (f".{number}" if number else ""))
        if not kept.exists():
            break
        if kept.samefile(file):
            return kept  # a repair that was killed got this far
        number += 1
    try:
        os.link(file, kept)
    except OSError:  # a file system without hard links
        shutil.copy2(file, kept)
    return kept


def _mend_metadata(path: Path, contents: list[_Contents]) -> list[str]:
    """Write metadata.yaml anew if it does not say what is there."""
    found = read_metadata(path)
    topics: dict[str, tuple[str, str]] = {}
    for content in contents:
        topics |= {name: value for name, value in content.topics.items() if name not in topics}
    listed = [(name, type_name, qos) for name, (type_name, qos) in topics.items()]
    summaries = [content.summary for content in contents]
    custom = custom_data(found)
    for content in contents:
        custom = {**content.other, **custom}
    if found is not None and agrees(found, metadata(listed, summaries, custom)):
        return []
    state = "did not say what is there" if found else "was not readable" if (path / NAME).exists() else "was missing"
    if (path / NAME).exists():
        _keep(path / NAME)
    write_metadata(path, listed, summaries, custom)
    return [f"{NAME} {state}: written anew"]
