"""The contract around all four kinds of rpc, on a real server and a real channel."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import grpc
import jwt
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.options.v1 import options_pb2 as options

from runtime.call import current, principal
from runtime.contract import Limit, Policy
from runtime.errors import Failure, Reason, invalid
from runtime.identity import ACCESS_TOKEN_SECONDS, Revocations, ServiceTokens, Verifier
from runtime.interceptors import ContractInterceptor
from runtime.keys import SigningKey, signing_keys
from runtime.limits import RateLimiter
from runtime.outcomes import Outcomes
from runtime.telemetry import RPC_ACTIVE, log_to_stderr

SERVICE = "test.v1.TestService"
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
SECRET = b"the secret of the mesh, 32 bytes."


def policy(kind: str, **given: Any) -> Policy:
    plain = Policy(
        method=f"/{SERVICE}/{kind}",
        access=options.ACCESS_PUBLIC,
        limits=(),
        dialect=options.DIALECT_CORE,
        takes_key=False,
        success_status=200,
        camel_case=False,
        read_only=False,
        http=(),
    )
    return replace(plain, **given)


class Handlers:
    """Echoes upper case; `!` is a refusal, `?` a bug, `~` takes for ever."""

    def __init__(self) -> None:
        self.callers: list[Any] = []
        self.ended = asyncio.Event()

    async def answer(self, data: bytes) -> bytes:
        call = current.get()
        self.callers.append(call.principal)
        if data == b"!":
            raise invalid("echo", "must not be an exclamation mark")
        if data == b"?":
            raise KeyError("SELECT password FROM accounts")
        if data == b"~":
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        return data.upper()

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        return await self.answer(request)

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(2):
            yield await self.answer(request)

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([await self.answer(one) async for one in requests])

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for one in requests:
            yield await self.answer(one)


class Wire:
    """Calls each kind of rpc with the same word and gives the answers as a list."""

    def __init__(self, channel: grpc.aio.Channel, handlers: Handlers) -> None:
        self._channel = channel
        self.handlers = handlers

    async def call(self, kind: str, word: bytes, *metadata: tuple[str, str], **options: Any) -> list[bytes]:
        method = f"/{SERVICE}/{kind}"
        options["metadata"] = metadata
        words = iter([word] * options.pop("times", 2))
        if kind in ("UnaryUnary", "Missing"):
            return [await self._channel.unary_unary(method)(word, **options)]
        if kind == "UnaryStream":
            return [one async for one in self._channel.unary_stream(method)(word, **options)]
        if kind == "StreamUnary":
            return [await self._channel.stream_unary(method)(words, **options)]
        return [one async for one in self._channel.stream_stream(method)(words, **options)]

    async def refusal(self, kind: str, word: bytes, *metadata: tuple[str, str], **options: Any) -> grpc.aio.AioRpcError:
        # A caller that is refused while it still writes sees an error of its own instead of the answer: what is
        # refused before it is read sends nothing.
        options["times"] = 1 if word in (b"!", b"?", b"~") else 0
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.call(kind, word, *metadata, **options)
        return refused.value


@asynccontextmanager
async def wire(
    key: SigningKey | None = None, revocations: Revocations | None = None, **given: Any
) -> AsyncIterator[Wire]:
    handlers = Handlers()
    policies = {one.method: one for one in (policy(kind, **given) for kind in KINDS)}

    async def fetch_keys() -> list[dict[str, str]]:
        return [key.jwk] if key else []

    verifier = Verifier(fetch_keys=fetch_keys, mesh_secret=SECRET, revocations=revocations or Revocations())
    contract = ContractInterceptor(
        policies,
        verifier=verifier,
        limiter=RateLimiter(""),
        call_timeout=0.5,
        draining=asyncio.Event(),
        outcomes=Outcomes(),
    )
    server = grpc.aio.server(interceptors=[contract])
    made = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(handlers.unary_unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(handlers.unary_stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(handlers.stream_unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(handlers.stream_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, made),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Wire(channel, handlers)
    await server.stop(None)


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details of an answer, by type."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it reads
    assert status is not None
    found = {}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])()
        packed.Unpack(detail)
        found[type(detail).__name__] = detail
    return found


def access_token(key: SigningKey, **claims: Any) -> str:
    now = int(time.time())
    plain = {
        "iss": "satchel",
        "sub": str(uuid4()),
        "sid": str(uuid4()),
        "tenant_id": 1,
        "role": "user",
        "tier": "free",
        "iat": now,
        "exp": now + 60,
    }
    return jwt.encode({**plain, **claims}, key.private, algorithm="ES256", headers={"kid": key.kid})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_good_call_is_answered(kind: str) -> None:
    async with wire() as calls:
        answers = await calls.call(kind, b"hello")
        assert b"".join(answers) == (b"HELLO" if kind == "UnaryUnary" else b"HELLOHELLO")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_carries_its_reason_and_field(kind: str) -> None:
    async with wire() as calls:
        error = await calls.refusal(kind, b"!", ("x-request-id", "walk-1"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        found = details(error)
        assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == ("FIELD_INVALID", "satchel")
        assert found["BadRequest"].field_violations[0].field == "echo"
        assert found["RequestInfo"].request_id == "req_walk-1"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bug_is_internal_and_its_text_stays_here(kind: str) -> None:
    async with wire() as calls:
        error = await calls.refusal(kind, b"?")
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "SELECT" not in str(error)
        assert await calls.call(kind, b"on") != []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_is_answered_though_the_log_takes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with suppress(BrokenPipeError), open(writing, "w") as nobody_reads:
        async with wire() as calls:
            monkeypatch.setattr(sys, "stderr", nobody_reads)
            log_to_stderr("tests", "warning")
            error = await calls.refusal(kind, b"?", timeout=10)
            monkeypatch.undo()
            log_to_stderr("tests", "warning")
            assert error.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("kind", KINDS)
async def test_a_token_is_asked_for_and_verified(kind: str, tmp_path: Any) -> None:
    (key,) = signing_keys(tmp_path)
    async with wire(key, access=options.ACCESS_USER) as calls:
        error = await calls.refusal(kind, b"hello")
        assert details(error)["ErrorInfo"].reason == "MISSING_BEARER_TOKEN"
        user_id = uuid4()
        await calls.call(kind, b"hello", ("authorization", f"Bearer {access_token(key, sub=str(user_id))}"))
        assert {caller.user_id for caller in calls.handlers.callers} == {user_id}


async def test_a_token_dies_with_its_sign_in_and_with_its_time(tmp_path: Any) -> None:
    (key,) = signing_keys(tmp_path)
    revocations = Revocations()
    async with wire(key, revocations, access=options.ACCESS_USER) as calls:
        sign_in = uuid4()
        bearer = ("authorization", f"Bearer {access_token(key, sid=str(sign_in))}")
        await calls.call("UnaryUnary", b"hello", bearer)
        revocations.add([sign_in])
        assert details(await calls.refusal("UnaryUnary", b"hello", bearer))["ErrorInfo"].reason == "TOKEN_REVOKED"
        late = ("authorization", f"Bearer {access_token(key, exp=int(time.time()) - 60)}")
        assert details(await calls.refusal("UnaryUnary", b"hello", late))["ErrorInfo"].reason == "TOKEN_EXPIRED"


@pytest.mark.parametrize(
    ("access", "role", "allowed"),
    [
        (options.ACCESS_USER, "user", True),
        (options.ACCESS_USER, "admin", True),
        (options.ACCESS_ADMIN, "user", False),
        (options.ACCESS_ADMIN, "admin", True),
        (options.ACCESS_SERVICE, "admin", False),
        (options.ACCESS_SERVICE, "service", True),
        (options.ACCESS_USER, "service", False),
        (options.ACCESS_OPERATOR, "user", False),
        (options.ACCESS_OPERATOR, "admin", True),
        (options.ACCESS_OPERATOR, "service", True),
        (options.ACCESS_OWNER, "user", True),
        (options.ACCESS_OWNER, "admin", True),
        (options.ACCESS_OWNER, "service", True),
    ],
)
async def test_the_role_decides(tmp_path: Any, access: int, role: str, allowed: bool) -> None:
    (key,) = signing_keys(tmp_path)
    token = ServiceTokens(SECRET, "test").current() if role == "service" else access_token(key, role=role)
    async with wire(key, access=access) as calls:
        bearer = ("authorization", f"Bearer {token}")
        if allowed:
            assert await calls.call("UnaryUnary", b"hello", bearer) == [b"HELLO"]
        else:
            assert details(await calls.refusal("UnaryUnary", b"hello", bearer))["ErrorInfo"].reason == "FORBIDDEN"


async def test_a_user_token_cannot_name_itself_a_service(tmp_path: Any) -> None:
    (key,) = signing_keys(tmp_path)
    async with wire(key, access=options.ACCESS_SERVICE) as calls:
        bearer = ("authorization", f"Bearer {access_token(key, role='service')}")
        assert details(await calls.refusal("UnaryUnary", b"hello", bearer))["ErrorInfo"].reason == "FORBIDDEN"


async def test_the_public_key_is_no_secret_to_sign_with(tmp_path: Any) -> None:
    """Algorithm confusion: a token signed by HMAC with what everybody can read."""
    (key,) = signing_keys(tmp_path)
    forged = jwt.encode(
        {"iss": "satchel", "aud": "satchel-mesh", "sub": "service:me", "iat": 0, "exp": int(time.time()) + 60},
        str(key.jwk),
        algorithm="HS256",
    )
    async with wire(key, access=options.ACCESS_SERVICE) as calls:
        error = await calls.refusal("UnaryUnary", b"hello", ("authorization", f"Bearer {forged}"))
        assert details(error)["ErrorInfo"].reason == "INVALID_TOKEN"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_limit_counts_calls_and_says_when_to_come_again(kind: str) -> None:
    async with wire(limits=(Limit(2, 60, options.SCOPE_IP, ""),)) as calls:
        for _ in range(2):
            await calls.call(kind, b"hello")
        error = await calls.refusal(kind, b"hello")
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 0 < details(error)["RetryInfo"].retry_delay.seconds <= 60


async def test_a_unary_call_ends_at_its_deadline() -> None:
    async with wire() as calls:
        error = await calls.refusal("UnaryUnary", b"~")
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(calls.handlers.ended.wait(), 5)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_who_goes_away_leaves_no_call_behind(kind: str) -> None:
    async with wire() as calls:
        error = await calls.refusal(kind, b"~", timeout=1.0)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        active = RPC_ACTIVE.labels(SERVICE, kind)
        deadline = time.monotonic() + 20
        while active._value.get() != 0:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        # On a busy machine the caller may be gone before the handler has begun.
        assert calls.handlers.ended.is_set() or not calls.handlers.callers


async def test_an_unknown_method_is_unimplemented() -> None:
    async with wire() as calls:
        error = await calls.refusal("Missing", b"hello")
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert details(error)["ErrorInfo"].reason == "UNIMPLEMENTED"


async def test_a_key_is_the_same_for_the_same_content_only() -> None:
    from google.api.httpbody_pb2 import HttpBody
    from satchel.sessions.v1.puzzle_sessions_pb2 import UploadPuzzleSessionsJsonRequest

    from runtime.idempotency import idempotency_key_of

    def digest(document: bytes) -> bytes:
        request = UploadPuzzleSessionsJsonRequest(document=HttpBody(data=document))
        key = idempotency_key_of({"idempotency-key": "k"}, request)
        assert key is not None
        return key.digest

    assert digest(b'{"a":1,"b":2}') == digest(b'{ "b": 2, "a": 1 }')
    assert digest(b'{"a":1,"b":2}') != digest(b'{"a":1,"b":3}')
    assert digest(b"no json") == digest(b"no json")


@pytest.mark.parametrize("key", ["x" * 256, "two words", "ümlaut"])
async def test_a_key_that_cannot_be_kept_is_refused(key: str) -> None:
    from runtime.idempotency import idempotency_key_of

    with pytest.raises(Failure) as refused:
        idempotency_key_of({"idempotency-key": key}, object())
    assert refused.value.reason is Reason.FIELD_INVALID
    assert refused.value.violations[0].field == "idempotency_key"


async def test_revocations_are_forgotten_when_no_token_can_be_alive() -> None:
    now = 0.0
    revocations = Revocations(clock=lambda: now)
    old, new = uuid4(), uuid4()
    revocations.add([old])
    now = ACCESS_TOKEN_SECONDS + 60
    revocations.add([new])
    assert old not in revocations
    assert new in revocations


async def test_a_public_rpc_has_no_principal() -> None:
    with pytest.raises(LookupError):
        principal()
