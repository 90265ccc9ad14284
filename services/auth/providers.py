"""Owns OpenID providers: which ones there are, and what an id token of each must say to be believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx

from runtime.config import ConfigError, SsoProvider
from runtime.errors import Failure, Reason, Violation, invalid, missing
from runtime.issuers import Check, IssuerKeys
from runtime.signed import audiences, check_times, parse, text
from services.auth.accounts import parse_email
from services.auth.identities import Identity

# Providers' clocks are not ours.
LEEWAY: Final = 30.0
MAX_ID_TOKEN_CHARS: Final = 16 * 1024
MAX_NONCE_CHARS: Final = 512
# OpenID Connect Core 1.0, section 2.
MAX_SUBJECT_CHARS: Final = 255
MAX_EMAIL_CHARS: Final = 320
MAX_NAME_CHARS: Final = 200


@dataclass(frozen=True, kw_only=True)
class _Preset:
    issuers: tuple[str, ...]
    """In every spelling that its tokens use; the first is the one to be asked."""
    jwks_url: str


PRESETS: Final[Mapping[str, _Preset]] = {
    "google": _Preset(
        issuers=("https://accounts.google.com", "accounts.google.com"),
        jwks_url="https://www.googleapis.com/oauth2/v3/certs",
    ),
    "apple": _Preset(issuers=("https://appleid.apple.com",), jwks_url="https://appleid.apple.com/auth/keys"),
    "facebook": _Preset(
        issuers=("https://www.facebook.com", "https://facebook.com"),
        jwks_url="https://www.facebook.com/.well-known/oauth/openid/jwks/",
    ),
}


class Provider:
    """One OpenID provider."""

    def __init__(
        self,
        name: str,
        *,
        issuers: tuple[str, ...],
        audiences: frozenset[str],
        check: Check,
        now: Callable[[], datetime],
    ) -> None:
        """`check` believes or refuses a token's signature."""
        self._name = name
        self._issuers = issuers
        self._audiences = audiences
        self._check = check
        self._now = now

    async def identity(self, id_token: str, nonce: str) -> Identity:
        """Who an id token speaks of.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, UNAVAILABLE when the provider's keys cannot be had, and
        INVALID_TOKEN or TOKEN_EXPIRED about the field id_token.
        """
        if not id_token:
            raise missing("id_token")
        if len(nonce) > MAX_NONCE_CHARS:
            raise invalid("nonce", f"is longer than {MAX_NONCE_CHARS} characters", "TOO_LONG")
        try:
            return await self._identity(id_token, nonce)
        except Failure as failure:
            if failure.reason not in (Reason.INVALID_TOKEN, Reason.TOKEN_EXPIRED):
                raise
            violation = Violation("id_token", failure.reason.name)
            raise Failure(failure.reason, f"id_token: {failure.message}", violations=[violation]) from None

    async def _identity(self, id_token: str, nonce: str) -> Identity:
        token = parse(id_token, max_chars=MAX_ID_TOKEN_CHARS)
        await self._check(token)
        claims, now = token.claims, self._now()
        if claims.get("iss") not in self._issuers:
            raise _wrong("is of another issuer")
        _check_audience(claims, self._audiences)
        check_times(claims, now=now.timestamp(), leeway=LEEWAY)
        _check_nonce(claims, nonce)
        subject = text(claims, "sub", max_chars=MAX_SUBJECT_CHARS)
        if not subject.strip():
            raise _wrong("does not say whom it is about")
        email, said = _email(claims), claims.get("email_verified")
        return Identity(
            provider=self._name,
            subject=subject,
            email=email,
            # Apple writes booleans as texts.
            email_verified=bool(email) and (said is True or said == "true"),
            full_name=_name(claims),
            create_time=now,
        )


class Providers:
    """The providers that somebody may sign in by."""

    def __init__(self, by_name: Mapping[str, Provider]) -> None:
        self._by_name = by_name

    def provider(self, name: str) -> Provider:
        """The provider of this name. Raises Failure(NOT_FOUND)."""
        found = self._by_name.get(name)
        if found is None:
            raise Failure(Reason.NOT_FOUND, "There is no such provider to sign in by.")
        return found


def providers(
    configured: Mapping[str, SsoProvider], http: httpx.AsyncClient, *, now: Callable[[], datetime]
) -> Providers:
    """The providers in the settings. Raises ConfigError for one that is neither a preset nor says its issuer."""
    return Providers(
        {name: _provider(name, said, http, now) for name, said in configured.items() if said.audiences},
    )


def _provider(name: str, said: SsoProvider, http: httpx.AsyncClient, now: Callable[[], datetime]) -> Provider:
    preset = PRESETS.get(name)
    # Who names another issuer means another one, with keys of its own.
    issuers = (said.issuer,) if said.issuer else preset.issuers if preset else ()
    if not issuers:
        raise ConfigError(f"SATCHEL_SSO_{name.upper()}_ISSUER: is missing; only {', '.join(PRESETS)} are known by name")
    jwks_url = said.jwks_url or (preset.jwks_url if preset and not said.issuer else "")
    keys = IssuerKeys(http, issuer=issuers[0], jwks_url=jwks_url)
    return Provider(name, issuers=issuers, audiences=said.audiences, check=keys.check, now=now)


def _check_audience(claims: Mapping[str, Any], ours: frozenset[str]) -> None:
    named = audiences(claims)
    if ours.isdisjoint(named):
        raise _wrong("is for another app")
    # Of one for several apps, the one that it was issued to must be ours (OpenID Connect Core, section 3.1.3.7).
    # With a single audience azp may be another of the same project's apps, as Google's is on Android.
    if len(set(named)) > 1 and not (isinstance(azp := claims.get("azp"), str) and azp in ours):
        raise _wrong("was issued to another app")


def _check_nonce(claims: Mapping[str, Any], nonce: str) -> None:
    """A token with a nonce is only good with that nonce, and one without only without."""
    said = claims.get("nonce")
    if said is None and not nonce:
        return
    # Apple's and Facebook's kits have the phone hash it first, so that the token does not tell what it takes to use it.
    hashed = hashlib.sha256(nonce.encode("utf-8", "replace")).hexdigest()
    if not nonce or not isinstance(said, str) or said not in (nonce, hashed):
        raise _wrong("has another nonce")


def _email(claims: Mapping[str, Any]) -> str:
    try:
        return parse_email(text(claims, "email", max_chars=MAX_EMAIL_CHARS))
    except Failure:
        return ""  # one that is no address is as good as none


def _name(claims: Mapping[str, Any]) -> str:
    try:
        return text(claims, "name", max_chars=MAX_NAME_CHARS)
    except Failure:
        return ""


def _wrong(why: str) -> Failure:
    return Failure(Reason.INVALID_TOKEN, f"The token {why}.")
