"""Owns the domains of this server: for each one its schema, and what is made of data that fits it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from runtime.clock import parse_time, plausible
from runtime.errors import invalid, missing
from services.sessions import (
    device_sessions_domain,
    exercises_domain,
    metrics_domain,
    plans_domain,
    puzzles_domain,
)
from services.sessions.exercises_domain import Catalogue
from services.sessions.policies_domain import Policy
from services.sessions.records_domain import Prepared
from services.sessions.schema_files import Writer
from services.sessions.schemas import Schemas


class Domains:
    """Every domain by its name; a schema file makes one."""

    def __init__(self, schemas: Schemas, catalogue: Catalogue) -> None:
        self._schemas = schemas
        self._catalogue = catalogue

    def __contains__(self, domain: str) -> bool:
        return domain in self._schemas

    def known(self, domain: Any) -> str:
        """`domain` again, if it is one. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
        if domain is None or domain == "":
            raise missing("domain")
        if not isinstance(domain, str) or domain not in self._schemas:
            raise invalid("domain", "is not known here", "UNKNOWN_VALUE")
        return domain

    def check_writable(self, domain: str) -> None:
        """Raises Failure(FIELD_INVALID) for a domain whose records no phone may write."""
        if domain in self._schemas and self._schemas[domain].writer is Writer.SERVER:
            raise invalid("domain", "is written by the server")

    @property
    def versions(self) -> Mapping[str, int]:
        """The version of each domain's schema."""
        return {file.domain: file.version for file in self._schemas}

    def default_policy(self, domain: str) -> Policy:
        """The policy of a domain that its tenant has not decided on."""
        return self._schemas.default_policy(domain)

    def prepare(self, domain: str, data: dict[str, Any], now: datetime) -> Prepared:
        """What is stored of `data`, whichever door it came in by. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
        if domain == puzzles_domain.DOMAIN:
            data = puzzles_domain.lower_difficulty(data)
        self._schemas.check(domain, data)
        if domain == exercises_domain.DOMAIN:
            return exercises_domain.prepare(data, now, self._catalogue)
        if domain == puzzles_domain.DOMAIN:
            return puzzles_domain.prepare(data, now)
        if domain in (*device_sessions_domain.DEVICES, device_sessions_domain.OTHER_DEVICES):
            return device_sessions_domain.prepare(data, now)
        if domain == metrics_domain.DOMAIN:
            return metrics_domain.prepare(data, now)
        if domain == plans_domain.DOMAIN:
            return plans_domain.prepare(data)
        return Prepared(data, self._happen_time(domain, data, now))

    def _happen_time(self, domain: str, data: dict[str, Any], now: datetime) -> datetime | None:
        """When the thing took place; None where its domain or the record itself doesn't say."""
        file = self._schemas[domain]
        text = data.get(file.time) if file.time else None
        if text is None:
            return None
        if not isinstance(text, str):
            raise invalid(file.time, "must be a string", "INVALID_TYPE")
        return plausible(file.time, parse_time(file.time, text), now, file.lead)
