"""Recordings as rosbags, which is not ours, reads them."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import numpy as np
import pytest
import yaml
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Chunk, MessageIndex, SummaryOffset
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader

from contracts.robot import RobotContract
from episodes.bag import AND_MORE, MAX_PROBLEMS, BagError, BagReader, BagWriter, Topic
from episodes.mcap_format import FOOTER, MAGIC, MESSAGE, RECORD
from episodes.messages import (
    MessageError,
    deserialize,
    joint_state,
    message_definition,
    message_type,
    qos_yaml,
    serialize,
)

STRING, STATE = "std_msgs/msg/String", "sensor_msgs/msg/JointState"
EPISODE = Topic("/r/episode", STRING, message_definition(STRING), qos_yaml("reliable", "transient_local", 1))
STATES = Topic("/r/joint_states", STATE, message_definition(STATE), qos_yaml("best_effort", "volatile", 5))


def _text(text: str) -> bytes:
    return serialize(message_type(STRING)(data=text), STRING)


def _state(stamp: int) -> bytes:
    return serialize(joint_state(stamp, "base", ["a", "b"], np.array([stamp / 1e9, 2.0])), STATE)


def _record(path: Path, episodes: int = 3, messages: int = 4) -> None:
    with BagWriter(path, [EPISODE, STATES]) as writer:
        for episode in range(episodes):
            writer.split()
            start = (episode + 1) * 1_000_000_000
            writer.write(EPISODE.name, _text(f'{{"seed": {episode}}}'), start, start)
            for number in range(messages):
                stamp = start + (number + 1) * 10_000_000
                writer.write(STATES.name, _state(stamp), stamp + 5, stamp)


def test_rosbags_reads_every_message(tmp_path: Path) -> None:
    _record(tmp_path / "bag")
    with AnyReader([tmp_path / "bag"]) as reader:
        found: list[tuple[str, int, Any]] = [
            (c.topic, time, reader.deserialize(raw, c.msgtype)) for c, time, raw in reader.messages()
        ]
    assert len(found) == 15
    assert found[0][2].data == '{"seed": 0}'
    topic, log_time, state = found[1]
    assert (topic, log_time, state.name) == ("/r/joint_states", 1_010_000_005, ["a", "b"])
    np.testing.assert_allclose(state.position, [1.01, 2.0])


def test_metadata_counts_times_and_quality_of_service(tmp_path: Path) -> None:
    _record(tmp_path / "bag")
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 15
        assert reader.start_time == 1_000_000_000
        assert reader.duration == 2_040_000_005 + 1
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        assert counts == {"/r/episode": 3, "/r/joint_states": 12}
        extra: dict[str, Any] = {connection.topic: connection.ext for connection in reader.connections}
        qos = {topic: ext.offered_qos_profiles[0] for topic, ext in extra.items()}
    assert (qos["/r/episode"].reliability.name, qos["/r/episode"].durability.name) == ("RELIABLE", "TRANSIENT_LOCAL")
    assert (qos["/r/joint_states"].reliability.name, qos["/r/joint_states"].depth) == ("BEST_EFFORT", 5)
    content = yaml.safe_load((tmp_path / "bag/metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert content["relative_file_paths"] == ["bag_0.mcap", "bag_1.mcap", "bag_2.mcap"]
    assert [file["message_count"] for file in content["files"]] == [5, 5, 5]


def test_the_index_is_whole_for_seeking_readers(tmp_path: Path) -> None:
    """Foxglove and `ros2 bag play` seek by MCAP's index; its own library checks every checksum of it."""
    _record(tmp_path / "bag", messages=40)
    for file in sorted((tmp_path / "bag").glob("*.mcap")):
        with file.open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True)
            summary = reader.get_summary()
            assert summary is not None
            assert summary.statistics is not None
            assert summary.statistics.message_count == 41
            assert {s.name for s in summary.schemas.values()} == {STRING, STATE}
            assert reader.get_header().profile == "ros2"
            later = list(
                reader.iter_messages(topics=["/r/joint_states"], starting_at=summary.statistics.message_end_time)
            )
            assert len(later) == 1


def test_metadata_is_there_before_the_first_message_and_knows_every_split(tmp_path: Path) -> None:
    def listed() -> list[str]:
        content = yaml.safe_load((tmp_path / "bag/metadata.yaml").read_text())["rosbag2_bagfile_information"]
        return list(content["relative_file_paths"])

    with BagWriter(tmp_path / "bag", [EPISODE]) as writer:
        assert listed() == ["bag_0.mcap"]
        writer.split()
        assert listed() == ["bag_0.mcap"]  # nothing was in it: no empty file is left behind
        writer.write(EPISODE.name, _text("{}"), 1, 1)
        writer.split()
        assert listed() == ["bag_0.mcap", "bag_1.mcap"]


