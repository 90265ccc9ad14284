"""Owns what is counted of syncs and uploads, wherever it is kept."""

from __future__ import annotations

from operator import add
from typing import Final, NamedTuple


class Counts(NamedTuple):
    """What happened; all of it adds up."""

    syncs: int = 0
    """Calls that carried records to the server or from it."""
    failed_syncs: int = 0
    """Those of them that failed."""
    items: int = 0
    """Changes that were pushed."""
    conflicts: int = 0
    """Those of them that met a conflict."""
    rejected: int = 0
    """Those of them that were rejected."""
    duration_us: int = 0
    """Of all syncs together; microseconds."""
    uploads_completed: int = 0
    uploads_abandoned: int = 0
    """Uploads that were cancelled, failed or left until they expired."""
    upload_bytes: int = 0
    """Of uploads that ended well."""

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*map(add, self, other))


NAMES: Final = Counts._fields
