"""FIT recordings as a watch writes them, each of its own hour and of about the size that is wanted."""

from __future__ import annotations

import random
import struct
from typing import Final

# FIT counts seconds from the last day of 1989; 2026-01-01T00:00:00Z.
EPOCH: Final = 1_136_073_600
_CRC: Final = (
    *(0x0000, 0xCC01, 0xD801, 0x1400, 0xF001, 0x3C00, 0x2800, 0xE401),
    *(0xA001, 0x6C00, 0x7800, 0xB401, 0x5000, 0x9C01, 0x8801, 0x4400),
)
_TABLE: Final = [0] * 256
for _byte in range(256):
    _crc = _CRC[_byte & 0xF]
    _TABLE[_byte] = (_crc >> 4 & 0x0FFF) ^ _CRC[_crc & 0xF] ^ _CRC[_byte >> 4 & 0xF]

# Numbers of fields and types of the FIT profile: sint32, uint32, uint16, uint8 and enum.
_S32, _U32, _U16, _U8, _ENUM = (0x85, "i"), (0x86, "I"), (0x84, "H"), (0x02, "B"), (0x00, "B")
_FILE_ID = [(0, _ENUM), (1, _U16), (4, _U32)]
_RECORD = [(253, _U32), (0, _S32), (1, _S32), (2, _U16), (3, _U8), (4, _U8), (5, _U32), (6, _U16), (7, _U16)]
_SESSION = [
    *((253, _U32), (2, _U32), (5, _ENUM), (6, _ENUM), (7, _U32), (8, _U32), (9, _U32), (11, _U16), (14, _U16)),
    *((16, _U8), (17, _U8), (18, _U8), (20, _U16), (21, _U16), (22, _U16)),
]


def fit(start: int, size: int) -> bytes:
    """A ride that began `start` seconds after the epoch, one record a second, of about `size` bytes."""
    chance = random.Random(start)
    record = struct.Struct("<B" + "".join(letter for _, (_, letter) in _RECORD))
    seconds = max(1, size // record.size)
    body = bytearray(_definition(0, 0, _FILE_ID) + struct.pack("<BBHI", 0, 4, 1, EPOCH + start))
    body += _definition(1, 20, _RECORD)
    for second in range(seconds):
        body += record.pack(
            *(1, EPOCH + start + second, 550_000_000 + 7 * second, 170_000_000 + 5 * second),
            *(2500 + second % 300, chance.randrange(110, 180), chance.randrange(70, 100), 800 * second),
            *(chance.randrange(6000, 10_000), chance.randrange(100, 400)),
        )
    body += _definition(2, 18, _SESSION)
    body += struct.pack(
        "<B" + "".join(letter for _, (_, letter) in _SESSION),
        *(2, EPOCH + start + seconds, EPOCH + start, 2, 0, seconds * 1000, seconds * 1000, 800 * seconds),
        *(600, 8000, 145, 180, 85, 210, 400, 310),
    )
    header = struct.pack("<BBHI4sH", 14, 16, 2132, len(body), b".FIT", 0)
    return header + body + struct.pack("<H", _checksum(header + body))


def _definition(local: int, message: int, fields: list[tuple[int, tuple[int, str]]]) -> bytes:
    named = b"".join(bytes((number, struct.calcsize(letter), kind)) for number, (kind, letter) in fields)
    return struct.pack("<BBBHB", 0x40 | local, 0, 0, message, len(fields)) + named


def _checksum(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc
