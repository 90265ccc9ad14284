"""Owns what files are taken: the size of a chunk, the largest file of each type, and the room that a user has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtime.tiers import Tiers, read_tiers
from services.uploads.archives import ArchiveLimits

# The edge takes bodies of 8 MiB; smaller chunks would cost more to count than to send.
MIN_CHUNK: Final = 64 * 1024
MAX_CHUNK: Final = 4 * 1024 * 1024
# The edge waits 330 s for the next byte; the last recording, and a part of the server that is away, have the rest.
MAX_SECONDS: Final = 270.0
FILE: Final = Path(__file__).parent / "limits.json"


@dataclass(frozen=True, kw_only=True)
class TypeLimit:
    """The limit of a group of media types."""

    name: str
    mime_types: Mapping[str, str]
    """Each with what the names of such files end with, without the dot."""
    max_size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What this server takes."""

    chunk_size: int
    """Bytes."""
    expires_after_seconds: int
    types: tuple[TypeLimit, ...]
    quotas: Mapping[str, int]
    """Bytes of all files of a user, by tier; a tier that is not listed has the largest."""
    archives: ArchiveLimits = field(default_factory=ArchiveLimits)
    """What an archive of recordings may be."""

    def type_of(self, mime_type: str) -> TypeLimit | None:
        """The limit of a media type; None when it is not taken."""
        return next((one for one in self.types if mime_type in one.mime_types), None)

    @property
    def endings(self) -> Mapping[str, str]:
        """What the names of files end with, by media type."""
        return {mime_type: ending for one in self.types for mime_type, ending in one.mime_types.items()}

    def quota_of(self, tier: str) -> int:
        """Bytes that all files of a user of this tier may take."""
        return self.quotas.get(tier, max(self.quotas.values()))


def read_limits(file: Path = FILE, tiers: Tiers | None = None) -> UploadLimits:
    """The limits that `file` lists, with the room of `tiers`; None: of those in tiers.json.

    What it leaves out of `archives` is as ArchiveLimits has it. Raises KeyError, TypeError or ValueError when the file
    is not what limits.json is.
    """
    content, tiers = json.loads(file.read_bytes()), tiers or read_tiers()
    archives = ArchiveLimits(**content.get("archives", {}))
    if not 0 < archives.seconds <= MAX_SECONDS:
        raise ValueError(f"{file}: archives.seconds must be more than 0 and at most {MAX_SECONDS:g}")
    if not MIN_CHUNK <= content["chunk_size"] <= MAX_CHUNK:
        raise ValueError(f"{file}: chunk_size must be {MIN_CHUNK} to {MAX_CHUNK} bytes")
    return UploadLimits(
        chunk_size=content["chunk_size"],
        expires_after_seconds=content["expires_after_seconds"],
        quotas={tier.name: tier.upload_bytes for tier in tiers.all},
        archives=archives,
        types=tuple(
            TypeLimit(name=one["name"], mime_types=one["mime_types"], max_size=one["max_size"])
            for one in content["types"]
        ),
    )
