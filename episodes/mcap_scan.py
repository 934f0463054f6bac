"""Reads one MCAP file from front to end; a torn or damaged one still gives what it has."""

from __future__ import annotations

import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Attachment, Channel, Chunk, Header, Message, Metadata, Schema

from episodes.mcap_format import FOOTER, KNOWN, MAGIC, MESSAGE, PRIVATE, RECORD

SCHEMA_ENCODINGS = ("ros2msg", "ros2idl", "omgidl", "")
CHUNK_HEAD = re.compile(rb"\x06.{36}(?:\x03\x00\x00\x00lz4|\x04\x00\x00\x00zstd)", re.DOTALL)
DAMAGE = (McapError, ValueError, struct.error, RuntimeError, zstandard.ZstdError, MemoryError)  # of one record
MAX_PROBLEMS = 100  # sentences kept of one file
MAX_CHUNK_BYTES = 1 << 30  # of an unpacked chunk that we are willing to read


class McapScan:
    """Reads a file from front to end without its index, and never stops at damage that it can step over.

    Attributes:
        problems: what is wrong with the file, a sentence each; complete once `records` was read to its end.
        schemas, channels: those met so far, by id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self.schemas: dict[int, Schema] = {}
        self.channels: dict[int, Channel] = {}
        self._indexed: tuple[dict[int, Schema], dict[int, Channel]] = ({}, {})  # as the checked index has them

    def records(self) -> Iterator[Message | Attachment | Metadata]:
        """Messages whose channel is known, attachments and metadata, in the order of the file. Raises OSError."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(len(MAGIC)) != MAGIC:
                self._note("does not begin as an MCAP file")
                return
            self._read_index(file, size)
            file.seek(len(MAGIC))
            while True:
                offset = file.tell()
                head = file.read(RECORD.size)
                if len(head) < RECORD.size:
                    self._note(f"ends without a footer at byte {size}")
                    return
                opcode, length = RECORD.unpack(head)
                if length > size - offset - RECORD.size or (opcode not in KNOWN and opcode < PRIVATE):
                    resumed = _next_chunk(file, offset + 1, size)
                    self._note(f"is cut off or damaged from byte {offset} to {resumed} of {size}")
                    file.seek(resumed)
                    if resumed == size:
                        return
                    continue
                content = file.read(length)
                if opcode == Opcode.FOOTER:
                    self._check_end(file, content)
                    return
                try:
                    yield from self._parsed(opcode, content)
                except DAMAGE as error:
                    self._note(f"has a damaged record at byte {offset} ({_one_line(error)})")

    def _note(self, problem: str) -> None:
        """Say it once."""
        if problem not in self.problems and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def _read_index(self, file: BinaryIO, size: int) -> None:
        """Take schemas and channels from an index whose checksum is right; in the data section they have none."""
        footer = size - len(MAGIC) - FOOTER.size - RECORD.size
        if footer < len(MAGIC):
            return
        file.seek(footer)
        head, content = file.read(RECORD.size), file.read(FOOTER.size)
        start, _, crc = FOOTER.unpack(content)
        if head != RECORD.pack(Opcode.FOOTER, FOOTER.size):
            return
        start = start or footer  # 0: there is no index
        if not len(MAGIC) <= start <= footer:
            self._note("has a damaged index")
            return
        if not crc:
            return
        file.seek(start)
        index = file.read(footer - start)
        if zlib.crc32(index + head + content[:-4]) != crc:
            self._note("has a damaged index")
            return
        offset = 0
        while offset + RECORD.size <= len(index):
            opcode, length = RECORD.unpack_from(index, offset)
            offset += RECORD.size
            if opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                try:
                    list(self._parsed(opcode, index[offset : offset + length]))
                except DAMAGE as error:
                    self._note(f"has a damaged record in its index ({_one_line(error)})")
            offset += length
        self._indexed = dict(self.schemas), dict(self.channels)

    def _check_end(self, file: BinaryIO, footer: bytes) -> None:
        """What stands behind the index, however much that is."""
        if len(footer) != FOOTER.size or file.read(len(MAGIC) + 1) != MAGIC:
            self._note("has a damaged footer")

    def _parsed(self, opcode: int, content: bytes) -> Iterator[Message | Attachment | Metadata]:
        """What one record of the data section gives; those of the index give nothing."""
        stream = ReadDataStream(_Exactly(content))  # type: ignore[arg-type]
        if opcode == Opcode.CHUNK:
            unpacked = _unpacked(Chunk.read(stream))
            offset = 0
            while offset < len(unpacked):
                inner, length = RECORD.unpack_from(unpacked, offset)
                offset += RECORD.size
                if length > len(unpacked) - offset:
                    raise ValueError("a record reaches over the end of its chunk")
                if inner != Opcode.CHUNK:
                    yield from self._parsed(inner, unpacked[offset : offset + length])
                offset += length
        elif opcode == Opcode.MESSAGE:
            channel, sequence, log_time, publish_time = MESSAGE.unpack_from(content)
            if channel not in self.channels:
                self._note(f"has messages of channel {channel}, which is not announced")
                return
            yield Message(channel, log_time, content[MESSAGE.size :], publish_time, sequence)
        elif opcode == Opcode.SCHEMA:
            schema = Schema.read(stream)
            schema.data.decode()  # a definition is text
            if schema.encoding not in SCHEMA_ENCODINGS:
                raise ValueError(f"schema encoding {schema.encoding!r} is not one of ROS 2's")
            if self._indexed[0].get(schema.id, schema) != schema:
                raise ValueError(f"schema {schema.id} differs from the index")
            self.schemas[schema.id] = schema
        elif opcode == Opcode.CHANNEL:
            announced = Channel.read(stream)
            if self._indexed[1].get(announced.id, announced) != announced:
                raise ValueError(f"channel {announced.id} differs from the index")
            self.channels[announced.id] = announced
        elif opcode == Opcode.ATTACHMENT:
            yield Attachment.read(stream)
        elif opcode == Opcode.METADATA:
            yield Metadata.read(stream)
        elif opcode == Opcode.HEADER and (profile := Header.read(stream).profile) != "ros2":
            raise ValueError(f"profile {profile!r} is not ros2")


