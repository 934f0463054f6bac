"""Recorders that were killed, files that were torn or damaged: what was recorded is read, and mended without a loss."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.records import Chunk
from mcap.records import Message as Recorded
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.highlevel import AnyReader

from contracts.robot import RobotContract
from episodes.bag import BagError, BagReader, BagWriter, Topic
from episodes.messages import message_definition, message_type, qos_yaml, serialize
from episodes.repair import repair

RECORDER = """
import sys, time
import numpy as np
from episodes.bag import BagWriter
from episodes.messages import joint_state, message_definition, serialize
STATE = "sensor_msgs/msg/JointState"
names = ["joint_%d" % i for i in range(8)]
writer = BagWriter(sys.argv[1], [("/r/joint_states", STATE, message_definition(STATE))])
for number in range(1_000_000):
    data = serialize(joint_state(number, "", names, np.arange(8)), STATE)
    writer.write("/r/joint_states", data, time.time_ns(), time.time_ns())
    print(number, time.time_ns(), flush=True)
    if number % 200 == 199:
        writer.split()
    time.sleep(0.002)
"""
LOST_MS = 30  # the last few milliseconds, on a machine where other work may hold the recorder up


def test_a_killed_recorder_loses_only_the_last_milliseconds(tmp_path: Path, child: Callable) -> None:
    path = tmp_path / "bag"
    process = child(RECORDER, path)
    assert process.stdout.readline()
    time.sleep(0.9)
    process.kill()
    said = [line.split() for line in process.stdout.read().splitlines()]
    process.wait()
    assert len(said) > 200, "the recorder was killed before its first split"

    found = [(int(message.header.stamp.nanosec), time) for _, time, message in BagReader(path).messages()]
    assert [number for number, _ in found] == list(range(len(found)))
    assert (int(said[-1][1]) - found[-1][1]) / 1e6 < LOST_MS

    report = repair(path)
    assert report.messages == len(found)
    assert report.actions
    with AnyReader([path]) as reader:
        assert [time for _, time, _ in reader.messages()] == [time for _, time in found]
    content = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert content["message_count"] == len(found)


def test_repair_keeps_the_original_and_finds_nothing_the_second_time(make_bag: Callable[..., Path]) -> None:
    path = make_bag("state")
    file = path / f"{path.name}_2.mcap"
    torn = file.read_bytes()[:-1000]
    file.write_bytes(torn)
    (path / "metadata.yaml").unlink()
    before = len(list(BagReader(path).messages()))
    report = repair(path)
    assert report.messages == before
    assert [action.split()[0] for action in report.actions] == [file.name, "metadata.yaml"]
    assert "repaired" in str(report)
    assert (path / f"{file.name}.damaged").read_bytes() == torn
    content = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    again = repair(path)
    assert not again.actions
    assert again.messages == before
    assert "in order" in str(again)
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == content


def test_repair_leaves_a_recording_in_order_alone(make_bag: Callable[..., Path]) -> None:
    path = make_bag()
    content = {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in path.iterdir()}
    assert not repair(path).actions
    assert {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in path.iterdir()} == content


def test_repair_keeps_the_contract(make_bag: Callable[..., Path]) -> None:
    path = make_bag("state")
    robot = BagReader(path).robot()
    for file in path.glob("*.mcap"):
        file.write_bytes(file.read_bytes()[:-100])
    (path / "metadata.yaml").unlink()
    assert BagReader(path).robot() == robot
    repair(path)
    assert BagReader(path).robot() == robot
    for file in path.glob("*.mcap"):
        assert BagReader(file).robot() == robot


def test_a_second_damage_does_not_overwrite_the_first_original(make_bag: Callable[..., Path]) -> None:
    path = make_bag("state")
    file = path / f"{path.name}_0.mcap"
    originals = []
    for cut in (50, 60):
        file.write_bytes(file.read_bytes()[:-cut])
        originals.append(file.read_bytes())
        repair(path)
    assert [entry.read_bytes() for entry in sorted(path.glob(f"{file.name}.damaged*"))] == originals


def test_a_block_lost_in_the_middle_costs_only_itself(make_bag: Callable[..., Path]) -> None:
    """After a loss of power, a block of the file may hold zeros; the chunks behind it are found again."""
    path = make_bag("image", (400,))
    (file,) = path.glob("*.mcap")
    whole = len(list(BagReader(path).messages()))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    file.write_bytes(content)
    found = len(list(BagReader(path).messages()))
    assert 0.6 * whole < found < whole
    assert repair(path).messages == found
    with AnyReader([path]) as reader:
        assert sum(1 for _ in reader.messages()) == found


def test_zeros_at_the_end_are_cut_off(make_bag: Callable[..., Path]) -> None:
    path = make_bag("state", (30,))
    (file,) = path.glob("*.mcap")
    whole = len(list(BagReader(path).messages()))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 400] + bytes(3_000_000))
    assert len(list(BagReader(path).messages())) == whole  # only the index was lost
    assert repair(path).messages == whole


def test_nobody_repairs_what_is_being_recorded(tmp_path: Path, make_bag: Callable[..., Path]) -> None:
    with BagWriter(tmp_path / "live", []), pytest.raises(BagError, match="another process"):
        repair(tmp_path / "live")
    assert not repair(tmp_path / "live").actions
    with pytest.raises(BagError, match="not the directory"):
        repair(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match="not a recording"):
        repair(tmp_path / "empty")


def test_metadata_that_says_something_else_is_written_anew(make_bag: Callable[..., Path]) -> None:
    path = make_bag("state")
    content = yaml.safe_load((path / "metadata.yaml").read_text())
    information = content["rosbag2_bagfile_information"]
    information["relative_file_paths"].pop()
    information["message_count"] = 3
    text = yaml.safe_dump(content)
    (path / "metadata.yaml").write_text(text)
    (action,) = repair(path).actions
    assert action.startswith("metadata.yaml")
    assert (path / "metadata.yaml.damaged").read_text() == text
    with AnyReader([path]) as reader:
        assert reader.message_count == sum(1 for _ in reader.messages()) == len(list(BagReader(path).messages()))


@pytest.mark.parametrize("content", [b"", b"\x89MCAP0\r\n", b"not a recording at all", bytes(5000)])
def test_a_file_with_nothing_in_it_becomes_an_empty_one(content: bytes, make_bag: Callable[..., Path]) -> None:
    path = make_bag("state")
    file = path / f"{path.name}_1.mcap"
    file.write_bytes(content)
    report = repair(path)
    assert (path / f"{file.name}.damaged").read_bytes() == content
    assert not repair(path).actions
    with AnyReader([path]) as reader:
        assert sum(1 for _ in reader.messages()) == report.messages > 0


Message = tuple[str, int, bytes]


def read(path: Path) -> list[Message]:
    """Every message of a recording or of one of its files, in order, as it was recorded."""
    return [(m.topic, m.log_time_ns, m.data) for m in BagReader(path).raw()]


@pytest.fixture
def reference(make_bag: Callable[..., Path], robot: RobotContract, tmp_path: Path) -> Path:
    """A recording in chunks of three messages, to make damaged copies of."""
    made, path = make_bag("state"), tmp_path / "reference"
    topics = {m.topic: m.type for m in BagReader(made).raw()}
    with BagWriter(path, [(topic, kind, message_definition(kind)) for topic, kind in topics.items()], robot) as writer:
        for file in sorted(made.glob("*.mcap")):
            writer.split()
            for number, (topic, time_ns, content) in enumerate(read(file)):
                writer.write(topic, content, time_ns, time_ns)
                if number % 3 == 2:
                    writer.flush()
    return path


def chunk_ends(content: bytes) -> list[tuple[int, int]]:
    """(where a chunk ends, how many messages there are up to there) of a file, as MCAP's own library reads it."""
    summary = make_reader(BytesIO(content)).get_summary()
    assert summary is not None
    chunks = [r for r in StreamReader(BytesIO(content), emit_chunks=True).records if isinstance(r, Chunk)]
    counts = accumulate(sum(isinstance(r, Recorded) for r in breakup_chunk(chunk)) for chunk in chunks)
    ends = [index.chunk_start_offset + index.chunk_length for index in summary.chunk_indexes]
    return list(zip(ends, counts, strict=True))


