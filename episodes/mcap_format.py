"""The parts of the MCAP format that reading and writing share."""

from __future__ import annotations

import struct

from mcap.opcode import Opcode

MAGIC = b"\x89MCAP0\r\n"
KNOWN = {int(opcode) for opcode in Opcode}
PRIVATE = 0x80  # opcodes from here on are free for anybody's use
RECORD = struct.Struct("<BQ")  # opcode, length of what follows
FOOTER = struct.Struct("<QQI")  # start of the summary, of its offsets, checksum of both
MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time; the data follows
