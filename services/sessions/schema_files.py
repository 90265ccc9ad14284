"""Owns the files that make domains: a JSON Schema each, with what else there is to say of the domain as annotations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import orjson

from runtime.clock import LEAD
from runtime.config import ConfigError
from services.sessions.policies_domain import Strategy

DIRECTORY: Final = Path(__file__).parent / "schemas"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Writer(StrEnum):
    """Who may write the records of a domain."""

    CLIENT = "client"
    """Their user, by any door."""
    SERVER = "server"
    """Services of the mesh alone; to the user's phones they are there to read."""


@dataclass(frozen=True, kw_only=True)
class SchemaFile:
    """What one file says of its domain."""

    domain: str
    version: int
    """From 1."""
    strategy: Strategy
    """Who wins where the tenant has not decided."""
    writer: Writer
    time: str
    """The top-level property that says when the thing took place; empty: none does."""
    lead: timedelta
    """How far in the future that may be."""
    document: dict[str, Any]
    """The whole file."""
    validator: jsonschema_rs.Validator


def read_files(own: Path | None) -> dict[str, SchemaFile]:
    """The domains of this server by their names: ours, and those of the operator's directory `own`.

    Raises ConfigError with a sentence that names the first file that makes no domain.
    """
    files = {file.stem: file for file in _files(DIRECTORY)}
    for file in _files(own) if own is not None else ():
        if file.stem in files:
            raise _broken(file, f"there is a domain {file.stem} already; give the file another name")
        files[file.stem] = file
    documents = {file: _document(file) for file in files.values()}
    registry = _registry(documents)
    return {file.stem: _schema_file(file, document, registry) for file, document in documents.items()}


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise ConfigError(f"SATCHEL_DOMAINS: {directory} is no directory")
    return sorted(directory.glob("*.json"))


def _document(file: Path) -> dict[str, Any]:
    if not _NAME.fullmatch(file.stem):
        raise _broken(file, "a domain's name is 1 to 64 of a-z, 0-9 and _, and starts with a letter")
    try:
        document = orjson.loads(file.read_bytes())
    except OSError as error:
        raise _broken(file, f"cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise _broken(file, f"is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise _broken(file, "must hold a JSON object")
    return document


def _registry(documents: dict[Path, dict[str, Any]]) -> jsonschema_rs.Registry:
    """Every schema under its $id, or satchel:<domain>, so that one may refer to another."""
    ids: dict[str, Path] = {}
    for file, document in documents.items():
        id = document.get("$id", f"satchel:{file.stem}")
        if not isinstance(id, str):
            raise _broken(file, "$id must be a string")
        if id in ids:
            raise _broken(file, f"{ids[id].name} has the same $id, {id}")
        ids[id] = file
    try:
        return jsonschema_rs.Registry([(id, documents[file]) for id, file in ids.items()])
    except ValueError:
        # It does not say whose fault it was: with the others empty, only the culprit fails.
        for id, file in ids.items():
            others: list[tuple[str, dict[str, Any]]] = [(other, {}) for other in ids if other != id]
            try:
                jsonschema_rs.Registry([(id, documents[file]), *others])
            except ValueError as error:
                raise _broken(file, f"is no valid JSON Schema: {error}") from None
        raise


def _schema_file(file: Path, document: dict[str, Any], registry: jsonschema_rs.Registry) -> SchemaFile:
    version, policy, time = (document.get(name) for name in ("x-version", "x-policy", "x-time"))
    writer = document.get("x-writer", Writer.CLIENT)
    if type(version) is not int or version < 1:
        raise _broken(file, "x-version must be a whole number from 1")
    if policy is not None and policy not in tuple(Strategy):
        raise _broken(file, f"x-policy must be one of {', '.join(Strategy)}")
    if writer not in tuple(Writer):
        raise _broken(file, f"x-writer must be one of {', '.join(Writer)}")
    if writer == Writer.SERVER and policy is not None:
        raise _broken(file, "x-policy has nothing to decide where x-writer is server")
    try:
        validator = jsonschema_rs.validator_for(document, registry=registry, mask="the value", offline=True)
    except ValueError as error:
        raise _broken(file, f"is no valid JSON Schema: {getattr(error, 'message', error)}") from None
    if time is not None and (not isinstance(time, str) or time not in document.get("properties", {})):
        raise _broken(file, "x-time must name one of its properties")
    lead = document.get("x-time-lead-seconds", LEAD.total_seconds())
    if type(lead) not in (int, float) or not 0 <= lead <= LEAD.total_seconds():
        raise _broken(file, "x-time-lead-seconds must be a number from 0 to 86400")
    return SchemaFile(
        domain=file.stem,
        version=version,
        strategy=_strategy(policy, Writer(writer)),
        writer=Writer(writer),
        time=time or "",
        lead=timedelta(seconds=lead),
        document=document,
        validator=validator,
    )


def _strategy(policy: str | None, writer: Writer) -> Strategy:
    if writer is Writer.SERVER:
        return Strategy.SERVER_WINS
    return Strategy.MANUAL if policy is None else Strategy(policy)


def _broken(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file}: {why}")
