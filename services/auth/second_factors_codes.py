"""Owns the codes of second factors: those of an app (TOTP, RFC 6238), and those for the day that it is lost."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import pyotp

from runtime.errors import invalid, missing

STEP_SECONDS: Final = 30
# Phones' clocks are off by some seconds, and people type what has just gone: a step to either side.
STEPS_AROUND: Final = (0, -1, 1)
SECRET_CHARS: Final = 32  # 160 bits in base32, as long as the hash (RFC 4226, section 4)
RECOVERY_CODES: Final = 10
RECOVERY_BYTES: Final = 10  # 80 bits: even the stored hashes cannot be guessed from
_TOTP: Final = re.compile(r"[0-9]{6}")
_RECOVERY: Final = re.compile(r"[A-Z2-7]{16}")

CodeKind = Literal["totp", "recovery"]


def new_totp_secret() -> str:
    """What an app makes its codes of, in base32."""
    return pyotp.random_base32(SECRET_CHARS)


def otpauth_uri(secret: str, *, account: str, issuer: str) -> str:
    """The secret as a QR code shows it to an app."""
    return pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name=issuer)


def step_of(secret: str, code: str, now: datetime) -> int | None:
    """The number of the thirty seconds that `code` is of, if they are about now; None: it is not the secret's."""
    current = int(now.timestamp()) // STEP_SECONDS
    totp = pyotp.TOTP(secret)
    matching = [
        current + around for around in STEPS_AROUND if hmac.compare_digest(totp.generate_otp(current + around), code)
    ]
    return matching[0] if matching else None


def new_recovery_codes() -> list[str]:
    """Ten codes as they are shown: XXXX-XXXX-XXXX-XXXX in base32."""
    drawn = (base64.b32encode(secrets.token_bytes(RECOVERY_BYTES)).decode() for _ in range(RECOVERY_CODES))
    return ["-".join(re.findall("....", one)) for one in drawn]


def recovery_digest(account_id: UUID, code: str) -> bytes:
    """What is stored of a recovery code."""
    return hashlib.sha256(b"satchel recovery code\0" + account_id.bytes + parse_code(code)[1].encode()).digest()


def parse_code(text: str) -> tuple[CodeKind, str]:
    """What kind of code it is, and the code without what people type around it.

    Raises Failure: FIELD_MISSING, FIELD_INVALID for what can be neither.
    """
    if not text.strip():
        raise missing("code")
    code = "".join(text.split()).replace("-", "").upper()
    if _TOTP.fullmatch(code):
        return "totp", code
    if _RECOVERY.fullmatch(code):
        return "recovery", code
    raise invalid("code", "must be the six digits of the app, or a recovery code", "INVALID_FORMAT")
