"""Owns signed tokens (JWT, RFC 7519): taken apart without trust, believed by a key that is bound to its algorithm."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from jwt.algorithms import get_default_algorithms

from runtime.errors import Failure, Reason

# Those that a public key verifies, with the type (and curve) of key that each goes with; nothing else is ever tried.
ASYMMETRIC: Final[Mapping[str, tuple[str, str]]] = {
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "PS256": ("RSA", ""),
    "PS384": ("RSA", ""),
    "PS512": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
SHARED: Final = "HS256"
MIN_RSA_BITS: Final = 2048
MAX_KID_CHARS: Final = 256
# Seconds after 1970 in a date that no clock of ours can be compared with any more.
_LATEST: Final = 2**53

_ALGORITHMS: Final = get_default_algorithms()


@dataclass(frozen=True, kw_only=True)
class Unproven:
    """A token taken apart, of which nothing is believed yet."""

    algorithm: str
    kid: str | None
    """Looks a key up, and is good for nothing else."""
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A key of an issuer, as its JSON Web Key says."""

    kid: str | None
    kind: tuple[str, str]
    """Type and curve, as in ASYMMETRIC."""
    algorithm: str
    """The only one that it may be used with; empty: any that goes with its kind."""
    key: Any
    """As cryptography holds it."""


def parse(token: str, *, max_chars: int) -> Unproven:
    """Takes a token apart. Raises Failure(INVALID_TOKEN) for whatever is not one."""
    if len(token) > max_chars:
        raise Failure(Reason.INVALID_TOKEN, "The token is too long.")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise Failure(Reason.INVALID_TOKEN)
    header, claims = _object(parts[0]), _object(parts[1])
    algorithm, kid = header.get("alg"), header.get("kid")
    # What is critical is what its reader must understand; we understand none of it (RFC 7515, section 4.1.11).
    if not isinstance(algorithm, str) or not (kid is None or isinstance(kid, str)) or "crit" in header:
        raise Failure(Reason.INVALID_TOKEN)
    if kid is not None and len(kid) > MAX_KID_CHARS:
        raise Failure(Reason.INVALID_TOKEN)
    return Unproven(
        algorithm=algorithm,
        kid=kid,
        claims=claims,
        signed=f"{parts[0]}.{parts[1]}".encode(),
        signature=_bytes(parts[2]),
    )


def public_key(jwk: Mapping[str, Any]) -> PublicKey | None:
    """The key that a JSON Web Key describes; None for one that is not for verifying, or not safe to use."""
    kind = (str(jwk.get("kty")), "" if jwk.get("kty") == "RSA" else str(jwk.get("crv")))
    algorithm, kid = jwk.get("alg", ""), jwk.get("kid")
    fits = [name for name, needs in ASYMMETRIC.items() if needs == kind]
    if not fits or algorithm not in ["", *fits] or jwk.get("use", "sig") != "sig":
        return None
    if not (kid is None or isinstance(kid, str)):
        return None
    # A private member is nothing that anybody should publish, and nothing that we want to hold.
    members = {name: value for name, value in jwk.items() if name in ("kty", "crv", "n", "e", "x", "y")}
    try:
        key = jwt.PyJWK(members, algorithm=algorithm or fits[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if kind[0] == "RSA" and key.key_size < MIN_RSA_BITS:
        return None
    return PublicKey(kid=kid, kind=kind, algorithm=algorithm, key=key)


def check_signature(token: Unproven, key: PublicKey) -> None:
    """Raises Failure(INVALID_TOKEN) unless `key` has signed the token, by an algorithm that is the key's own."""
    kind = ASYMMETRIC.get(token.algorithm)
    if kind is None or kind != key.kind or key.algorithm not in ("", token.algorithm):
        raise Failure(Reason.INVALID_TOKEN)
    _check(token, key.key)


def check_shared(token: Unproven, secret: bytes) -> None:
    """Raises Failure(INVALID_TOKEN) unless who knows `secret` has signed the token with HS256."""
    if token.algorithm != SHARED:
        raise Failure(Reason.INVALID_TOKEN)
    _check(token, secret)


def check_times(claims: Mapping[str, Any], *, now: float, leeway: float) -> float:
    """When the token expires, leeway included.

    Raises Failure: TOKEN_EXPIRED, or INVALID_TOKEN when it is not good yet or does not say when it was issued and ends.
    """
    expires, issued = seconds(claims, "exp"), seconds(claims, "iat")
    starts = seconds(claims, "nbf") if "nbf" in claims else issued
    if max(issued, starts) > now + leeway:
        raise Failure(Reason.INVALID_TOKEN, "The token is not good yet.")
    if expires + leeway <= now:
        raise Failure(Reason.TOKEN_EXPIRED)
    return expires + leeway


def seconds(claims: Mapping[str, Any], name: str) -> float:
    """A claim that is a date. Raises Failure(INVALID_TOKEN)."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LATEST < value < _LATEST:
        raise Failure(Reason.INVALID_TOKEN)
    return float(value)


def text(claims: Mapping[str, Any], name: str, *, max_chars: int) -> str:
    """A claim that is a text; empty when it is not there. Raises Failure(INVALID_TOKEN)."""
    value = claims.get(name)
    if value is None:
        return ""
    # What can be shown can be stored: no NUL, no half of a surrogate pair.
    if not isinstance(value, str) or len(value) > max_chars or not value.isprintable():
        raise Failure(Reason.INVALID_TOKEN)
    return value


def audiences(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Whom the token is for. Raises Failure(INVALID_TOKEN)."""
    value = claims.get("aud")
    named = [value] if isinstance(value, str) else value
    if not isinstance(named, list) or not named or not all(isinstance(one, str) for one in named):
        raise Failure(Reason.INVALID_TOKEN)
    return tuple(named)


def _check(token: Unproven, key: Any) -> None:
    try:
        good = _ALGORITHMS[token.algorithm].verify(token.signed, key, token.signature)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise Failure(Reason.INVALID_TOKEN)


def _object(part: str) -> dict[str, Any]:
    try:
        value = json.loads(_bytes(part), parse_constant=_refuse)
    except (ValueError, RecursionError):  # nested so deeply that Python gives up
        raise Failure(Reason.INVALID_TOKEN) from None
    if not isinstance(value, dict):
        raise Failure(Reason.INVALID_TOKEN)
    return value


def _bytes(part: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Failure(Reason.INVALID_TOKEN) from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
