"""Owns what the operator's page is made of: its files, read when the service starts, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.static import CONTENT_TYPES, StaticFiles

INDEX: Final = "index.html"

_OWN: Final = Path(__file__).parent / "page"
# A file is asked for again each time, and comes again only when it has changed: its parts must be of one version.
_CACHE_CONTROL: Final = "no-cache"
# What the page shows was named by phones: whatever they call themselves, nothing but the page's own files may run or be
# loaded, and no text becomes markup.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = (("content-security-policy", _POLICY), ("referrer-policy", "no-referrer"))


@dataclass(frozen=True, kw_only=True)
class Page:
    """The files of the page, by who asks for them."""

    index: StaticFiles
    parts: StaticFiles
    """What the page loads."""


def read_page() -> Page:
    """The page as it lies here. Raises KeyError when it has no index."""
    files = {path.name: path.read_bytes() for path in _OWN.iterdir() if path.suffix[1:] in CONTENT_TYPES}
    index = files.pop(INDEX)
    return Page(index=_static({INDEX: index}), parts=_static(files))


def _static(files: dict[str, bytes]) -> StaticFiles:
    return StaticFiles(files, headers=_HEADERS, cache_control=_CACHE_CONTROL)
