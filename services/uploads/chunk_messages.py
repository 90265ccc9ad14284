"""Owns the messages that carry the bytes of files, read without a copy of what they carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError
from satchel.uploads.v1 import uploads_pb2 as pb

# Wire types of Protocol Buffers (https://protobuf.dev/programming-guides/encoding).
_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_MAX_VARINT_BYTES: Final = 10

_DATA: Final = 2
"""Of google.api.HttpBody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkMessage:
    """An UploadChunkRequest."""

    upload_id: str
    chunk_index: int
    checksum: str
    data: memoryview
    """A part of the message that came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentMessage:
    """An UploadContentRequest."""

    upload_id: str = ""
    offset: float = 0.0
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    """A part of the message that came."""


def read_chunk(message: bytes) -> ChunkMessage:
    """What an UploadChunkRequest says. Raises DecodeError as its parser does.

    The parser would copy the chunk twice, while everybody else waits: once into the message, once out of it.
    """
    data, rest = _body(message, pb.UploadChunkRequest.CONTENT_FIELD_NUMBER)
    request = pb.UploadChunkRequest.FromString(rest)
    return ChunkMessage(
        upload_id=request.upload_id, chunk_index=request.chunk_index, checksum=request.checksum, data=data
    )


def read_content(message: bytes) -> ContentMessage:
    """What an UploadContentRequest says, as `read_chunk`."""
    data, rest = _body(message, pb.UploadContentRequest.CONTENT_FIELD_NUMBER)
    if not rest:  # as all but the first of a stream
        return ContentMessage(data=data)
    request = pb.UploadContentRequest.FromString(rest)
    return ContentMessage(upload_id=request.upload_id, offset=request.offset, data=data)


def _body(message: bytes, number: int) -> tuple[memoryview, bytes]:
    """The data of the HttpBody in the field of that number, and the message without it. Raises DecodeError."""
    content, rest = _without(memoryview(message), number)
    return _without(content, _DATA)[0], rest


def _without(message: memoryview, number: int) -> tuple[memoryview, bytes]:
    """The last field of that number, empty when there is none, and the message without any. Raises DecodeError."""
    found, rest, at = memoryview(b""), bytearray(), 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        if tag & 7 == _BYTES:
            size, begin = _varint(message, at)
            at = begin + size
        elif tag & 7 == _VARINT:
            _, at = _varint(message, at)
        elif tag & 7 in (_FIXED32, _FIXED64):
            at += 8 if tag & 7 == _FIXED64 else 4
        else:
            raise DecodeError("a group, or no wire type at all")
        if at > len(message):
            raise DecodeError("the message is cut")
        if tag == (number << 3 | _BYTES):
            found = message[begin:at]
        else:
            rest += message[start:at]
    return found, bytes(rest)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if at == len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DecodeError("the message is cut")
