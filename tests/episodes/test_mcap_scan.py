"""Lengths that lie, records that mean nothing, chunks that are none: the rest is read, and in little memory."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import Attachment, Channel, Chunk, Footer, Header, McapRecord, Message, Metadata, Schema

from episodes.mcap_scan import MAX_CHUNK_BYTES, MAX_PROBLEMS, McapScan

MAGIC = b"\x89MCAP0\r\n"
MOST_MEMORY = 2_000_000


def record(opcode: int, content: bytes = b"", length: int | None = None) -> bytes:
    """A record that says it has `length` bytes; None: as many as it has."""
    return struct.pack("<BQ", opcode, len(content) if length is None else length) + content


def encoded(content: McapRecord) -> bytes:
    """As MCAP's own library writes it."""
    builder = RecordBuilder()
    content.write(builder)
    return builder.end()


def message(number: int, channel: int = 1) -> bytes:
    return record(Opcode.MESSAGE, struct.pack("<HIQQ", channel, number, number, number) + b"data %d" % number)


def chunk(content: bytes, compression: str = "lz4", size: int | None = None, crc: int | None = None) -> bytes:
    """A chunk that says it unpacks to `size` bytes with this checksum; None: what is right."""
    packed = {"lz4": lz4.frame.compress, "zstd": zstandard.compress}.get(compression, bytes)(content)
    crc, size = zlib.crc32(content) if crc is None else crc, len(content) if size is None else size
    return encoded(Chunk(compression, packed, 9, 1, crc, size))


HEAD = (
    MAGIC
    + encoded(Header(profile="ros2", library="test"))
    + encoded(Schema(id=1, name="std_msgs/msg/String", encoding="ros2msg", data=b"string data"))
    + encoded(Channel(id=1, topic="/r/said", message_encoding="cdr", metadata={}, schema_id=1))
)
END = record(Opcode.DATA_END, bytes(4)) + encoded(Footer(0, 0, 0)) + MAGIC


