"""An issuer of tokens, as Google or a Supabase project is one: keys of its own, served by a real HTTP server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

GENERATED = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(header: Any, claims: Any, signature: bytes = b"") -> str:
    """A token of any header, claims and signature, however wrong they are."""
    parts = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in (header, claims)]
    return ".".join(b64(part) for part in (*parts, signature))


def signed_with_secret(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """A token signed with HS256, also by what no library would take for a secret."""
    unsigned = compact(header, claims).rpartition(".")[0]
    return f"{unsigned}.{b64(hmac.digest(secret, unsigned.encode(), hashlib.sha256))}"


class Key:
    """A key pair."""

    def __init__(self, algorithm: str = "RS256", kid: str = "one") -> None:
        self.algorithm, self.kid = algorithm, kid
        self.private = GENERATED[algorithm]()

    @property
    def jwk(self) -> dict[str, Any]:
        members = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return {**members, "kid": self.kid, "use": "sig", "alg": self.algorithm}

    @property
    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        algorithm = header.pop("alg", self.algorithm)
        headers = {name: value for name, value in {"kid": self.kid, **header}.items() if value is not None}
        content = json.dumps(claims).encode()  # where PyJWT would rather write no wrong ones
        return jwt.api_jws.encode(content, self.private, algorithm=algorithm, headers=headers)


class Issuer:
    """What it serves can be changed at any time, and what was asked for is remembered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys = [Key()]
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        """Status, headers and body, by path, in place of what it would answer."""
        self.held = threading.Event()
        """Cleared: answers wait until it is set."""
        self.held.set()

    def claims(self, **given: Any) -> dict[str, Any]:
        """Claims of an id token for the app; those given as None are left out."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": "app", "sub": "1234", "iat": now, "exp": now + 600, **given}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, **given: Any) -> str:
        """An id token by the newest key."""
        return self.keys[-1].sign(self.claims(**given))

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        self.held.wait(30)
        if path in self.answers:
            return self.answers[path]
        if path == "/.well-known/openid-configuration":
            return 200, {}, json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}).encode()
        if path in ("/jwks", "/.well-known/jwks.json"):
            return 200, {}, json.dumps({"keys": [key.jwk for key in self.keys]}).encode()
        return 404, {}, b"{}"

    def go_away(self) -> None:
        for path in ("/.well-known/openid-configuration", "/jwks", "/.well-known/jwks.json"):
            self.answers[path] = (503, {}, b"")

    def come_back(self) -> None:
        self.answers.clear()


@contextmanager
def issuer() -> Iterator[Issuer]:
    """An issuer on a free port for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = started.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        started = Issuer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield started
        finally:
            started.held.set()
            server.shutdown()
            thread.join()
