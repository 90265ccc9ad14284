"""Owns the JSON Schemas that the contract does not hold: documents beside the protos, and the domains of records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from deploy.parts import ROOT

Schema = dict[str, Any]

DOMAINS: Final = ROOT / "services" / "sessions" / "schemas"
_DOMAIN_REF: Final = "satchel:"
# What a schema file says to the server alone, or to readers of JSON Schema outside of OpenAPI.
_LEFT_OUT: Final = ("$schema", "$id")


class Files:
    """The files that are read for the reference."""

    def __init__(self, protos: Path) -> None:
        self._protos = protos

    def document(self, package: str, name: str) -> Schema:
        """The JSON Schema of a document of a package, such as satchel.sessions.v1; domains are as `satchel:name`."""
        return _read(self._protos.joinpath(*package.split("."), "documents", f"{name}.json"))

    def domain(self, name: str) -> Schema:
        """The JSON Schema of a domain of records."""
        found = _read(DOMAINS / f"{name}.json")
        return {key: value for key, value in found.items() if key not in _LEFT_OUT}


def with_domains(schema: Any, replacement: Callable[[str], str]) -> Any:
    """`schema` with every reference to a domain replaced by what `replacement` says for its name."""
    if isinstance(schema, list):
        return [with_domains(one, replacement) for one in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: with_domains(value, replacement) for key, value in schema.items()}
    ref = changed.get("$ref")
    if isinstance(ref, str) and ref.startswith(_DOMAIN_REF):
        changed["$ref"] = replacement(ref.removeprefix(_DOMAIN_REF))
    return changed


def _read(file: Path) -> Schema:
    found: Schema = json.loads(file.read_text(encoding="utf-8"))
    return found
