"""Owns what happens around every rpc: it enforces the contract, so that no handler has to."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar, cast

import grpc
import psycopg
import psycopg_pool
from google.protobuf.message import DecodeError
from grpc.aio import AbortError, ServicerContext
from satchel.options.v1 import options_pb2 as options

from runtime.breaking import TOO_MANY_TRAILERS
from runtime.call import Call, Principal, Watch, current
from runtime.clock import utc_now
from runtime.contract import Policy
from runtime.errors import Failure, Reason, rest_body, rpc_status
from runtime.idempotency import idempotency_key_of
from runtime.identity import Verifier, authorize, check_delegation
from runtime.limits import RateLimiter, spent
from runtime.outcomes import Device, Outcomes, Tally, device_of
from runtime.single_user import SingleUser
from runtime.telemetry import RPC_ACTIVE, RPC_ANSWERS, RPC_SECONDS, log_rpc, logger
from runtime.tracing import begin_span

# What the transcoder of the edge adds to a call that came in as JSON.
REST_MARK: Final = "x-envoy-original-path"

# Seconds in which a large request is expected to come in; the edge has all of it when the call begins.
SEND_WITHIN: Final = 1.0

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

T = TypeVar("T")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each handler once: request id, identity, access, rate limit, idempotency key, deadline, errors, log."""

    def __init__(
        self,
        policies: dict[str, Policy],
        *,
        verifier: Verifier,
        limiter: RateLimiter | None,
        call_timeout: float,
        draining: asyncio.Event,
        outcomes: Outcomes,
        single_user: SingleUser | None = None,
    ) -> None:
        """`limiter` None: rate limits are off. `call_timeout` bounds unary calls, in seconds.

        `draining` is set when streams should say goodbye. `outcomes` is told of every sync. `single_user` None: each
        call needs a token.
        """
        self._policies = policies
        self._verifier = verifier
        self._limiter = limiter
        self._call_timeout = call_timeout
        self._draining = draining
        self._single_user = single_user
        self._outcomes = outcomes
        self._wrapped: dict[str, Handler] = {}
        self.half_answered = 0
        """Streamed answers to JSON callers that have begun and are not whole."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of the called rpc inside its policy; for an unknown rpc one that says so."""
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        policy = self._policies.get(method)
        if handler is None or policy is None:
            return _unknown_method(method)
        self._wrapped[method] = self._wrap(handler, policy)
        return self._wrapped[method]

    def _wrap(self, handler: Handler, policy: Policy) -> Handler:
        guard = _Guard(self, policy, handler)
        if guard.turns is not None:
            # On the wire a stream of one message is no different; but the server reads it when we ask for it.
            return grpc.stream_unary_rpc_method_handler(guard.one_in_turn, None, handler.response_serializer)
        # Requests are decoded inside the guard: one that is no valid message gets an answer of ours.
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(guard.stream_stream, None, handler.response_serializer)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(guard.stream_unary, None, handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(guard.unary_stream, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(guard.unary_unary, None, handler.response_serializer)

    async def admit(self, call: Call, request: Any) -> None:
        """Raises Failure unless the contract lets this call through. `request` is None for a request stream."""
        policy = call.policy
        if policy.access != options.ACCESS_PUBLIC and not _needs_none(call):
            call.principal = await self._principal(call)
            authorize(policy.access, call.principal)
            check_delegation(policy, call.principal)
        if self._limiter is not None and policy.limits and not _paces_itself(call):
            call.headers += await self._limiter.admit(call, request)
        if policy.takes_key:
            call.idempotency = idempotency_key_of(call.metadata, request)

    async def _principal(self, call: Call) -> Principal:
        if self._single_user is not None and self._single_user.answers_for(call):
            return await self._single_user.principal(call.metadata)
        return await self._verifier.principal(call.metadata.get("authorization"))

    def watch(self, call: Call, cut: Callable[[], None]) -> Watch:
        """What the contract goes on doing for a stream that was let in; `cut` as Watch.cut."""

        async def recheck() -> None:
            if policy.access != options.ACCESS_PUBLIC:
                await self._verifier.principal(call.metadata.get("authorization"))

        async def count(method: str) -> None:
            if self._limiter is not None and not _paces_itself(call):
                await self._limiter.admit(replace(call, policy=self._policies[method], headers=()), None)

        def synced(device: Device, tally: Tally, seconds: float, reason: Reason | None) -> None:
            if call.principal is not None:
                self._outcomes.synced(call.principal, device, tally, seconds=seconds, reason=reason)

        policy = call.policy
        return Watch(recheck=recheck, count=count, cut=cut, draining=self._draining, synced=synced)

    def synced(self, call: Call, tally: Tally, *, seconds: float, reason: Reason | None) -> None:
        """Notes that a call which is a sync has ended; `tally` is what it carries unless it has said otherwise."""
        if call.principal is not None:
            device = device_of(call.metadata, seconds)
            self._outcomes.synced(call.principal, device, call.tally or tally, seconds=seconds, reason=reason)

    def answering(self, call: Call, context: ServicerContext[Any, Any]) -> None:
        """A streamed answer has begun; until its end is sent it counts as half, where a JSON caller reads it."""

        def done(*_: object) -> None:
            self.half_answered -= 1

        if call.rest:
            self.half_answered += 1
            cast(Any, context).add_done_callback(done)

    @property
    def call_timeout(self) -> float:
        """Seconds that bound a unary call."""
        return self._call_timeout


class _Guard:
    """One rpc's handler inside the contract, for each of the four kinds of rpc."""

    def __init__(self, contract: ContractInterceptor, policy: Policy, handler: Handler) -> None:
        self._contract = contract
        self._policy = policy
        decode, at_once = getattr(handler.unary_unary, "turns", (handler.request_deserializer, 0))
        self._decode = getattr(handler.stream_unary, "decode", decode) or bytes
        self.turns = _Turns(at_once) if at_once else None
        self._handler = handler
        self._sync: Tally | None = getattr(handler.unary_unary, "sync", None)
        self._answer = _generator(handler.unary_stream or handler.stream_stream)
        service, method = policy.service, policy.method.rpartition("/")[2]
        self._seconds = RPC_SECONDS.labels(service, method)
        self._active = RPC_ACTIVE.labels(service, method)
        self._answers = {code: RPC_ANSWERS.labels(service, method, code.name) for code in grpc.StatusCode}

    async def unary_unary(self, data: bytes, context: ServicerContext[Any, Any]) -> Any:
        call = _begin(self._policy, context)
        with self._measured(call) as outcome:
            try:
                async with asyncio.timeout(self._contract.call_timeout):
                    request = self._read(data)
                    await self._contract.admit(call, request)
                    response = await cast(Any, self._handler.unary_unary)(request, context)
                await _send_headers(call, context)
                return response
            except Exception as error:
                await self._refuse(error, call, context, outcome)

    async def one_in_turn(self, _: AsyncIterator[bytes], context: ServicerContext[Any, Any]) -> Any:
        call = _begin(self._policy, context)
        with self._measured(call) as outcome:
            try:
                async with asyncio.timeout(self._contract.call_timeout):
                    await self._contract.admit(call, None)
                    async with cast(_Turns, self.turns).next(context) as data:
                        response = await cast(Any, self._handler.unary_unary)(self._read(data), context)
                await _send_headers(call, context)
                return response
            except Exception as error:
                await self._refuse(error, call, context, outcome)

    async def stream_unary(self, stream: AsyncIterator[bytes], context: ServicerContext[Any, Any]) -> Any:
        call = _begin(self._policy, context)
        with self._measured(call) as outcome:
            try:
                await self._contract.admit(call, None)
                response = await cast(Any, self._handler.stream_unary)(self._read_all(stream), context)
                await _send_headers(call, context)
                return response
            except Exception as error:
                await self._refuse(error, call, context, outcome)

    async def unary_stream(self, data: bytes, context: ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        call, begun = _begin(self._policy, context), False
        with self._measured(call) as outcome:
            try:
                request = self._read(data)
                await self._contract.admit(call, request)
                call.watch = self._contract.watch(call, lambda: None)
                async with aclosing(self._answer(request, context)) as responses:
                    async for response in responses:
                        # Not before: a call that is refused by its handler must not have begun to succeed.
                        if not begun:
                            await _send_headers(call, context)
                            begun = True
                            self._contract.answering(call, context)
                        yield response
                if not begun:
                    await _send_headers(call, context)
            except Exception as error:
                await self._refuse(error, call, context, outcome, begun=begun)

    async def stream_stream(self, stream: AsyncIterator[bytes], context: ServicerContext[Any, Any]) -> None:
        call = _begin(self._policy, context)
        writing = _Writing(context)
        with self._measured(call) as outcome:
            try:
                await self._contract.admit(call, None)
                call.watch = self._contract.watch(call, writing.cut)
                # At once, even if empty: what stands between waits for the answer to begin.
                await context.send_initial_metadata(call.headers)
                await self._converse(stream, context, writing)
            except Exception as error:
                await self._refuse(error, call, context, outcome)

    async def _converse(
        self, stream: AsyncIterator[bytes], context: ServicerContext[Any, Any], writing: _Writing
    ) -> None:
        async with aclosing(cast(Any, self._handler.stream_stream)(self._read_all(stream), context)) as responses:
            async for response in responses:
                await writing.write(response)

    def _read(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except (DecodeError, UnicodeDecodeError, ValueError):
            raise Failure(Reason.MALFORMED_REQUEST, "The request is not a valid message of its type.") from None

    async def _read_all(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in stream:
            yield self._read(data)

    def _measured(self, call: Call) -> _Measured:
        return _Measured(self, call)

    def finish(self, call: Call, outcome: _Measured) -> None:
        """Counts and logs the call, once, whatever became of it."""
        seconds = time.perf_counter() - outcome.started
        self._active.dec()
        self._seconds.observe(seconds)
        self._answers[outcome.code].inc()
        if self._sync is not None:
            reason = Reason[outcome.reason] if outcome.reason else None
            self._contract.synced(call, self._sync, seconds=seconds, reason=reason)
        # Probes and the services' talk among themselves are many and say nothing while they go well.
        among_services = call.principal is not None and call.principal.role == "service"
        routine = self._policy.service.startswith("grpc.") or (among_services and outcome.reason is None)
        log_rpc(
            routine,
            method=self._policy.method,
            code=outcome.code.name,
            reason=outcome.reason,
            ms=round(seconds * 1000, 2),
            request_id=call.request_id,
            user=call.principal.user_id if call.principal else None,
            **({"actor": call.principal.actor} if call.principal and call.principal.actor else {}),
            client=call.client_ip,
        )

    def start(self) -> None:
        """Counts the call as in progress."""
        self._active.inc()

    async def _refuse(
        self,
        error: Exception,
        call: Call,
        context: ServicerContext[Any, Any],
        outcome: _Measured,
        *,
        begun: bool = False,
    ) -> None:
        """Ends the call with what `error` amounts to; `begun`: behind a part of the answer."""
        if isinstance(error, AbortError):
            outcome.code = cast(Any, context.code()) or grpc.StatusCode.UNKNOWN
            raise error
        failure = failure_of(error)
        # What the handler held goes now: a caller may take its time with the refusal.
        failure.__traceback__ = None
        outcome.code, outcome.reason = failure.reason.row.code, failure.reason.name
        if failure.reason is Reason.INTERNAL:
            logger().error("a handler failed", method=self._policy.method, request_id=call.request_id, exc_info=error)
        elif failure is not error:
            logger().warning("a call failed", request_id=call.request_id, error=repr(error))
        if begun and call.rest and self._policy.events:
            # What came was whole, and whoever asks again is told why there is no more.
            await context.abort(failure.reason.row.code, failure.message)
        if begun and call.rest:
            logger().error("an answer broke off", method=self._policy.method, request_id=call.request_id)
            await context.abort(failure.reason.row.code, failure.message, trailing_metadata=TOO_MANY_TRAILERS)
        await abort(failure, call, context)


class _Measured:
    """The span of one call: what it is known by while it runs, and its outcome when it ends."""

    __slots__ = ("_call", "_guard", "_token", "code", "reason", "started")

    def __init__(self, guard: _Guard, call: Call) -> None:
        self._guard = guard
        self._call = call
        self.code = grpc.StatusCode.OK
        self.reason: str | None = None

    def __enter__(self) -> _Measured:
        self.started = time.perf_counter()
        self._call.span = begin_span(self._call)
        self._token = current.set(self._call)
        self._guard.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError | GeneratorExit):
            self.code, self.reason = grpc.StatusCode.CANCELLED, Reason.CANCELLED.name
        self._guard.finish(self._call, self)
        if self._call.span is not None:
            self._call.span.end(self.code)
        if kind is None or not issubclass(kind, GeneratorExit):
            # A stream that is closed from outside ends in another context, which has nothing to reset.
            current.reset(self._token)


class _Writing:
    """What is written to a caller who may not take it: a write waits for as long as the caller's window is full."""

    def __init__(self, context: ServicerContext[Any, Any]) -> None:
        self._context = context
        self._task = asyncio.current_task()
        self._writing = self._cut = False

    async def write(self, response: Any) -> None:
        """Raises Failure(DEADLINE_EXCEEDED) when it is cut before it is done."""
        self._writing = True
        try:
            await self._context.write(response)
        except asyncio.CancelledError:
            if not self._cut or self._task is None or self._task.uncancel():
                raise
            raise Failure(Reason.DEADLINE_EXCEEDED, "Nobody takes what is sent here.") from None
        finally:
            self._writing = False

    def cut(self) -> None:
        """Ends the write under way, if there is one."""
        if self._writing and not self._cut and self._task is not None:
            self._cut = True
            self._task.cancel()


def taken_in_turn(decode: Callable[[bytes], Any], *, at_once: int) -> Callable[[T], T]:
    """Marks a unary rpc whose requests are large: so many of them are in memory at once, and the others wait outside.

    A request is then read when the call has been let in, by `decode`, which raises DecodeError as its type's parser.
    """

    def mark(method: T) -> T:
        cast(Any, method).turns = (decode, at_once)
        return method

    return mark


def decoded_by(decode: Callable[[bytes], Any]) -> Callable[[T], T]:
    """Marks an rpc with a stream of large requests: each is read by `decode`, which raises DecodeError as a parser."""

    def mark(method: T) -> T:
        cast(Any, method).decode = decode
        return method

    return mark


class _Turns:
    """How many large requests are in memory at once."""

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def next(self, context: ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        """The request of a call, when its turn has come. Raises Failure(MALFORMED_REQUEST) if there is none.

        A sender that takes its time with it gives its turn up meanwhile: slow ones must not hold up the others.
        """
        await self._free.acquire()
        holding = True

        def give_up() -> None:
            nonlocal holding
            holding = False
            self._free.release()

        patience = asyncio.get_running_loop().call_later(SEND_WITHIN, give_up)
        try:
            message = await context.read()
            if message is grpc.aio.EOF:
                raise Failure(Reason.MALFORMED_REQUEST, "The call came without a request.")
            patience.cancel()
            if not holding:
                await self._free.acquire()
                holding = True
            yield message
        finally:
            patience.cancel()
            if holding:
                self._free.release()


def _generator(handler: Any) -> Callable[[Any, ServicerContext[Any, Any]], AsyncGenerator[Any]]:
    """The handler of a streamed answer as a generator, though it may write to the context by itself."""
    if not asyncio.iscoroutinefunction(handler):
        generator: Callable[[Any, ServicerContext[Any, Any]], AsyncGenerator[Any]] = handler
        return generator

    async def written(request: Any, context: ServicerContext[Any, Any]) -> AsyncGenerator[Any]:
        await handler(request, context)
        return
        yield  # what makes it a generator

    return written


def failure_of(error: Exception) -> Failure:
    """The refusal that `error` amounts to; what we did not foresee is INTERNAL, and its text stays here."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, TimeoutError):
        return Failure(Reason.DEADLINE_EXCEEDED)
    away = (
        psycopg_pool.PoolTimeout,
        psycopg_pool.PoolClosed,
        psycopg_pool.TooManyRequests,
        psycopg.OperationalError,
        psycopg.InterfaceError,
    )
    if isinstance(error, away):
        return Failure(Reason.UNAVAILABLE, retry_after=1)
    if isinstance(error, grpc.aio.AioRpcError) and error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ):
        return Failure(Reason.UNAVAILABLE, retry_after=1)
    return Failure(Reason.INTERNAL)


async def abort(failure: Failure, call: Call, context: ServicerContext[Any, Any]) -> None:
    """Ends the call with `failure` in the caller's dialect: a finished body for REST, google.rpc.Status for gRPC."""
    row = failure.reason.row
    metadata: list[tuple[str, str | bytes]] = [*call.headers]
    if failure.retry_after is not None:
        if failure.reason is Reason.RATE_LIMITED:
            metadata = [*spent(call.headers, failure.retry_after)]
        metadata.append(("retry-after", str(max(1, math.ceil(failure.retry_after)))))
    if call.rest:
        body = rest_body(
            failure,
            call.policy.dialect,
            camel_case=call.policy.camel_case,
            request_id=call.request_id,
            now=utc_now(),
        )
        metadata += [("x-error-body", body), ("x-http-status", str(row.http))]
    else:
        status = rpc_status(failure, request_id=call.request_id)
        metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    await context.abort(row.code, failure.message, trailing_metadata=tuple(metadata))


def _begin(policy: Policy, context: ServicerContext[Any, Any]) -> Call:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    request_id = metadata.get("x-request-id", "")
    agent = metadata.get("user-agent", "")[:200]
    return Call(
        policy=policy,
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else os.urandom(16).hex(),
        client_ip=metadata.get("x-envoy-external-address") or _peer(context.peer()),
        user_agent=agent if agent.isprintable() else "",
        rest=REST_MARK in metadata,
        metadata=metadata,
        status=policy.success_status,
    )


@lru_cache(maxsize=1024)
def _peer(peer: str) -> str:
    """The address in gRPC's name of a peer, such as ipv4:127.0.0.1:4711."""
    kind, _, rest = peer.partition(":")
    return (
        rest.rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", "") if kind in ("ipv4", "ipv6") else peer
    )


def _paces_itself(call: Call) -> bool:
    """Whether a service calls, as itself or in a user's name: that spends nothing of what the user may."""
    if call.principal is None:
        return False
    # Without a token it is the single user, in whose name this service acts, and who may do no more than others.
    return call.principal.role == "service" or (bool(call.principal.actor) and "authorization" in call.metadata)


async def _send_headers(call: Call, context: ServicerContext[Any, Any]) -> None:
    headers = list(call.headers)
    if call.rest and call.status != 200:
        headers.append(("x-http-status", str(call.status)))
    if headers:
        await context.send_initial_metadata(tuple(headers))


def _needs_none(call: Call) -> bool:
    return call.policy.access == options.ACCESS_OPTIONAL and "authorization" not in call.metadata


def _unknown_method(method: str) -> Handler:
    policy = Policy(method, options.ACCESS_PUBLIC, (), options.DIALECT_CORE, False, 200, False, False, ())

    async def refuse(_: bytes, context: ServicerContext[Any, Any]) -> None:
        await abort(Failure(Reason.UNIMPLEMENTED), _begin(policy, context), context)

    return grpc.unary_unary_rpc_method_handler(refuse, None, None)
