"""Owns files that are served as they are: read once, kept in memory, with a tag for who has them already."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.api.httpbody_pb2 import HttpBody

from runtime.caching import PUBLIC, unless_known
from runtime.call import answer_headers, current, header
from runtime.errors import Failure, Reason

# By the ending of a file's name; a file with another one is not served.
CONTENT_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


# What is smaller fits into a packet or two as it is.
PACKED_FROM: Final = 1024
_REFUSED: Final = re.compile(r"q=0(\.0*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """A file as it is answered."""

    content: bytes
    content_type: str
    tag: str
    """Strong: a hash of the content."""
    packed: bytes | None
    """The content by gzip; None: as it is, it is small."""


class StaticFiles:
    """Files by their names, the same until the server is started anew."""

    def __init__(
        self, files: Mapping[str, bytes], *, headers: tuple[tuple[str, str], ...] = (), cache_control: str = PUBLIC
    ) -> None:
        """`headers` go with every answer, such as a content security policy."""
        self._files = {name: _static_file(name, content) for name, content in files.items()}
        self._headers = (*headers, ("x-content-type-options", "nosniff"))
        self._cache_control = cache_control

    def answer(self, name: str) -> HttpBody:
        """A file, or 304 for a REST caller that has it already. Raises Failure(NOT_FOUND)."""
        if name not in self._files:
            raise Failure(Reason.NOT_FOUND, "There is no such file.")
        file = self._files[name]
        answer_headers(*self._headers)
        content, tag = file.content, file.tag
        if file.packed is not None:
            answer_headers(("vary", "Accept-Encoding"))
            if current.get().rest and _takes_gzip(header("accept-encoding")):
                # Other bytes, and so another tag.
                content, tag = file.packed, f"{tag}-gzip"
                answer_headers(("content-encoding", "gzip"))
        return unless_known(content, tag=tag, content_type=file.content_type, cache_control=self._cache_control)


def _static_file(name: str, content: bytes) -> StaticFile:
    content_type = CONTENT_TYPES[name.rpartition(".")[2]]
    return StaticFile(
        content=content,
        content_type=content_type,
        tag=hashlib.sha256(content).hexdigest()[:32],
        packed=gzip.compress(content, mtime=0) if len(content) >= PACKED_FROM else None,
    )


def _takes_gzip(accept_encoding: str) -> bool:
    """RFC 9110, 12.5.3, for callers who name it: who takes anything may have it as it is."""
    said = (one.replace(" ", "").lower().partition(";") for one in accept_encoding.split(","))
    return any(name == "gzip" and not _REFUSED.fullmatch(weight) for name, _, weight in said)