class Scanned:
    """What one reading of a file gave.

    Attributes:
        numbers: of its messages, in order.
        others: its attachments and metadata.
        topics: of its messages, as they were known when each was read.
        problems: see `McapScan`.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        file = path / "it.mcap"
        file.write_bytes(content)
        scan = McapScan(file)
        found, self.topics = [], []
        for each in scan.records():
            found.append(each)
            if isinstance(each, Message):
                self.topics.append(scan.channels[each.channel_id].topic)
        messages = [each for each in found if isinstance(each, Message)]
        self.numbers = [each.log_time for each in messages]
        assert [each.data for each in messages] == [b"data %d" % number for number in self.numbers]
        self.others = [each for each in found if not isinstance(each, Message)]
        self.problems = scan.problems


@pytest.mark.parametrize("missing", [1, 1000, 2**40, 2**63, 2**64 - 30])
@pytest.mark.parametrize("opcode", [Opcode.MESSAGE, Opcode.CHUNK, Opcode.METADATA, 0x90])
def test_a_record_longer_than_the_file_is_cut_off_and_costs_no_memory(
    opcode: int, missing: int, tmp_path: Path
) -> None:
    content = HEAD + message(1) + record(opcode, bytes(20), 20 + missing)
    tracemalloc.start()
    try:
        scanned = Scanned(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert scanned.numbers == [1]
    where = len(HEAD + message(1))
    assert scanned.problems == [f"is cut off or damaged from byte {where} to {len(content)} of {len(content)}"]


def test_a_record_that_ends_with_the_file_is_whole(tmp_path: Path) -> None:
    content = HEAD + message(1) + message(2)
    scanned = Scanned(tmp_path, content)
    assert scanned.numbers == [1, 2]
    assert scanned.problems == [f"ends without a footer at byte {len(content)}"]
    assert Scanned(tmp_path, HEAD + message(1) + END).problems == []


@pytest.mark.parametrize(
    "broken", [b"\x00" * 50, record(0x10, b"what"), record(0x7F), record(Opcode.MESSAGE, b"", 2**62)]
)
def test_behind_what_means_nothing_the_next_chunk_is_read(broken: bytes, tmp_path: Path) -> None:
    before = HEAD + message(1) + broken
    scanned = Scanned(tmp_path, before + chunk(message(2) + message(3)) + message(4) + END)
    assert scanned.numbers == [1, 2, 3, 4]
    (problem,) = scanned.problems
    assert problem.startswith(f"is cut off or damaged from byte {len(HEAD + message(1))} to {len(before)} of ")


@pytest.mark.parametrize("opcode", [0x80, 0xFF])
def test_records_of_other_peoples_own_are_stepped_over(opcode: int, tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, HEAD + record(opcode, b"whatever") + record(opcode) + message(1) + END)
    assert scanned.numbers == [1]
    assert scanned.problems == []


def test_what_only_looks_like_a_chunk_is_not_taken_for_one(tmp_path: Path) -> None:
    """Only a chunk whose checksum is right can be told from bytes that happen to look like one."""
    good = chunk(message(5))
    lies = [
        chunk(message(2), crc=12345),
        chunk(message(3), crc=0),
        chunk(message(4), size=3),
        struct.pack("<BQ", Opcode.CHUNK, 2**62) + good[9:],  # reaches beyond the end of the file
        good[:50],
    ]
    for lie in lies:
        scanned = Scanned(tmp_path, HEAD + message(1) + bytes(30) + lie + good + END)
        assert scanned.numbers == [1, 5]
        assert len(scanned.problems) == 1


@pytest.mark.parametrize("opcode", [int(each) for each in Opcode if each != Opcode.FOOTER])
def test_of_records_without_content_the_rest_is_read(opcode: int, tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, HEAD + record(opcode) * 3 + message(1) + END)
    assert scanned.numbers == [1]
    assert len(scanned.problems) == (3 if opcode in (*range(Opcode.HEADER, Opcode.CHUNK + 1), 9, 12) else 0)


def test_of_very_many_damaged_records_some_are_named_and_all_are_stepped_over(tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, HEAD + record(Opcode.MESSAGE, b"short") * 300 + message(1) + END)
    assert scanned.numbers == [1]
    assert len(scanned.problems) == MAX_PROBLEMS


@pytest.mark.parametrize("compression", ["", "lz4", "zstd"])
@pytest.mark.parametrize("missing", [1, 2**40, 2**63])
def test_in_a_chunk_what_is_before_a_record_that_is_too_long_is_read(
    compression: str, missing: int, tmp_path: Path
) -> None:
    rest = bytes(30) + message(2)
    inner = message(1) + record(Opcode.MESSAGE, rest, len(rest) + missing)
    scanned = Scanned(tmp_path, HEAD + chunk(message(0), compression) + chunk(inner, compression) + message(3) + END)
    assert scanned.numbers == [0, 1, 3]
    assert scanned.problems == [
        f"has a damaged record at byte {len(HEAD + chunk(message(0), compression))}"
        " (a record reaches over the end of its chunk)"
    ]


def test_in_a_chunk_a_record_that_is_no_more_than_a_piece_of_its_head_ends_it(tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, HEAD + chunk(message(1) + b"\x05\x01") + message(2) + END)
    assert scanned.numbers == [1, 2]
    assert len(scanned.problems) == 1


def test_a_chunk_within_a_chunk_is_not_opened(tmp_path: Path) -> None:
    """MCAP allows none, and a file of some hundred bytes could hold more than a disk."""
    scanned = Scanned(tmp_path, HEAD + chunk(chunk(message(1)) + message(2)) + END)
    assert scanned.numbers == [2]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_no_more_is_unpacked_than_a_chunk_says(compression: str, tmp_path: Path) -> None:
    bomb = chunk(bytes(64_000_000), compression, size=100, crc=0)
    assert len(bomb) < 400_000
    tracemalloc.start()
    try:
        scanned = Scanned(tmp_path, HEAD + bomb + message(1) + END)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert scanned.numbers == [1]
    assert len(scanned.problems) == 1


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (chunk(message(9), size=MAX_CHUNK_BYTES + 1), f"unpacks to {MAX_CHUNK_BYTES + 1} bytes; at most"),
        (chunk(message(9), size=2**63), "at most"),
        (chunk(message(9), size=len(message(9)) + 1), f"unpacks to {len(message(9))} bytes; it says"),
        (chunk(message(9), "zstd", size=len(message(9)) + 1), f"unpacks to {len(message(9))} bytes; it says"),
        (chunk(message(9), "", size=len(message(9)) - 1), f"unpacks to {len(message(9))} bytes; it says"),
        (chunk(message(9), crc=1), "checksum is wrong"),
        (chunk(message(9), "", crc=1), "checksum is wrong"),
        (chunk(message(9), "brotli"), "compression 'brotli' is not known; lz4 or zstd would be right"),
        (record(Opcode.METADATA, struct.pack("<I", 2**32 - 1) + b"name"), "shorter than it says"),
        (record(Opcode.SCHEMA, struct.pack("<HI", 2, 90) + b"name"), "shorter than it says"),
        (record(Opcode.CHANNEL, struct.pack("<HHI", 2, 1, 7) + b"/topic"), "shorter than it says"),
        (record(Opcode.MESSAGE, bytes(21)), "22 bytes"),
    ],
)
def test_a_damaged_record_costs_itself_and_is_named_with_its_place(broken: bytes, why: str, tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, HEAD + message(1) + broken + message(2) + END)
    assert scanned.numbers == [1, 2]
    (problem,) = scanned.problems
    assert problem.startswith(f"has a damaged record at byte {len(HEAD + message(1))} (")
    assert why in problem


def test_messages_nobody_announced_are_left_out_and_told_once(tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, HEAD + message(1, channel=7) + message(2, channel=7) + message(3) + END)
    assert scanned.numbers == [3]
    assert scanned.problems == ["has messages of channel 7, which is not announced"]


def test_attachments_and_metadata_are_given_between_the_messages(tmp_path: Path) -> None:
    attachment = Attachment(name="a", media_type="b", create_time=1, log_time=2, data=b"c")
    metadata = Metadata(name="robot", metadata={"x": "y"})
    scanned = Scanned(tmp_path, HEAD + encoded(attachment) + message(1) + encoded(metadata) + END)
    assert scanned.numbers == [1]
    assert [type(each) for each in scanned.others] == [Attachment, Metadata]
    assert scanned.others[1] == metadata
    assert scanned.problems == []


@pytest.mark.parametrize("start", [1, 7, 10_000, 2**63])
def test_an_index_that_cannot_be_where_it_says_is_named_and_the_data_read(start: int, tmp_path: Path) -> None:
    end = record(Opcode.DATA_END, bytes(4)) + encoded(Footer(start, 0, 1)) + MAGIC
    scanned = Scanned(tmp_path, HEAD + message(1) + end)
    assert scanned.numbers == [1]
    assert scanned.problems == ["has a damaged index"]


@pytest.mark.parametrize("right", [True, False])
def test_only_an_index_whose_checksum_is_right_says_what_channels_there_are(right: bool, tmp_path: Path) -> None:
    """It then stands in for a channel that is damaged where the messages are, and one that is not is told from it."""
    schema, channel = (
        encoded(Schema(id=1, name="std_msgs/msg/String", encoding="ros2msg", data=b"string data")),
        encoded(Channel(id=1, topic="/r/said", message_encoding="cdr", metadata={}, schema_id=1)),
    )
    body = MAGIC + encoded(Header(profile="ros2", library="test")) + schema
    lie = channel.replace(b"/r/said", b"/r/sane")
    for damaged in (lie, channel[:-4]):  # of the second, the end reaches into the message behind it
        data = body + damaged + message(1) + message(2) + chunk(message(3)) + record(Opcode.DATA_END, bytes(4))
        index = schema + channel
        head = struct.pack("<BQQQ", Opcode.FOOTER, 20, len(data), 0)
        crc = zlib.crc32(index + head) ^ (not right)
        scanned = Scanned(tmp_path, data + index + head + struct.pack("<I", crc) + MAGIC)
        if right:
            assert 3 in scanned.numbers
            assert set(scanned.topics) == {"/r/said"}
            assert "has a damaged index" not in scanned.problems
        else:
            assert set(scanned.topics) == ({"/r/sane"} if damaged == lie else set())
            assert scanned.problems[0] == "has a damaged index"


def test_an_index_whose_records_are_longer_than_it_is_read_to_its_end(tmp_path: Path) -> None:
    """Its checksum is right: a recorder wrote it so."""
    body = HEAD + message(1) + record(Opcode.DATA_END, bytes(4))
    index = record(Opcode.SCHEMA, b"short", 2**62)
    footer = struct.pack("<BQQQ", Opcode.FOOTER, 20, len(body), 0)
    end = index + footer + struct.pack("<I", zlib.crc32(index + footer)) + MAGIC
    scanned = Scanned(tmp_path, body + end)
    assert scanned.numbers == [1]
    assert scanned.problems


@pytest.mark.parametrize("content", [MAGIC, MAGIC + encoded(Footer(0, 0, 0)) + MAGIC, MAGIC + END[-30:-1]])
def test_a_file_that_is_hardly_one_gives_nothing_and_ends(content: bytes, tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, content)
    assert scanned.numbers == []
    assert bool(scanned.problems) == (len(content) != len(MAGIC + encoded(Footer(0, 0, 0)) + MAGIC))


@pytest.mark.parametrize("size", [0, 19, 21])
def test_a_footer_of_another_size_is_damaged(size: int, tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, HEAD + message(1) + record(Opcode.FOOTER, bytes(size)) + MAGIC)
    assert scanned.numbers == [1]
    assert scanned.problems == ["has a damaged footer"]


def test_what_was_appended_to_a_file_is_damage_and_not_taken_into_memory(tmp_path: Path) -> None:
    file = tmp_path / "it.mcap"
    file.write_bytes(HEAD + message(1) + END)
    with file.open("r+b") as opened:
        opened.truncate(50_000_000)
    scan = McapScan(file)
    tracemalloc.start()
    try:
        assert sum(1 for _ in scan.records()) == 1
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert scan.problems == ["has a damaged footer"]
