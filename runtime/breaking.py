"""Owns how a streamed answer ends that fails after it has begun: no reader may take what has come for all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from grpc.aio import ServicerContext

from runtime.call import current
from runtime.interceptors import failure_of
from runtime.telemetry import logger

# The edge takes so many trailers from a service, and cuts off an answer that has more: see deploy/envoy/clusters.py.
MAX_TRAILERS: Final = 100
_TOO_MANY: Final = tuple((f"x-broken-{number}", "") for number in range(MAX_TRAILERS + 1))

T = TypeVar("T")


async def unbroken(answers: AsyncIterator[T], context: ServicerContext[Any, Any]) -> AsyncIterator[T]:
    """The answers again. When they fail after the first one, the line to a JSON caller is cut.

    Such a caller has read 200 and a length by then, and the status behind the answer does not reach it: HTTP/1.1 would
    leave it waiting for the rest. gRPC callers get the status.
    """
    begun = False
    try:
        async for one in answers:
            yield one
            begun = True
    except Exception as error:
        call = current.get()
        if not begun or not call.rest:
            raise
        failure = failure_of(error)
        logger().error("an answer broke off", method=call.policy.method, request_id=call.request_id, exc_info=error)
        # A service cannot cut a line by itself, short of ending; only what it must not send makes the edge do so.
        await context.abort(failure.reason.row.code, failure.message, trailing_metadata=_TOO_MANY)
