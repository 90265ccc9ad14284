"""Owns answers that callers keep: their tag, how long they are good, and 304 for a caller who has one already."""

from __future__ import annotations

from typing import Final

from google.api.httpbody_pb2 import HttpBody

from runtime.call import answer_headers, answer_status, current, header

# So long a caller need not ask again; after it, asking costs a trip and no body.
MAX_AGE: Final = 300
JSON: Final = "application/json"


def unless_known(
    content: bytes, *, tag: str, content_type: str = JSON, cache_control: str = f"public, max-age={MAX_AGE}"
) -> HttpBody:
    """A document; for a REST caller whose If-None-Match names `tag` (without quotes) only 304."""
    answer_headers(("etag", f'"{tag}"'), ("cache-control", cache_control))
    if current.get().rest and _names(header("if-none-match"), tag):
        answer_status(304)
        return HttpBody(content_type=content_type)
    return HttpBody(content_type=content_type, data=content)


def _names(if_none_match: str, tag: str) -> bool:
    """RFC 9110, 13.1.2: any, or one of a list, in which weakness does not matter."""
    tags = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return f'"{tag}"' in tags or tags == ["*"]
