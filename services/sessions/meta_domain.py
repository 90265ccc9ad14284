"""Owns what an app can find out before anybody has signed in: the schemas, and which of its versions still work."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from semver import Version

from runtime.errors import Failure, Reason, invalid, missing
from runtime.telemetry import logger

if TYPE_CHECKING:
    from services.sessions.meta_store import AppVersionStore
    from services.sessions.schema_files import SchemaFile

MAX_VERSION_CHARS: Final = 64
MAX_URL_CHARS: Final = 500
# A phone that waits at the door of sync is let in rather than kept waiting.
GATE_PATIENCE: Final = 1.0
_PLATFORM: Final = re.compile(r"[a-z0-9_-]{1,32}")
_STORE_URL: Final = re.compile(r"(https|itms-apps|market)://[!-~]+")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A JSON document that is the same until the server is started anew."""

    content: bytes
    tag: str
    """Strong: a hash of the content."""


class Discovery:
    """The schemas of the domains as apps read them."""

    def __init__(self, files: Iterable[SchemaFile]) -> None:
        shown = {file.domain: _shown(file) for file in sorted(files, key=lambda file: file.domain)}
        self._all = _published({"schemas": list(shown.values())})
        self._one = {domain: _published(one) for domain, one in shown.items()}

    def all(self) -> Published:
        """Every domain."""
        return self._all

    def one(self, domain: str) -> Published:
        """One domain. Raises Failure(NOT_FOUND)."""
        if domain not in self._one:
            raise Failure(Reason.NOT_FOUND, "There is no such domain.")
        return self._one[domain]


@dataclass(frozen=True, kw_only=True)
class AppVersion:
    """Which versions of the app there are for a platform."""

    platform: str
    latest: str
    """SemVer."""
    minimum: str
    """SemVer, the oldest that still works."""
    store_url: str
    force: bool
    """Whether every version below the latest has to be updated."""
    update_time: datetime


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a version of the app stands among those there are."""

    app: AppVersion
    supported: bool
    """Whether it still works."""
    force_update: bool
    update_available: bool


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether a phone may come in with the app that it has."""

    supported: bool
    update_available: bool
    store_url: str


OPEN: Final = Gate(supported=True, update_available=False, store_url="")


class AppVersions:
    """The versions of the app, by platform; the same for every tenant."""

    def __init__(self, store: AppVersionStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def standing(self, platform: str, version: str) -> Standing:
        """How `version` stands; an empty one stands well. Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND."""
        name = parse_platform(platform)
        own = parse_version("version", version) if version else None
        app = await self._store.get(name)
        if app is None:
            raise Failure(Reason.NOT_FOUND, "Nothing is known of this platform.")
        return _standing(app, own)

    async def set(self, platform: str, latest: str, minimum: str, store_url: str, *, force: bool = False) -> AppVersion:
        """What there is from now on. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
        newest, oldest = parse_version("latest_version", latest), parse_version("min_supported_version", minimum)
        if oldest > newest:
            raise invalid("min_supported_version", "is above latest_version")
        if store_url and (len(store_url) > MAX_URL_CHARS or not _STORE_URL.fullmatch(store_url)):
            raise invalid("store_url", "must be an https, itms-apps or market URL", "INVALID_FORMAT")
        app = AppVersion(
            platform=parse_platform(platform),
            latest=str(newest),
            minimum=str(oldest),
            store_url=store_url,
            force=force,
            update_time=self._now(),
        )
        await self._store.set(app)
        return app

    async def gate(self, platform: str, version: str) -> Gate:
        """Whether the app may sync. Fails open: only what is known to be too old is kept out.

        A forced update closes no gate: what a phone has is safe only once it is here.
        """
        try:
            async with asyncio.timeout(GATE_PATIENCE):
                standing = await self.standing(platform, version)
        except Failure:
            return OPEN
        except Exception as error:  # a gate that is broken must keep nobody from data that is safe only once it is here
            logger().warning("the version gate stands open", error=repr(error))
            return OPEN
        return Gate(
            supported=standing.supported,
            update_available=standing.update_available,
            store_url=standing.app.store_url,
        )


def parse_platform(text: str) -> str:
    """A platform's name in lower case. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    if not text:
        raise missing("platform")
    if not _PLATFORM.fullmatch(text.lower()):
        raise invalid("platform", "must be 1 to 32 letters, digits, hyphens and underscores", "INVALID_FORMAT")
    return text.lower()


def parse_version(field: str, text: str) -> Version:
    """A SemVer version; 2.1 means 2.1.0, and a v before it means nothing. Raises Failure naming `field`."""
    if not text:
        raise missing(field)
    try:
        if len(text) > MAX_VERSION_CHARS or not text.isascii():
            raise ValueError(text)
        return Version.parse(text.removeprefix("v"), optional_minor_and_patch=True)
    except ValueError:
        raise invalid(field, "must be a version such as 2.1.0", "INVALID_FORMAT") from None


def _standing(app: AppVersion, own: Version | None) -> Standing:
    supported = own is None or own >= Version.parse(app.minimum)
    available = own is not None and own < Version.parse(app.latest)
    return Standing(
        app=app,
        supported=supported,
        force_update=not supported or (app.force and (available or own is None)),
        update_available=available,
    )


def _shown(file: SchemaFile) -> dict[str, Any]:
    return {
        "domain": file.domain,
        "version": file.version,
        "policy": str(file.strategy),
        "writer": str(file.writer),
        "schema": file.document,
    }


def _published(document: dict[str, Any]) -> Published:
    content = orjson.dumps(document)
    return Published(content=content, tag=hashlib.sha256(content).hexdigest()[:32])
