"""Messages that carry the bytes of files are read as their parser reads them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from satchel.uploads.v1 import uploads_pb2 as pb

from services.uploads.chunk_messages import ChunkMessage, ContentMessage, read_chunk, read_content

MESSAGES = st.builds(
    pb.UploadChunkRequest,
    upload_id=st.text(max_size=40),
    chunk_index=st.integers(-(2**31), 2**31 - 1),
    checksum=st.text(max_size=70),
    content=st.none()
    | st.builds(HttpBody, content_type=st.text(max_size=20), data=st.binary(max_size=300) | st.just(bytes(70_000))),
)


def as_parsed(message: bytes) -> ChunkMessage:
    request = pb.UploadChunkRequest.FromString(message)
    return ChunkMessage(
        upload_id=request.upload_id,
        chunk_index=request.chunk_index,
        checksum=request.checksum,
        data=memoryview(request.content.data),
    )


@given(MESSAGES)
def test_a_message_says_what_its_parser_says(request_: pb.UploadChunkRequest) -> None:
    message = request_.SerializeToString()
    assert read_chunk(message) == as_parsed(message)


@given(
    st.builds(
        pb.UploadContentRequest,
        upload_id=st.text(max_size=40),
        offset=st.floats(allow_nan=False),
        content=st.none() | st.builds(HttpBody, content_type=st.text(max_size=20), data=st.binary(max_size=300)),
    )
)
def test_a_part_of_a_file_says_what_its_parser_says(request_: pb.UploadContentRequest) -> None:
    read = ContentMessage(upload_id=request_.upload_id, offset=request_.offset, data=memoryview(request_.content.data))
    assert read_content(request_.SerializeToString()) == read


@given(MESSAGES, st.binary(max_size=20), st.data())
@example(pb.UploadChunkRequest(), b"\x00", None)
@example(pb.UploadChunkRequest(), b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None)
@example(pb.UploadChunkRequest(), b"\x23\x24", None)
def test_what_is_no_message_is_refused_or_read_as_its_parser_reads_it(
    request_: pb.UploadChunkRequest, noise: bytes, data: st.DataObject | None
) -> None:
    message = request_.SerializeToString()
    at = data.draw(st.integers(0, len(message))) if data else len(message)
    message = message[:at] + noise
    try:
        expected = as_parsed(message)
    except (DecodeError, UnicodeDecodeError):
        with pytest.raises((DecodeError, UnicodeDecodeError)):
            read_chunk(message)
        return
    with suppress(DecodeError):  # stricter than the parser only where no writer of messages goes: groups
        assert read_chunk(message).upload_id == expected.upload_id
