"""Owns what files are taken: the size of a chunk and the largest file of each type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).parent / "limits.json"


@dataclass(frozen=True, kw_only=True)
class TypeLimit:
    """The limit of a group of media types."""

    name: str
    mime_types: tuple[str, ...]
    max_size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What this server takes."""

    chunk_size: int
    """Bytes."""
    expires_after_seconds: int
    types: tuple[TypeLimit, ...]


def read_limits(file: Path = FILE) -> UploadLimits:
    """The limits that `file` lists. Raises KeyError or ValueError when it is not what limits.json is."""
    content = json.loads(file.read_bytes())
    return UploadLimits(
        chunk_size=content["chunk_size"],
        expires_after_seconds=content["expires_after_seconds"],
        types=tuple(
            TypeLimit(name=one["name"], mime_types=tuple(one["mime_types"]), max_size=one["max_size"])
            for one in content["types"]
        ),
    )
