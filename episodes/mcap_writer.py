"""Writes one MCAP file, so that a kill costs milliseconds."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path
from types import TracebackType

import lz4.frame  # type: ignore[import-untyped]
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)

from episodes.mcap_format import FOOTER, MAGIC, MESSAGE, RECORD

CHUNK_BYTES = 64 * 1024
CHUNK_NS = 5_000_000  # a chunk older than this is written out with the next message: the most that a kill costs


class McapWriter:
    """Writes one file; every chunk reaches the operating system whole, and no later than the message after CHUNK_NS."""

    def __init__(self, path: Path) -> None:
        """Create the file with its header. Raises FileExistsError, OSError."""
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._offset = 0
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._chunk_indices: list[ChunkIndex] = []
        self._other_indices: list[AttachmentIndex | MetadataIndex] = []
        self._start_chunk()
        self.counts: dict[int, int] = {}
        self.start_ns, self.end_ns = 0, 0
        self._append(MAGIC + _encoded(Header(profile="ros2", library="visuomotor")))

    @property
    def message_count(self) -> int:
        """Messages taken so far."""
        return sum(self.counts.values())

    def add_channel(
        self, topic: str, type_name: str, definition: bytes, encoding: str, metadata: dict[str, str]
    ) -> int:
        """Announce a topic; returns the id to write to. `encoding` is the definition's (`ros2msg`)."""
        schema = next((s for s in self._schemas.values() if (s.name, s.data) == (type_name, definition)), None)
        if schema is None:
            schema = Schema(id=len(self._schemas) + 1, data=definition, encoding=encoding, name=type_name)
            self._schemas[schema.id] = schema
            self._append(_encoded(schema))
        channel = Channel(len(self._channels) + 1, topic, "cdr", metadata, schema.id)
        self._channels[channel.id] = channel
        self.counts[channel.id] = 0
        self._append(_encoded(channel))
        return channel.id

    def add_other(self, record: Attachment | Metadata) -> None:
        """Add something that is not a message."""
        self.flush()
        encoded = _encoded(record)
        if isinstance(record, Attachment):
            self._other_indices.append(
                AttachmentIndex(
                    offset=self._offset,
                    length=len(encoded),
                    log_time=record.log_time,
                    create_time=record.create_time,
                    data_size=len(record.data),
                    name=record.name,
                    media_type=record.media_type,
                )
            )
        else:
            self._other_indices.append(MetadataIndex(offset=self._offset, length=len(encoded), name=record.name))
        self._append(encoded)

    def write(self, channel: int, data: bytes, log_time_ns: int, publish_time_ns: int) -> None:
        """Add one message; both times from 0 to 2^64 - 1 ns.

        Raises:
            OSError: the disk refuses; nothing that was written before is harmed.
            struct.error: a time does not fit.
        """
        head = RECORD.pack(Opcode.MESSAGE, MESSAGE.size + len(data))
        head += MESSAGE.pack(channel, self.counts[channel] & 0xFFFFFFFF, log_time_ns, publish_time_ns)
        now = time.monotonic_ns()
        if not self._chunk:
            self._chunk_since = now
        self._chunk_index.setdefault(channel, []).append((log_time_ns, len(self._chunk)))
        self._chunk += head
        self._chunk += data
        first = self.message_count == 0
        self.start_ns = log_time_ns if first else min(self.start_ns, log_time_ns)
        self.end_ns = max(self.end_ns, log_time_ns)
        self.counts[channel] += 1
        if len(self._chunk) >= CHUNK_BYTES or now - self._chunk_since >= CHUNK_NS:
            self.flush()

    def flush(self) -> None:
        """Hand everything taken so far to the operating system, where a kill of this process cannot reach it."""
        if not self._chunk:
            return
        packed = lz4.frame.compress(bytes(self._chunk))
        times = [log_time for records in self._chunk_index.values() for log_time, _ in records]
        start, end = min(times), max(times)
        chunk = _encoded(Chunk("lz4", packed, end, start, zlib.crc32(self._chunk), len(self._chunk)))
        indices, offsets = b"", {}
        for channel, records in self._chunk_index.items():
            offsets[channel] = self._offset + len(chunk) + len(indices)
            indices += _encoded(MessageIndex(channel, records))
        index = ChunkIndex(
            chunk_length=len(chunk),
            chunk_start_offset=self._offset,
            compression="lz4",
            compressed_size=len(packed),
            message_end_time=end,
            message_index_length=len(indices),
            message_index_offsets=offsets,
            message_start_time=start,
            uncompressed_size=len(self._chunk),
        )
        self._append(chunk + indices)
        self._chunk_indices.append(index)
        self._start_chunk()

    def _start_chunk(self) -> None:
        self._chunk = bytearray()
        self._chunk_index: dict[int, list[tuple[int, int]]] = {}
        self._chunk_since = 0

    def _append(self, content: bytes) -> None:
        """Write all of it, or leave the file as it was."""
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, self._offset)
            os.lseek(self._descriptor, self._offset, os.SEEK_SET)
            raise
        self._offset += len(content)

    def finish(self) -> None:
        """Write the index and close; the file is then complete, and on the disk. A second time does nothing."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
            self._append(_encoded(DataEnd(0)) + self._summary(self._offset + len(_encoded(DataEnd(0)))))
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _summary(self, start: int) -> bytes:
        """Summary section, footer and closing magic of a data section that ends at `start`."""
        groups: list[tuple[Opcode, list[McapRecord]]] = [
            (Opcode.SCHEMA, [*self._schemas.values()]),
            (Opcode.CHANNEL, [*self._channels.values()]),
            (Opcode.STATISTICS, [self._statistics()]),
            (Opcode.CHUNK_INDEX, [*self._chunk_indices]),
            (Opcode.ATTACHMENT_INDEX, [i for i in self._other_indices if isinstance(i, AttachmentIndex)]),
            (Opcode.METADATA_INDEX, [i for i in self._other_indices if isinstance(i, MetadataIndex)]),
        ]
        summary, offsets = b"", b""
        for opcode, records in groups:
            group = b"".join(_encoded(record) for record in records)
            if group:
                offsets += _encoded(SummaryOffset(opcode, start + len(summary), len(group)))
            summary += group
        offset_start = start + len(summary)
        summary += offsets
        crc = zlib.crc32(summary + RECORD.pack(Opcode.FOOTER, FOOTER.size) + struct.pack("<QQ", start, offset_start))
        return summary + _encoded(Footer(start, offset_start, crc)) + MAGIC

    def _statistics(self) -> Statistics:
        attachments = sum(isinstance(index, AttachmentIndex) for index in self._other_indices)
        return Statistics(
            attachment_count=attachments,
            channel_count=len(self._channels),
            channel_message_counts=self.counts,
            chunk_count=len(self._chunk_indices),
            message_count=self.message_count,
            message_end_time=self.end_ns,
            message_start_time=self.start_ns,
            metadata_count=len(self._other_indices) - attachments,
            schema_count=len(self._schemas),
        )

    def __enter__(self) -> McapWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


def _encoded(record: McapRecord) -> bytes:
    builder = RecordBuilder()
    record.write(builder)
    return builder.end()
