"""Owns whether the first bytes of a file are those of its type; a type without a mark of its own is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import filetype

HEAD_BYTES: Final = 8192

# What the library calls them. Phones write sound and film into the same container under several names.
_BOXES: Final = frozenset(("audio/mp4", "video/mp4", "video/quicktime", "video/x-m4v", "video/3gpp"))
_GUESSES: Final[Mapping[str, frozenset[str]]] = {
    "image/jpeg": frozenset(("image/jpeg",)),
    "image/png": frozenset(("image/png", "image/apng")),
    "image/webp": frozenset(("image/webp",)),
    "application/pdf": frozenset(("application/pdf",)),
    "audio/mpeg": frozenset(("audio/mpeg",)),
    "audio/mp4": _BOXES,
    "audio/wav": frozenset(("audio/x-wav",)),
    "audio/ogg": frozenset(("audio/ogg",)),
    "video/mp4": _BOXES,
    "video/quicktime": _BOXES,
    "video/webm": frozenset(("video/webm", "video/x-matroska")),
}
# Which of them a phone writes says little about which of the two types it then names. The library knows one of them.
_HEIF_BRANDS: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"))
_AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))


def _is_text(head: bytes) -> bool:
    return b"\x00" not in head


def _is_fit(head: bytes) -> bool:
    return head[8:12] == b".FIT"


def _is_heif(head: bytes) -> bool:
    """Whether it is a picture of ISO/IEC 23008-12, whatever it is coded in but AV1, which has a type of its own."""
    end = int.from_bytes(head[:4])
    brands = {head[at : at + 4] for at in (8, *range(16, min(end, len(head)), 4))}
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not brands & _AVIF_BRANDS


def _is_xml_of(root: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and root in head


_MARKS: Final[Mapping[str, Callable[[bytes], bool]]] = {
    "text/plain": _is_text,
    "text/csv": _is_text,
    "image/heic": _is_heif,
    "image/heif": _is_heif,
    "application/vnd.ant.fit": _is_fit,
    "application/gpx+xml": _is_xml_of(b"<gpx"),
    "application/vnd.garmin.tcx+xml": _is_xml_of(b"<TrainingCenterDatabase"),
}


def fits(mime_type: str, head: bytes) -> bool:
    """Whether a file that begins with `head`, its first 8 KiB, may be of this type."""
    if mark := _MARKS.get(mime_type):
        return mark(head)
    guesses = _GUESSES.get(mime_type)
    return guesses is None or filetype.guess_mime(head) in guesses
