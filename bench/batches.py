"""What phones hand over: batches of 100 sessions as JSON, as a message and as rows, with ids that are new each time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
from google.protobuf.json_format import ParseDict
from satchel.sessions.v1 import device_sessions_pb2, sync_pb2

SIZE = 100  # sessions in a batch
_MOST_PER_SECOND = 400  # batches; nothing here stores more
_FIRST = datetime(2026, 2, 26, 10, tzinfo=UTC)
_DEVICES = ("bike", "rower", "treadmill")


def sessions() -> list[dict[str, Any]]:
    """A batch as JSON: a few months of training on three machines, about 400 bytes each."""
    return [_session(number) for number in range(SIZE)]


def enough(seconds: float) -> int:
    """How many batches to build before so many seconds are measured."""
    return math.ceil(_MOST_PER_SECOND * seconds)


@dataclass(frozen=True)
class Template:
    """An encoded batch, cut where its ids are; all ids have the same length, so a new batch is a join."""

    pieces: Sequence[bytes]

    @classmethod
    def of(cls, encoded: bytes, ids: Sequence[str]) -> Template:
        """`ids` in the order they appear in `encoded`, each once."""
        pieces, rest = [], encoded
        for id in ids:
            piece, _, rest = rest.partition(id.encode())
            pieces.append(piece)
        return cls([*pieces, rest])

    @property
    def length(self) -> int:
        """Of every batch, in bytes."""
        return sum(map(len, self.pieces)) + (len(self.pieces) - 1) * len(str(uuid4()))

    def fresh(self, seconds: float) -> Iterator[bytes]:
        """Batches for so many seconds, all built by the time this returns: before time is taken."""
        return iter([self._fresh() for _ in range(enough(seconds))])

    def _fresh(self) -> bytes:
        first, *others = self.pieces
        return first + b"".join(str(uuid4()).encode() + piece for piece in others)


def json_template() -> Template:
    """{"sessions": [...]}, the body of POST /sessions/batch_upload."""
    batch = sessions()
    return Template.of(orjson.dumps({"sessions": batch}), _ids(batch))


def message_template() -> Template:
    """The same batch as a BatchUploadRequest."""
    batch = sessions()
    message = ParseDict({"sessions": batch}, device_sessions_pb2.BatchUploadRequest())
    return Template.of(message.SerializeToString(), _ids(batch))


def push_template() -> Template:
    """The same batch as a push on the Sync stream."""
    batch = sessions()
    changes = [
        sync_pb2.Change(
            domain=session["device_type"],
            id=session["client_session_id"],
            operation="UPSERT",
            base_version=0,
            data=orjson.dumps({name: value for name, value in session.items() if name != "client_session_id"}).decode(),
        )
        for session in batch
    ]
    message = sync_pb2.SyncRequest(push=sync_pb2.PushChangesRequest(changes=changes))
    return Template.of(message.SerializeToString(), _ids(batch))


def _ids(batch: Sequence[dict[str, Any]]) -> list[str]:
    return [session["client_session_id"] for session in batch]


def _session(number: int) -> dict[str, Any]:
    started = _FIRST + timedelta(days=number)
    minutes = 20 + number % 40
    return {
        "client_session_id": str(UUID(int=number)),
        "device_type": _DEVICES[number % len(_DEVICES)],
        "training_id": f"intervals-{number % 7}",
        "started_at": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "ended_at": f"{started + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}",
        "total_duration_seconds": minutes * 60,
        "total_distance_meters": minutes * 410.5,
        "total_calories": minutes * 11,
        "avg_heart_rate": 130 + number % 25,
        "max_heart_rate": 160 + number % 25,
        "xp_earned": minutes * 2,
        "device_metrics": {"avg_power_watts": 150 + number, "avg_cadence_rpm": 84.5, "resistance_level": 12},
    }
