"""Owns the keys on disk: those that sign access tokens, seal stored credentials, and let services know each other."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

_FIELD_BYTES: Final = 32  # a coordinate on P-256


@dataclass(frozen=True)
class SigningKey:
    """A key pair on P-256."""

    private: ec.EllipticCurvePrivateKey
    kid: str
    """Thumbprint of the public key by RFC 7638, so that every replica gives a key the same name."""

    @property
    def jwk(self) -> dict[str, str]:
        """The public half as a JSON Web Key (RFC 7517)."""
        return {**_members(self.private.public_key()), "kid": self.kid, "use": "sig", "alg": "ES256"}


def signing_keys(directory: Path) -> list[SigningKey]:
    """The signing keys in `directory`, newest first; the newest signs. Creates the first one when there is none."""
    files = sorted(directory.glob("signing-*.pem"), reverse=True)
    if not files:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _create_once(directory / "signing-0001.pem", pem)
        files = sorted(directory.glob("signing-*.pem"), reverse=True)
    return [_signing_key(file.read_bytes()) for file in files]


def mesh_secret(directory: Path) -> bytes:
    """The secret that services sign their calls to each other with; created once, 32 bytes."""
    file = directory / "mesh.key"
    if not file.exists():
        _create_once(file, secrets.token_bytes(32))
    return file.read_bytes()


@dataclass(frozen=True)
class VaultKey:
    """A key that seals the keys of what is stored."""

    id: str
    secret: bytes = field(repr=False)
    """32 bytes, for AES-256."""


def vault_keys(directory: Path) -> list[VaultKey]:
    """The vault's keys in `directory`, newest first; the newest seals. Creates the first one when there is none."""
    files = sorted(directory.glob("vault-*.key"), reverse=True)
    if not files:
        add_vault_key(directory, 1)
        files = sorted(directory.glob("vault-*.key"), reverse=True)
    return [VaultKey(file.stem.removeprefix("vault-"), file.read_bytes()) for file in files]


def add_vault_key(directory: Path, number: int) -> None:
    """Puts a new key with this number, from 1, into `directory`; one that is there stays."""
    _create_once(directory / f"vault-{number:04}.key", secrets.token_bytes(32))


def parse_vault_keys(text: str) -> list[VaultKey]:
    """The keys in a setting of the form id:base64,id:base64. Raises ValueError with a sentence that shows none."""
    keys = []
    for one in text.split(","):
        id, separator, encoded = one.strip().partition(":")
        try:
            secret = base64.b64decode(encoded, validate=True)
        except ValueError:
            secret = b""
        if not separator or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", id) or len(secret) != 32:
            raise ValueError("each key must be an id, a colon and 32 bytes in base64")
        keys.append(VaultKey(id, secret))
    if len({key.id for key in keys}) < len(keys):
        raise ValueError("two keys have the same id")
    return keys


def _signing_key(pem: bytes) -> SigningKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("a signing key must be a private key on P-256")
    canonical = json.dumps(_members(key.public_key()), sort_keys=True, separators=(",", ":"))
    return SigningKey(key, _base64url(hashlib.sha256(canonical.encode()).digest()))


def _members(public: ec.EllipticCurvePublicKey) -> dict[str, str]:
    point = public.public_numbers()
    x, y = (_base64url(number.to_bytes(_FIELD_BYTES)) for number in (point.x, point.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _create_once(file: Path, content: bytes) -> None:
    """Writes `file` for its owner only; whoever is first wins, and nobody ever reads half of it."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(draft, file)
    except FileExistsError:
        pass  # another replica was first, and its key is the one
    finally:
        draft.unlink()
