"""Recordings for tests: the samples, and FIT files written message by message."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitdecode.utils import compute_crc

SAMPLES = Path(__file__).parent / "samples"

# Numbers of the FIT profile.
FILE_ID, SESSION, RECORD = 0, 18, 20
ENUM, UINT8, SINT32, UINT16, UINT32, FLOAT64 = (0, "B"), (2, "B"), (0x85, "i"), (0x84, "H"), (0x86, "I"), (0x89, "d")
STARTED = 1_000_000_000  # seconds since 1989-12-31: 2021-09-08T01:46:40Z

Field = tuple[int, tuple[int, str], Any]
"""The field's number, its type and its value."""
ACTIVITY: tuple[int, Sequence[Field]] = (FILE_ID, [(0, ENUM, 4), (1, UINT16, 1)])


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def fit(*messages: tuple[int, Sequence[Field]]) -> bytes:
    """A FIT file with these messages, each with a definition of its own."""
    return enveloped(b"".join(_message(number, fields) for number, fields in messages))


def repeated(name: str, size: int) -> bytes:
    """The sample's messages again and again, up to `size` bytes."""
    data = sample(name)
    body = data[data[0] : -2]
    return enveloped(body * (size // len(body)))


def enveloped(body: bytes) -> bytes:
    header = struct.pack("<BBHI4sH", 14, 16, 2132, len(body), b".FIT", 0)
    return header + body + struct.pack("<H", compute_crc(header + body))


def _message(number: int, fields: Sequence[Field]) -> bytes:
    definition = struct.pack("<BBBHB", 0x40, 0, 0, number, len(fields))
    for id, (base_type, letter), _ in fields:
        definition += bytes((id, struct.calcsize(letter), base_type))
    return definition + b"\0" + b"".join(struct.pack("<" + letter, value) for _, (_, letter), value in fields)


def gpx(points: str, head: str = "", root: str = '<gpx version="1.1" creator="Watch">') -> bytes:
    return f"{head}{root}<trk><trkseg>{points}</trkseg></trk></gpx>".encode()


def point(time: str = "2024-05-01T10:00:00Z", lat: str = "46", lon: str = "14", inside: str = "") -> str:
    return f'<trkpt lat="{lat}" lon="{lon}"><time>{time}</time>{inside}</trkpt>'


def tcx(activities: str) -> bytes:
    return f"<TrainingCenterDatabase><Activities>{activities}</Activities></TrainingCenterDatabase>".encode()
