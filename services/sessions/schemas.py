"""Owns what the data of each domain must look like: one JSON Schema file a domain."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from runtime.errors import Failure, Reason, Violation, invalid, missing
from services.sessions.policies_domain import Policy, Strategy, default_policy
from services.sessions.schema_files import SchemaFile, read_files

# A record is read, sent and compared whole; what is larger belongs into an upload.
MAX_RECORD_BYTES: Final = 256 * 1024
# The edge's JSON printer gives up at 100 levels, and the record is itself some levels down in an answer.
MAX_DEPTH: Final = 32

# PostgreSQL keeps numbers in digits; what is larger or smaller than this is no measurement of anything.
MAX_NUMBER: Final = 1e21
_EXPONENT: Final = re.compile(rb"[:\[,]-?[0-9][0-9.]*e")

_REASONS: Final = {
    "type": "INVALID_TYPE",
    "minimum": "OUT_OF_RANGE",
    "maximum": "OUT_OF_RANGE",
    "maxLength": "TOO_LONG",
    "minLength": "REQUIRED",
    "const": "UNKNOWN_VALUE",
    "enum": "UNKNOWN_VALUE",
}


class Schemas:
    """The domains of this server, each with what its file says of it."""

    def __init__(self, own: Path | None = None) -> None:
        """Reads our files, and those of the directory `own`. Raises ConfigError for one that makes no domain."""
        self._files = read_files(own)

    def __contains__(self, domain: str) -> bool:
        return domain in self._files

    def __iter__(self) -> Iterator[SchemaFile]:
        return iter(self._files.values())

    def __getitem__(self, domain: str) -> SchemaFile:
        return self._files[domain]

    def default_policy(self, domain: str) -> Policy:
        """The policy of a domain that its tenant has not decided on; of one that is gone, people decide."""
        file = self._files.get(domain)
        return default_policy(file.strategy if file else Strategy.MANUAL)

    def check(self, domain: str, data: dict[str, Any]) -> None:
        """Raises Failure(FIELD_MISSING or FIELD_INVALID) naming the first field that does not fit the domain."""
        validator = self._files[domain].validator
        try:
            if validator.is_valid(data):
                return
            error = next(iter(validator.iter_errors(data)))
        except ValueError:  # a lone surrogate, or nesting that the validator does not follow
            raise _unstorable(data) from None
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)[1:]
        kind = error.kind.name
        if kind == "required":
            name = error.kind.as_dict()["property"]
            raise missing(f"{path}.{name}" if path else name)
        if kind == "minLength":
            raise missing(path)
        why = error.message.removeprefix("the value ").replace('"', "'")
        raise invalid(path, why, _REASONS.get(kind, "INVALID_FORMAT"))


def encode(data: dict[str, Any]) -> str:
    """`data` as the JSON text that is stored.

    Raises Failure: TOO_LARGE over 256 KiB, FIELD_INVALID for text that PostgreSQL cannot hold or nesting over 32.
    """
    try:
        raw = orjson.dumps(data)
    except (TypeError, ValueError):  # lone surrogates, numbers over 64 bits, nesting that orjson gives up on
        _check_depth(data)
        raise _unstorable(data) from None
    if len(raw) > MAX_RECORD_BYTES:
        largest = max(data, key=lambda name: len(orjson.dumps(data[name])))
        raise Failure(
            Reason.FIELD_INVALID,
            f"{largest}: makes the item larger than {MAX_RECORD_BYTES // 1024} KiB",
            violations=[Violation(largest, "TOO_LARGE")],
        )
    # Where orjson writes an exponent, jsonb writes digits: a hundred times as many for 1e308.
    if _EXPONENT.search(raw) and _holds(data, _is_extreme):
        raise _unstorable(data)
    # orjson writes a number that is none as null.
    if (b"\\u0000" in raw and _holds_nul(data)) or (b"null" in raw and _holds_no_number(data)):
        raise _unstorable(data)
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(data)
    return raw.decode()


def _check_depth(data: dict[str, Any]) -> None:
    for name, value in data.items():
        if _depth(value) > MAX_DEPTH - 1:
            raise invalid(name, f"is nested deeper than {MAX_DEPTH} levels", "TOO_DEEP")


def _unstorable(data: dict[str, Any]) -> Failure:
    for name, value in data.items():
        if _depth(value) > MAX_DEPTH - 1:
            return invalid(name, f"is nested deeper than {MAX_DEPTH} levels", "TOO_DEEP")
        try:
            if not _holds_nul(value) and not _holds_no_number(value) and not _holds(value, _is_extreme):
                orjson.dumps(value)
                continue
        except (TypeError, ValueError):
            pass
        return invalid(name, "holds text or a number that cannot be stored", "INVALID_FORMAT")
    return invalid("", "holds text or a number that cannot be stored", "INVALID_FORMAT")


def _holds_nul(value: Any) -> bool:
    """Whether a string inside holds U+0000, which jsonb refuses."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if "\x00" in one:
                return True
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return False


def _holds_no_number(value: Any) -> bool:
    return _holds(value, lambda number: not math.isfinite(number))


def _is_extreme(number: float) -> bool:
    return number != 0 and not 1 / MAX_NUMBER < abs(number) < MAX_NUMBER


def _holds(value: Any, wrong: Callable[[float], bool]) -> bool:
    """Whether a number inside is wrong."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and wrong(one):
            return True
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return depth - 1
