"""Owns how the recording is taken out of a form: multipart/form-data, RFC 7578."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from runtime.errors import Failure, Reason, Violation, missing
from services.uploads.activities_domain import Recording

PART: Final = "file"
MAX_BYTES: Final = 50 * 1024 * 1024
# What stands around the recording: names, other parts that nobody asked for.
MAX_AROUND: Final = 64 * 1024


class _Part:
    """Follows the parser through the parts, and keeps the first one that is called `file`."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.filename: str | None = None
        self.ended = False
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._header, self._value = b"", b""
        self._taking = False

    def begin(self) -> None:
        self._names, self._values, self._taking = [], [], False

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._names.append(self._header.lower())
        self._values.append(self._value)
        self._header, self._value = b"", b""

    def headers_finished(self) -> None:
        said = dict(zip(self._names, self._values, strict=True)).get(b"content-disposition", b"")
        _, options = parse_options_header(said)
        if options.get(b"name") == PART.encode() and self.filename is None:
            self._taking = True
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._taking:
            self.data += data[start:end]
            if len(self.data) > MAX_BYTES:
                raise _too_large()

    def end(self) -> None:
        self.ended = True


async def recording_of(content_type: str, pieces: AsyncIterator[bytes]) -> Recording:
    """The part `file` of the form whose bytes come in `pieces`.

    Raises Failure: MALFORMED_REQUEST for what is no whole form, FIELD_MISSING without that part, TOO_LARGE.
    """
    if not content_type.isascii():
        raise Failure(Reason.MALFORMED_REQUEST, "The type of the body cannot be read.")
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Failure(Reason.MALFORMED_REQUEST, "The body must be multipart/form-data with a boundary.")
    part, size = _Part(), 0
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": part.begin,
                "on_header_field": part.header_field,
                "on_header_value": part.header_value,
                "on_header_end": part.header_end,
                "on_headers_finished": part.headers_finished,
                "on_part_data": part.part_data,
                "on_end": part.end,
            },
        )
        async for piece in pieces:
            size += len(piece)
            if size > MAX_BYTES + MAX_AROUND:
                raise _too_large()
            parser.write(piece)
    except FormParserError:
        raise Failure(Reason.MALFORMED_REQUEST, "The form cannot be read.") from None
    if not part.ended:
        raise Failure(Reason.MALFORMED_REQUEST, "The form is not whole.")
    if part.filename is None:
        raise missing(PART)
    return Recording(filename=part.filename, data=bytes(part.data))


def _too_large() -> Failure:
    return Failure(
        Reason.TOO_LARGE,
        f"{PART}: a recording has at most {MAX_BYTES // 2**20} MiB",
        violations=[Violation(PART, "TOO_LARGE")],
    )
