"""Owns the two tokens of a sign-in: how they are made, and what of them is stored.

A refresh token is `rt_` and the base64url of sign-in id (16 bytes), secret (32) and tag (16). Stored are the sha256 of
the secret and a key of the sign-in; the tag, sha256(key || sha256(secret)) cut to 16 bytes, tells a token that was
once ours, and is now reused, from one that somebody made up to end another's sign-in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runtime.call import Principal
from runtime.errors import Failure, Reason
from runtime.identity import ACCESS_TOKEN_SECONDS, ISSUER, LEEWAY, MAX_TOKEN_CHARS, SERVICE_TOKEN_SECONDS
from runtime.keys import SigningKey
from runtime.signed import check_signature, check_times, parse, public_key

PREFIX: Final = "rt_"
SECRET_BYTES: Final = 32
TAG_BYTES: Final = 16
_ID_BYTES: Final = 16
_NONCE_BYTES: Final = 12
# As long as the tokens that services show each other.
ACTING_TOKEN_SECONDS: Final = SERVICE_TOKEN_SECONDS


@dataclass(frozen=True)
class RefreshToken:
    """A refresh token taken apart."""

    sign_in_id: UUID
    secret: bytes
    tag: bytes

    @property
    def digest(self) -> bytes:
        """What is stored of the secret: its sha256."""
        return hashlib.sha256(self.secret).digest()

    def __str__(self) -> str:
        raw = self.sign_in_id.bytes + self.secret + self.tag
        return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    def __repr__(self) -> str:
        return f"RefreshToken(sign_in_id={self.sign_in_id})"

    def seal(self, successor_secret: bytes) -> bytes:
        """The secret of this token's successor, readable only by who holds this token."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._box().encrypt(nonce, successor_secret, self.sign_in_id.bytes)

    def unseal(self, sealed: bytes) -> bytes:
        """The successor's secret again. Raises Failure(INVALID_TOKEN) when it was sealed to another token."""
        try:
            return self._box().decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self.sign_in_id.bytes)
        except InvalidTag:
            raise Failure(Reason.INVALID_TOKEN) from None

    def _box(self) -> AESGCM:
        return AESGCM(HKDF(SHA256(), 32, salt=None, info=b"satchel refresh successor").derive(self.secret))


def refresh_token(sign_in_id: UUID, secret: bytes, key: bytes) -> RefreshToken:
    """The token with `secret` of the sign-in whose stored key is `key`."""
    return RefreshToken(sign_in_id, secret, hashlib.sha256(key + hashlib.sha256(secret).digest()).digest()[:TAG_BYTES])


def new_secret() -> bytes:
    """What makes a refresh token impossible to guess."""
    return secrets.token_bytes(SECRET_BYTES)


def parse_refresh_token(text: str) -> RefreshToken:
    """The token that `text` spells. Raises Failure(INVALID_TOKEN)."""
    size = _ID_BYTES + SECRET_BYTES + TAG_BYTES
    try:
        if not text.startswith(PREFIX) or len(text) > 100:
            raise Failure(Reason.INVALID_TOKEN)
        body = text.removeprefix(PREFIX)
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Failure(Reason.INVALID_TOKEN) from None
    if len(raw) != size:
        raise Failure(Reason.INVALID_TOKEN)
    return RefreshToken(UUID(bytes=raw[:_ID_BYTES]), raw[_ID_BYTES : _ID_BYTES + SECRET_BYTES], raw[-TAG_BYTES:])


class AccessTokens:
    """Signs access tokens with the newest key (ES256, RFC 7518)."""

    def __init__(self, keys: list[SigningKey], *, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock

    def mint(self, principal: Principal) -> str:
        """An access token that speaks for `principal` for an hour."""
        return self._signed(principal, ACCESS_TOKEN_SECONDS, {})

    def mint_acting(self, principal: Principal) -> str:
        """An access token for `principal`'s actor, for five minutes (RFC 8693, section 4.1)."""
        claims: dict[str, object] = {"act": {"sub": principal.actor}}
        if principal.scopes is not None:
            claims["scope"] = " ".join(sorted(principal.scopes))
        return self._signed(principal, ACTING_TOKEN_SECONDS, claims)

    def _signed(self, principal: Principal, seconds: int, further: Mapping[str, object]) -> str:
        now = int(self._clock())
        claims = {
            "iss": ISSUER,
            "sub": str(principal.user_id),
            "sid": str(principal.sign_in_id),
            "tenant_id": principal.tenant_id,
            "role": principal.role,
            "tier": principal.tier,
            "iat": now,
            "exp": now + seconds,
            **({"guest": True} if principal.guest else {}),
            **further,
        }
        newest = self._keys[0]
        return jwt.encode(claims, newest.private, algorithm="ES256", headers={"kid": newest.kid})

    def read(self, token: str) -> tuple[UUID, UUID]:
        """Whose access token it is, and of which sign-in.

        Raises Failure: INVALID_TOKEN, also for one that a service acts with; TOKEN_EXPIRED.
        """
        unproven = parse(token, max_chars=MAX_TOKEN_CHARS)
        key = next((public_key(one.jwk) for one in self._keys if one.kid == unproven.kid), None)
        if key is None:
            raise Failure(Reason.INVALID_TOKEN)
        check_signature(unproven, key)
        claims = unproven.claims
        # What a service was given to act with proves nothing about who shows it, and may be good for less.
        if claims.get("iss") != ISSUER or "aud" in claims or "act" in claims:
            raise Failure(Reason.INVALID_TOKEN)
        check_times(claims, now=self._clock(), leeway=LEEWAY)
        try:
            return UUID(claims["sub"]), UUID(claims["sid"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Failure(Reason.INVALID_TOKEN) from None

    def public_keys(self) -> list[dict[str, str]]:
        """Every key that a live token may be signed with, as JSON Web Keys."""
        return [key.jwk for key in self._keys]
