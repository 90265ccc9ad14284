"""Owns the spans of traced calls: begun by a traceparent, handed on in one, exported to an OpenTelemetry collector."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runtime.call import Call, current

EXPORT_TIMEOUT: Final = 2  # seconds; a collector that is away must not hold up the end of a process

_TRACEPARENT: Final = "traceparent"
_PROPAGATOR: Final = TraceContextTextMapPropagator()
# As OpenTelemetry's conventions for gRPC have it: of a server, only what is its own fault is an error.
_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Spans:
    """Spans of this process."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @classmethod
    @contextmanager
    def exported(cls, endpoint: str, service: str) -> Iterator[Spans]:
        """Spans that go to the collector at `endpoint` for as long as the block runs; what is left then, too."""
        provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: f"satchel-{service}"}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=EXPORT_TIMEOUT)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        try:
            yield cls(provider.get_tracer("satchel"))
        finally:
            provider.shutdown()

    def begin(self, call: Call) -> CallSpan | None:
        """The span of a call that has come in."""
        if _TRACEPARENT not in call.metadata:
            return None
        context = _PROPAGATOR.extract(call.metadata)
        attributes = {**_named(call.policy.method), "satchel.request_id": call.request_id}
        return CallSpan(
            self._tracer.start_span(
                call.policy.method.lstrip("/"), context=context, kind=SpanKind.SERVER, attributes=attributes
            ),
            _FAULTS,
        )

    def client_interceptors(self) -> Sequence[grpc.aio.ClientInterceptor]:
        """What gives calls of ours spans, and hands those on."""
        return (_UnaryUnary(self), _UnaryStream(self))

    def outgoing(self, details: grpc.aio.ClientCallDetails) -> tuple[CallSpan, grpc.aio.ClientCallDetails] | None:
        """The span of a call that goes out, and the call with it; None where no traced call is the reason for it."""
        caller = current.get(None)
        if caller is None or not isinstance(caller.span, CallSpan):
            return None
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        span = self._tracer.start_span(
            method.lstrip("/"),
            context=trace.set_span_in_context(caller.span.span),
            kind=SpanKind.CLIENT,
            attributes=_named(method),
        )
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span))
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *carrier.items())
        traced = grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )
        return CallSpan(span, frozenset(grpc.StatusCode) - {grpc.StatusCode.OK}), traced


class CallSpan:
    """The span of one call."""

    def __init__(self, span: trace.Span, faults: frozenset[grpc.StatusCode]) -> None:
        self.span: Final = span
        self._faults = faults

    def end(self, code: grpc.StatusCode) -> None:
        """The call is over."""
        self.span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in self._faults:
            self.span.set_status(StatusCode.ERROR, code.name)
        self.span.end()


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        traced = self._spans.outgoing(client_call_details)
        if traced is None:
            return await continuation(client_call_details, request)
        span, details = traced
        code = grpc.StatusCode.CANCELLED
        try:
            call = await continuation(details, request)
            try:
                code = await call.code()
            except asyncio.CancelledError:
                call.cancel()  # whoever waits for its code is not taken for its caller
                raise
            return call
        finally:
            span.end(code)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        traced = self._spans.outgoing(client_call_details)
        if traced is None:
            return await continuation(client_call_details, request)
        span, details = traced
        call = await continuation(details, request)
        # Whatever became of it is in the span of the other side.
        call.add_done_callback(lambda _: span.end(grpc.StatusCode.OK))
        return call


def _named(method: str) -> dict[str, str]:
    service, _, name = method.lstrip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