class _Exactly:
    """Bytes that are read in full or not at all: MCAP's own stream would take a short read for the whole."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def read(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._content):
            raise ValueError("the record is shorter than it says")
        self._position, start = end, self._position
        return self._content[start:end]


def _next_chunk(file: BinaryIO, start: int, size: int) -> int:
    """Where the next whole chunk begins, at or after `start`, known by its checksum; `size` when there is none."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        while (found := CHUNK_HEAD.search(view, start)) is not None:
            start = found.start()
            _, length = RECORD.unpack_from(view, start)
            begin = start + RECORD.size
            try:
                chunk = Chunk.read(ReadDataStream(_Exactly(view[begin : begin + min(length, size)])))  # type: ignore[arg-type]
                if begin + length <= size and chunk.uncompressed_crc and _unpacked(chunk):
                    return start
            except DAMAGE:
                pass  # it only looked like a chunk
            start += 1
    return size


def _unpacked(chunk: Chunk) -> bytes:
    """A chunk's content, checked. Raises ValueError, RuntimeError (lz4) or ZstdError."""
    size = chunk.uncompressed_size
    if size > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk says that it unpacks to {size} bytes; at most {MAX_CHUNK_BYTES} are read")
    if chunk.compression == "lz4":
        content = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
    elif chunk.compression == "zstd":
        content = _unpacked_zstd(chunk.data, size)
    elif chunk.compression == "":
        content = chunk.data
    else:
        raise ValueError(f"compression {chunk.compression!r} is not known; lz4 or zstd would be right")
    if len(content) != size:
        raise ValueError(f"a chunk unpacks to {len(content)} bytes; it says {size}")
    if chunk.uncompressed_crc and zlib.crc32(content) != chunk.uncompressed_crc:
        raise ValueError("a chunk's checksum is wrong")
    return content


def _unpacked_zstd(data: bytes, size: int) -> bytes:
    """Unpack no more than `size` bytes, whatever the frame says of itself."""
    declared = zstandard.get_frame_parameters(data).content_size
    if declared not in (size, zstandard.CONTENTSIZE_UNKNOWN):
        raise ValueError(f"a chunk unpacks to {declared} bytes; it says {size}")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=size) if size else b""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
