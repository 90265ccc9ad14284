"""Owns the files of the operator's page: a fixed set, read when the service starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.static import StaticFiles

INDEX: Final = "index.html"

_DIRECTORY: Final = Path(__file__).parent / "page"
# Nothing else is part of the page.
_SUFFIXES: Final = frozenset({".html", ".css", ".js"})
# A file is asked for again each time, and comes again only when it has changed: its parts must be of one version.
_CACHE_CONTROL: Final = "no-cache"
# What the page shows was named by phones: whatever they call themselves, nothing but the page's own files may run or be
# loaded, and no text becomes markup.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS: Final = (("content-security-policy", _POLICY), ("referrer-policy", "no-referrer"))


@dataclass(frozen=True, kw_only=True)
class Page:
    """The files of the page."""

    index: StaticFiles
    parts: StaticFiles
    """What it loads."""


def read_page() -> Page:
    """The page as it was installed."""
    files = {path.name: path.read_bytes() for path in _DIRECTORY.iterdir() if path.suffix in _SUFFIXES}
    index = {INDEX: files.pop(INDEX)}
    return Page(
        index=StaticFiles(index, headers=_HEADERS, cache_control=_CACHE_CONTROL),
        parts=StaticFiles(files, headers=_HEADERS, cache_control=_CACHE_CONTROL),
    )