def test_messages_leave_the_process_within_milliseconds(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", [STATES]) as writer:
        writer.write(STATES.name, _state(1), 1, 1)
        time.sleep(0.006)
        writer.write(STATES.name, _state(2), 2, 2)
        assert len(list(BagReader(tmp_path / "bag").messages())) == 2
        writer.write(STATES.name, _state(3), 3, 3)
        writer.flush()
        assert len(list(BagReader(tmp_path / "bag").messages())) == 3


def test_reading_filters_topics_and_leaves_out_what_cannot_be_decoded(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", [EPISODE, STATES, Topic("/r/own", "my_msgs/msg/Own", "int8 x")]) as writer:
        writer.write(STATES.name, _state(10), 10, 10)
        writer.write(STATES.name, _state(20)[:9], 20, 20)
        writer.write("/r/own", b"\0\1\0\0\5", 25, 25)
        writer.write(EPISODE.name, _text("{}"), 30, 30)
    assert [(topic, time) for topic, time, _ in BagReader(tmp_path / "bag").messages()] == [
        ("/r/joint_states", 10),
        ("/r/episode", 30),
    ]
    assert [time for _, time, _ in BagReader(tmp_path / "bag").messages(["/r/episode"])] == [30]
    reader = BagReader(tmp_path / "bag")
    assert len(list(reader.messages())) == 2
    assert len(reader.problems) == 2
    assert "20 ns" in reader.problems[0]
    assert "my_msgs/msg/Own" in reader.problems[1]
    assert len(list(reader.raw())) == 4  # the bytes are all there


def test_of_very_many_problems_it_is_said_that_there_are_more(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", [STATES]) as writer:
        for time_ns in range(MAX_PROBLEMS + 5):
            writer.write(STATES.name, b"", time_ns, time_ns)
    reader = BagReader(tmp_path / "bag")
    assert not list(reader.messages())
    assert len(reader.problems) == MAX_PROBLEMS + 1
    assert f" {MAX_PROBLEMS - 1} ns" in reader.problems[-2]
    assert reader.problems[-1] == AND_MORE


def test_episodes_are_found(tmp_path: Path) -> None:
    _record(tmp_path / "bag")
    episodes = BagReader(tmp_path / "bag").episodes()
    assert [e.description for e in episodes] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert [[file.name for file in e.files] for e in episodes] == [["bag_0.mcap"], ["bag_1.mcap"], ["bag_2.mcap"]]
    assert (episodes[1].start_ns, episodes[1].end_ns) == (2_000_000_000, 2_040_000_005)


def test_episodes_without_splits_and_over_several_files(tmp_path: Path) -> None:
    """Another recorder may put several episodes into a file, or split an episode by size."""
    with BagWriter(tmp_path / "bag", [EPISODE, STATES]) as writer:
        writer.write(STATES.name, _state(1), 1, 1)
        writer.write(EPISODE.name, _text('{"seed": 0}'), 10, 10)
        writer.write(EPISODE.name, _text("no JSON"), 11, 11)
        writer.write(STATES.name, _state(12), 12, 12)
        writer.write(EPISODE.name, _text('{"seed": 1}'), 20, 20)
        writer.split()
        writer.write(EPISODE.name, _text('{"seed": 1}'), 29, 29)
        writer.write(STATES.name, _state(30), 30, 30)
    first, second = BagReader(tmp_path / "bag").episodes()
    assert (first.description, first.start_ns, first.end_ns, len(first.files)) == ({"seed": 0}, 1, 12, 1)
    assert (second.description, second.start_ns, second.end_ns, len(second.files)) == ({"seed": 1}, 20, 30, 2)


def test_two_robots_in_one_recording_have_each_their_own_episodes(tmp_path: Path) -> None:
    """Regression: an episode of the one ended where one of the other began, and what it was of was not known."""
    names = ("/left/episode", "/cell/right/episode", "/left/joint_states")
    topics = [Topic(name, STATE if "states" in name else STRING, "") for name in names]
    with BagWriter(tmp_path / "bag", topics) as writer:
        writer.write("/left/episode", _text('{"seed": 0}'), 10, 10)
        writer.write("/cell/right/episode", _text('{"seed": 0}'), 11, 11)
        writer.write("/left/joint_states", _state(12), 12, 12)
        writer.split()
        writer.write("/cell/right/episode", _text('{"seed": 1}'), 20, 20)
        writer.write("/left/joint_states", _state(30), 30, 30)
        writer.write("/left/episode", _text('{"seed": 1}'), 31, 31)
    found = BagReader(tmp_path / "bag").episodes()
    spans = [(e.namespace, e.description["seed"], e.start_ns, e.end_ns, len(e.files)) for e in found]
    assert spans == [("/left", 0, 10, 30, 2), ("/cell/right", 0, 10, 12, 1), ("/cell/right", 1, 20, 31, 1),
                     ("/left", 1, 31, 31, 1)]  # fmt: skip
    assert [e.index for e in found] == [0, 1, 2, 3]


def test_the_contract_travels_in_metadata_and_in_each_file(tmp_path: Path, robot: RobotContract) -> None:
    with BagWriter(tmp_path / "bag", [STATES], robot) as writer:
        writer.write(STATES.name, _state(1), 1, 1)
    assert BagReader(tmp_path / "bag").robot() == robot
    assert BagReader(tmp_path / "bag/bag_0.mcap").robot() == robot
    _record(tmp_path / "other")
    assert BagReader(tmp_path / "other").robot() is None


def test_refusals_say_why(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", [STATES]) as writer:
        with pytest.raises(BagError, match="not announced"):
            writer.write("/r/other", b"", 1, 1)
        with pytest.raises(BagError, match="0 or more"):
            writer.write(STATES.name, _state(1), -1, 1)
        with pytest.raises(BagError, match="not empty"):
            BagWriter(tmp_path / "bag", [STATES])
    with pytest.raises(BagError, match="closed"):
        writer.write(STATES.name, _state(1), 1, 1)
    with pytest.raises(BagError, match="stands twice"):
        BagWriter(tmp_path / "twice", [STATES, STATES])
    with pytest.raises(BagError, match="no such recording"):
        list(BagReader(tmp_path / "nothing").messages())
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match=r"no \.mcap file"):
        BagReader(tmp_path / "empty").episodes()
    with pytest.raises(MessageError, match="standard ROS 2 message type"):
        message_definition("my_msgs/msg/Own")
    with pytest.raises(MessageError, match="JointState"):
        deserialize(b"\0\1\0\0", STATE)


def test_a_full_disk_leaves_what_was_recorded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from episodes import mcap_writer

    writer = BagWriter(tmp_path / "bag", [STATES])
    writer.write(STATES.name, _state(1), 1, 1)
    writer.flush()
    write = mcap_writer.os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > 20:
            return write(descriptor, data[:20])  # what still fits
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mcap_writer.os, "write", full)
    writer.write(STATES.name, _state(2), 2, 2)
    with pytest.raises(OSError, match="No space"):
        writer.flush()
    monkeypatch.undo()
    writer.close()
    with AnyReader([tmp_path / "bag"]) as reader:
        assert [time for _, time, _ in reader.messages()] == [1, 2]


def test_every_index_leads_to_its_message(tmp_path: Path) -> None:
    """The C++ readers (rosbag2, Foxglove) go from the summary to each message by these numbers; Python's does not."""
    with BagWriter(tmp_path / "bag", [EPISODE, STATES]) as writer:
        for stamp in (30, 10, 40, 20):
            writer.write(EPISODE.name, _text(str(stamp)), stamp, stamp)
            writer.write(STATES.name, _state(stamp), stamp + 5, stamp)
    content = (tmp_path / "bag/bag_0.mcap").read_bytes()
    with (tmp_path / "bag/bag_0.mcap").open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    assert summary.statistics is not None
    assert (summary.statistics.message_start_time, summary.statistics.message_end_time) == (10, 45)
    start, offsets, crc = FOOTER.unpack(content[-len(MAGIC) - FOOTER.size : -len(MAGIC)])
    assert crc
    found = []
    for index in summary.chunk_indexes:
        begin = index.chunk_start_offset + RECORD.size
        chunk = Chunk.read(ReadDataStream(io.BytesIO(content[begin:])))
        assert chunk.uncompressed_crc
        messages = lz4.frame.decompress(chunk.data)
        for channel, offset in index.message_index_offsets.items():
            assert RECORD.unpack_from(content, offset)[0] == Opcode.MESSAGE_INDEX
            entries = MessageIndex.read(ReadDataStream(io.BytesIO(content[offset + RECORD.size :])))
            assert entries.channel_id == channel
            for log_time, place in entries.records:
                assert RECORD.unpack_from(messages, place)[0] == Opcode.MESSAGE
                found.append((channel, log_time))
                stored = MESSAGE.unpack_from(messages, place + RECORD.size)
                assert (stored[0], stored[2]) == (channel, log_time)
    assert sorted(found) == [(1, s) for s in (10, 20, 30, 40)] + [(2, s) for s in (15, 25, 35, 45)]
    place = offsets
    while place < len(content) - len(MAGIC) - FOOTER.size - RECORD.size:
        opcode, length = RECORD.unpack_from(content, place)
        assert opcode == Opcode.SUMMARY_OFFSET
        group = SummaryOffset.read(ReadDataStream(io.BytesIO(content[place + RECORD.size :])))
        assert RECORD.unpack_from(content, group.group_start)[0] == group.group_opcode
        place += RECORD.size + length