@pytest.fixture
def originals(reference: Path) -> dict[str, list[Message]]:
    """What each file of it holds."""
    return {file.name: read(file) for file in sorted(reference.glob("*.mcap"))}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_whatever_happens_to_a_file_the_rest_is_read_and_mended(
    data: st.DataObject, reference: Path, originals: dict[str, list[Message]]
) -> None:
    """What a mended file gives was recorded so, in that order, and lacks nothing from before the damage."""
    path = reference.with_name("copy")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(reference, path)
    middle = f"{reference.name}_1.mcap"
    damaged = data.draw(st.sampled_from([middle, "metadata.yaml"]))
    whole = (path / damaged).read_bytes()
    content, place = bytearray(whole), data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del content[place:]
    else:
        content[place : place + data.draw(st.integers(1, 300))] = data.draw(st.binary(max_size=300))
    (path / damaged).write_bytes(content)

    found = read(path)
    report = repair(path)
    assert report.messages == len(found)
    assert read(path) == found
    mended = {name: read(path / name) for name in originals}
    assert [name for name in originals if mended[name] != originals[name]] in ([], [damaged])
    if damaged == middle:
        left = iter(originals[middle])
        assert all(message in left for message in mended[middle]), "not what was recorded, or in another order"
        before = max((count for end, count in chunk_ends(whole) if end <= place), default=0)
        assert mended[middle][:before] == originals[middle][:before]
        assert not cut or len(mended[middle]) == before
    assert not repair(path).actions


