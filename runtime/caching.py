"""Owns answers that callers keep: their tag, how long they are good, and 304 for a caller who has one already."""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from runtime.call import answer_headers, answer_status, current, header

# So long a caller need not ask again; after it, asking costs a trip and no body.
MAX_AGE: Final = 300
PUBLIC: Final = f"public, max-age={MAX_AGE}"
JSON: Final = "application/json"

M = TypeVar("M", bound=Message)


def unless_known(content: bytes, *, tag: str, content_type: str = JSON, cache_control: str = PUBLIC) -> HttpBody:
    """A document; for a REST caller whose If-None-Match names `tag` (without quotes) only 304."""
    answer_headers(("etag", f'"{tag}"'), ("cache-control", cache_control))
    if current.get().rest and _names(header("if-none-match"), tag):
        answer_status(304)
        return HttpBody(content_type=content_type)
    return HttpBody(content_type=content_type, data=content)


def answer_if_new(response: M, *, max_age: int) -> M:
    """The response, which callers may keep for `max_age` seconds; a REST caller who has this very one gets only 304."""
    tag = hashlib.sha256(response.SerializeToString(deterministic=True)).hexdigest()[:32]
    answer_headers(("etag", f'"{tag}"'), ("cache-control", f"public, max-age={max_age}"))
    if current.get().rest and _names(header("if-none-match"), tag):
        answer_status(304)  # the edge sends no body with it
    return response


def _names(if_none_match: str, tag: str) -> bool:
    """RFC 9110, 13.1.2: any, or one of a list, in which weakness does not matter."""
    tags = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return f'"{tag}"' in tags or tags == ["*"]
