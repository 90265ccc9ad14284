"""Owns what type a file is taken for, by its name."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# What the standard library does not know on every system and in every version, or calls by another name (.fit is an
# image of stars to it).
_TYPES: Final[Mapping[str, str]] = {
    ".fit": "application/vnd.ant.fit",
    ".gpx": "application/gpx+xml",
    ".tcx": "application/vnd.garmin.tcx+xml",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".webp": "image/webp",
    ".csv": "text/csv",
    ".m4a": "audio/mp4",
    ".ogg": "audio/ogg",
    ".wav": "audio/wav",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
}


def guess(path: Path) -> str:
    """The media type of a file of this name; empty when it says nothing."""
    if known := _TYPES.get(path.suffix.lower()):
        return known
    guessed, packed = mimetypes.guess_type(path.name)
    return "" if packed else guessed or ""
