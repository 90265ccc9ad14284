"""Owns the short way through a FIT file: its checksums, and the few messages that say what all others add up to."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from fastcrc.crc16 import arc as checksum  # FIT's, 0 for what ends with its own

_RECORD: Final = 20
# By their numbers in the profile: file_id, session, field_description, developer_data_id.
_KEPT: Final = {0, 18, 206, 207}
_DEFINITION, _DEVELOPER, _COMPRESSED = 0x40, 0x20, 0x80
_HEADER_SIZES: Final = (12, 14)


class Skimmed(NamedTuple):
    """What is left of a file."""

    data: bytes
    """The same file without the messages that were left out; its checksums are not to be looked at."""
    record_fields: frozenset[int]
    """Numbers of the fields that its records have."""


def skim(data: bytes) -> Skimmed | None:
    """`data` without its records and whatever else nobody reads.

    None for a file that is damaged in any way, or that is not as plain as nearly all are: several in one, or with times
    that count from the message before. A decoder costs each record tens of microseconds; here a run of them is stepped
    over.
    """
    try:
        return _skimmed(data)
    except (IndexError, struct.error):
        return None


def _skimmed(data: bytes) -> Skimmed | None:
    head = data[0]
    end = head + int.from_bytes(data[4:8], "little")
    if head not in _HEADER_SIZES or len(data) != end + 2 or checksum(data):
        return None
    if head == _HEADER_SIZES[-1] and any(data[12:14]) and checksum(data[:14]):
        return None
    sizes, kept, fields = [0] * 16, [False] * 16, set[int]()
    parts: list[bytes] = []
    place = head
    while place < end:
        first, start = data[place], place
        local = first & 0x0F
        if first & _COMPRESSED:
            return None
        if first & _DEFINITION:
            order = ">" if data[place + 2] else "<"
            (message,) = struct.unpack_from(f"{order}H", data, place + 3)
            place = place + 6 + 3 * data[place + 5]
            size = 1 + sum(data[start + 7 : place : 3])
            if message == _RECORD:
                fields.update(data[start + 6 : place : 3])
            if first & _DEVELOPER:
                count, own = data[place], place + 1
                place = own + 3 * count
                size += sum(data[own + 1 : place : 3])
            sizes[local], kept[local] = size, message in _KEPT
            if kept[local]:
                parts.append(data[start:place])
            continue
        size = sizes[local]
        if not size:
            return None
        place += size
        if kept[local]:
            parts.append(data[start:place])
        else:
            while place < end and data[place] == first:
                place += size
    if place != end:
        return None
    body = b"".join(parts)
    return Skimmed(data[:4] + len(body).to_bytes(4, "little") + data[8:head] + body + b"\0\0", frozenset(fields))
