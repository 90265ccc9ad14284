"""Owns the files of the operator's page: a fixed set, read when the service starts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.errors import Failure, Reason

DIRECTORY: Final = Path(__file__).parent / "page"
INDEX: Final = "index.html"
# By their suffixes; nothing else is part of a page.
CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_TAG_CHARS: Final = 32


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """A file of the page."""

    content: bytes
    content_type: str
    tag: str
    """Of its content, and the same wherever that is."""


class Page:
    """The files by their names."""

    def __init__(self, files: dict[str, PageFile]) -> None:
        self._files = files

    def index(self) -> PageFile:
        """The page itself."""
        return self._files[INDEX]

    def file(self, name: str) -> PageFile:
        """Another file. Raises Failure(NOT_FOUND) for any name that was not read: nothing is looked for on the disk."""
        found = self._files.get(name)
        if found is None or name == INDEX:
            raise Failure(Reason.NOT_FOUND, "The page has no such file.")
        return found


def read_page(directory: Path) -> Page:
    """The page that lies in `directory`. Raises LookupError when it has no index."""
    files = {path.name: _read(path) for path in directory.iterdir() if path.suffix in CONTENT_TYPES}
    if INDEX not in files:
        raise LookupError(f"the operator's page has no {INDEX}")
    return Page(files)


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    tag = hashlib.sha256(content).hexdigest()[:_TAG_CHARS]
    return PageFile(content=content, content_type=CONTENT_TYPES[path.suffix], tag=tag)
