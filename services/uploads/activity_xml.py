"""Owns how XML is read as a stream, without keeping the document, and how recordings write their values in it."""

from __future__ import annotations

import math
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol
from xml.sax import SAXException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import AttributesImpl

from defusedxml import DefusedXmlException
from defusedxml.expatreader import create_parser

from runtime.clock import parse_time
from runtime.errors import Failure, invalid
from services.uploads.activity_summary import UNNAMED_SPORT, Summary
from services.uploads.activity_track import Position, checked_position

MAX_DEPTH: Final = 32  # GPX and TCX with all known extensions stay below 12
_BYTES_AT_ONCE: Final = 64 * 1024
# What programs write into GPX's <type> and what TCX's Sport may be, in the words of the FIT profile. The numbers are
# those of Strava's exports.
_SPORTS: Final[Mapping[str, str]] = {
    "run": "running",
    "9": "running",
    "bike": "cycling",
    "biking": "cycling",
    "ride": "cycling",
    "1": "cycling",
    "walk": "walking",
    "10": "walking",
    "hike": "hiking",
    "4": "hiking",
    "swim": "swimming",
    "other": UNNAMED_SPORT,
}


class Format(Protocol):
    """What one kind of document does with its elements; `path` are the local names from the root to the element."""

    def opened(self, path: list[str], attributes: AttributesImpl) -> None: ...
    def closed(self, path: list[str], text: str) -> None: ...
    def summary(self) -> Summary: ...


def read_xml(data: bytes, formats: Mapping[str, Callable[[], Format]]) -> Summary:
    """The summary of a recording in one of `formats`, which are named by their root elements.

    Raises Failure(FIELD_INVALID) for XML that is neither, is broken, is not in UTF-8 or declares a document type
    (nothing of which is ever followed), and for routes, courses and workouts, which nobody has done yet.
    """
    if b"\0" in data:  # UTF-16, which the parser would know by itself
        raise invalid("file", "is XML, but not in UTF-8", "INVALID_FORMAT")
    document = _Document(formats)
    parser = create_parser(forbid_dtd=True)
    parser.setContentHandler(document)
    # The parser is given text, so that no document says in which encoding it is read.
    decoder = getincrementaldecoder("utf-8-sig")()
    try:
        # Piece by piece, since text may take four times the memory of its bytes.
        for start in range(_begin(data), len(data), _BYTES_AT_ONCE):
            parser.feed(decoder.decode(data[start : start + _BYTES_AT_ONCE]))
        parser.feed(decoder.decode(b"", final=True))
        parser.close()
    except DefusedXmlException:
        raise invalid("file", "declares a document type, which recordings do not", "INVALID_FORMAT") from None
    except UnicodeDecodeError:
        raise invalid("file", "is XML, but not in UTF-8", "INVALID_FORMAT") from None
    except (SAXException, ValueError):
        raise invalid("file", "is damaged: it is no well-formed XML", "INVALID_FORMAT") from None
    return document.format.summary()


def _begin(data: bytes) -> int:
    """Where the document begins: Strava writes blanks ahead of its TCX, where XML has none."""
    return len(data) - len(data.lstrip()) if data[:1].isspace() else 0


class _Document(ContentHandler):
    """Follows the elements, and leaves what they mean to the format that the root names."""

    format: Format

    def __init__(self, formats: Mapping[str, Callable[[], Format]]) -> None:
        super().__init__()
        self._formats = formats
        self._path: list[str] = []
        self._text: list[str] = []

    def startElement(self, name: str, attrs: AttributesImpl) -> None:
        local = name.rpartition(":")[2]
        if not self._path:
            if local not in self._formats:
                raise invalid("file", "is XML, but neither GPX nor TCX", "INVALID_FORMAT")
            self.format = self._formats[local]()
        elif len(self._path) >= MAX_DEPTH:
            raise invalid("file", f"is nested deeper than {MAX_DEPTH} levels", "TOO_DEEP")
        self._path.append(local)
        self._text.clear()
        self.format.opened(self._path, attrs)

    def characters(self, content: str) -> None:
        self._text.append(content)

    def endElement(self, name: str) -> None:
        self.format.closed(self._path, "".join(self._text).strip())
        self._path.pop()
        self._text.clear()


def sport(text: str) -> str:
    """What a program calls the sport, in the words of the FIT profile as far as we know them."""
    word = "_".join(text.lower().split())
    return _SPORTS.get(word, word) or UNNAMED_SPORT


def position(latitude: str, longitude: str) -> Position:
    """Degrees as a position. Raises Failure(FIELD_INVALID) for one that is not on Earth."""
    degrees = [math.nan if value is None else value for value in (number(latitude), number(longitude))]
    return checked_position(degrees[0], degrees[1])


def time(text: str) -> datetime:
    """A moment, aware, in UTC. Raises Failure(FIELD_INVALID) for text that is none."""
    try:
        return parse_time("file", text)
    except Failure:
        raise invalid("file", "holds a time that is none", "INVALID_FORMAT") from None


def number(text: str) -> float | None:
    """A finite number, or None: a measurement that cannot be read is one that was not taken."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
