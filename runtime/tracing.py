"""Owns whether calls are traced, and what is asked of whoever traces them; the libraries load only where they are.

The edge begins each trace. A call that comes without its traceparent is the services' talk among themselves, of which
there is much and little to say: it has no span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import grpc

from runtime.config import ConfigError

if TYPE_CHECKING:
    from runtime.call import Call


class Span(Protocol):
    """The time that a call took, as part of a trace."""

    def end(self, code: grpc.StatusCode) -> None:
        """The call is over."""


class Tracer(Protocol):
    """Who makes spans."""

    def begin(self, call: Call) -> Span | None:
        """The span of a call that has come in; None: it is part of no trace."""

    def client_interceptors(self) -> Sequence[grpc.aio.ClientInterceptor]:
        """What hands a trace on with each call that goes out."""


class _Process:
    """Who traces in this process; nobody but for `traced`."""

    tracer: Tracer | None = None


_process: Final = _Process()


@contextmanager
def traced(endpoint: str, service: str) -> Iterator[None]:
    """Traces this process's calls for as long as the block runs; nothing when `endpoint`, a collector's, is empty.

    Raises ConfigError where the libraries are not installed.
    """
    if not endpoint:
        yield
        return
    try:
        from runtime.spans import Spans
    except ImportError as error:
        raise ConfigError(
            f"SATCHEL_OTLP_ENDPOINT: traces need what is in requirements/traces.txt ({error.name} is missing)"
        ) from None

    with Spans.exported(endpoint, service) as _process.tracer:
        try:
            yield
        finally:
            _process.tracer = None


def begin_span(call: Call) -> Span | None:
    """The span of a call that has come in; None: it is not traced."""
    return _process.tracer.begin(call) if _process.tracer is not None else None


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """For a channel to another service."""
    return _process.tracer.client_interceptors() if _process.tracer is not None else ()