def test_cut_anywhere_a_recording_gives_its_beginning(reference: Path) -> None:
    file = reference / f"{reference.name}_1.mcap"
    content = file.read_bytes()
    whole = [m.data for m in BagReader(file).raw()]
    lengths = []
    for cut in range(0, len(content), max(1, len(content) // 150)):
        file.write_bytes(content[:cut])
        found = [m.data for m in BagReader(file).raw()]
        assert found == whole[: len(found)]
        lengths.append(len(found))
    assert lengths == sorted(lengths)
    assert lengths[-1] == len(whole)


STRING, STATE = "std_msgs/msg/String", "sensor_msgs/msg/JointState"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Five chunks of a message each, stamped out of order and published earlier; a topic without any message."""
    topics = [Topic("/r/said", STRING, message_definition(STRING), qos_yaml("reliable", "transient_local", 1))]
    with BagWriter(tmp_path / "small", [*topics, Topic("/r/silent", STATE, message_definition(STATE))]) as writer:
        for stamp in (30, 10, 50, 20, 40):
            writer.write("/r/said", serialize(message_type(STRING)(data=f"{stamp} " * 20), STRING), stamp, stamp - 7)
            writer.flush()
    return tmp_path / "small"


def _times(path: Path) -> list[tuple[int, int]]:
    """Log time and publish time of every message, as MCAP's own library reads them."""
    with (path / "small_0.mcap").open("rb") as stream:
        return sorted((m.log_time, m.publish_time) for _, _, m in make_reader(stream).iter_messages())


@pytest.mark.parametrize("cut", range(1, 60))
def test_wherever_its_end_is_torn_a_mended_file_is_whole_for_others(cut: int, small: Path) -> None:
    file = small / "small_0.mcap"
    before, information = _times(small), (small / "metadata.yaml").read_text()
    file.write_bytes(file.read_bytes()[:-cut])
    assert repair(small).actions
    assert _times(small) == before == [(s, s - 7) for s in (10, 20, 30, 40, 50)]
    assert (small / "metadata.yaml").read_text() == information, "times, counts and topics are what they were"
    assert not repair(small).actions


def test_a_chunk_whose_head_is_lost_costs_only_itself(small: Path) -> None:
    """The reader cannot step over it, and finds the next one by its checksum."""
    file = small / "small_0.mcap"
    with file.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    content, second = bytearray(file.read_bytes()), summary.chunk_indexes[1].chunk_start_offset
    content[second : second + 9] = bytes([0x7E] + [0xFF] * 8)
    file.write_bytes(content)
    assert [time for _, time, _ in BagReader(small).messages()] == [30, 50, 20, 40]
    assert repair(small).messages == 4


def test_a_flipped_bit_is_never_read_as_a_message(small: Path) -> None:
    file = small / "small_0.mcap"
    content = file.read_bytes()
    written = {(m.topic, m.type, m.log_time_ns, m.data) for m in BagReader(small).raw()}
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with contextlib.suppress(BagError):
            assert {(m.topic, m.type, m.log_time_ns, m.data) for m in BagReader(small).raw()} <= written, place


def test_a_repair_that_was_killed_is_gone_on_with(small: Path) -> None:
    """It had linked the original, and was writing the mended file."""
    file = small / "small_0.mcap"
    file.write_bytes(file.read_bytes()[:-20])
    file.with_name(f"{file.name}.damaged").hardlink_to(file)
    file.with_name(f".{file.name}.77.tmp").write_bytes(b"half")
    repair(small)
    assert sorted(entry.name for entry in small.iterdir() if entry.name != ".lock") == [
        "metadata.yaml", "small_0.mcap", "small_0.mcap.damaged"
    ]  # fmt: skip


def test_a_definition_that_is_lost_is_that_of_metadata_yaml(small: Path) -> None:
    file = small / "small_0.mcap"
    content = bytearray(file.read_bytes()[:-400])  # no index, which has it too
    begin = content.index(message_definition(STRING).encode())
    content[begin : begin + 6] = b"\xff" * 6
    file.write_bytes(content)
    repair(small)
    assert [time for _, time, _ in BagReader(small).messages()] == [30, 10, 50, 20, 40]
    with AnyReader([small]) as reader:
        assert {c.topic: c.msgtype for c in reader.connections if c.msgcount} == {"/r/said": STRING}
        said: list[Any] = [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages()]
        assert [bool(message.data) for message in said] == [True] * 5
