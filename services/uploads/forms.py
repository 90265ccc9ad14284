"""Owns how a recording, or an archive of them, is taken out of a form: multipart/form-data, RFC 7578."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from runtime.errors import Failure, Reason, Violation, missing
from services.uploads.activities_domain import Recording
from services.uploads.archives import MAX_RECORDING, SIGNATURES
from services.uploads.spools import Spool

PART: Final = "file"
# What stands around the recording: names, other parts that nobody asked for.
MAX_AROUND: Final = 64 * 1024
# Of an archive, in memory on its way to the disk.
SPOOLED_AT_ONCE: Final = 1024 * 1024


class _Part:
    """Follows the parser through the parts, and keeps the first one that is called `file`."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0
        """Bytes of it, wherever they are."""
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
            self.size += end - start

    def end(self) -> None:
        self.ended = True

    @property
    def is_archive(self) -> bool:
        """Whether it begins as an archive does; for as long as its first bytes are still here."""
        return self.data.startswith(SIGNATURES)

    def taken(self) -> bytes:
        """What has come since the last time."""
        data = bytes(self.data)
        self.data.clear()
        return data


@asynccontextmanager
async def handed_over(
    content_type: str,
    pieces: AsyncIterator[bytes],
    open_spool: Callable[[], AbstractContextManager[Spool]],
    max_archive: int,
) -> AsyncIterator[Recording | Spool]:
    """The part `file` of the form whose bytes come in `pieces`: an archive is in a spool for as long as the block runs.

    Raises Failure: MALFORMED_REQUEST for what is no whole form, FIELD_MISSING without that part, TOO_LARGE; and what
    `open_spool` raises.
    """
    part = _Part()
    with ExitStack() as stack:
        parser, size = _parser(content_type, part), 0
        spool: Spool | None = None
        try:
            async for piece in pieces:
                size += len(piece)
                parser.write(piece)
                if spool is None and part.is_archive:
                    spool = stack.enter_context(open_spool())
                most = MAX_RECORDING if spool is None else max_archive
                if part.size > most or size > most + MAX_AROUND:
                    raise _too_large("a recording" if spool is None else "an archive", most)
                if spool is not None and len(part.data) >= SPOOLED_AT_ONCE:
                    await spool.write(part.taken())
        except FormParserError:
            raise Failure(Reason.MALFORMED_REQUEST, "The form cannot be read.") from None
        if not part.ended:
            raise Failure(Reason.MALFORMED_REQUEST, "The form is not whole.")
        if part.filename is None:
            raise missing(PART)
        if spool is None:
            yield Recording(filename=part.filename, data=part.taken())
        else:
            await spool.write(part.taken())
            yield spool


def _parser(content_type: str, part: _Part) -> MultipartParser:
    if not content_type.isascii():
        raise Failure(Reason.MALFORMED_REQUEST, "The type of the body cannot be read.")
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Failure(Reason.MALFORMED_REQUEST, "The body must be multipart/form-data with a boundary.")
    try:
        return MultipartParser(
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
    except FormParserError:
        raise Failure(Reason.MALFORMED_REQUEST, "The form cannot be read.") from None


def _too_large(what: str, most: int) -> Failure:
    return Failure(
        Reason.TOO_LARGE,
        f"{PART}: {what} has at most {most / 2**20:g} MiB",
        violations=[Violation(PART, "TOO_LARGE")],
    )
