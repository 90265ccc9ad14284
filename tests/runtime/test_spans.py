"""Calls that are traced go on as untraced ones do."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from opentelemetry.sdk.trace import TracerProvider

from runtime.call import Call, current
from runtime.contract import policies
from runtime.spans import Spans

METHOD = "/satchel.health.v1.HealthService/GetSyncHealth"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_traced_call_whose_caller_gives_up_ends_on_the_other_side_too() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return b""

    spans = Spans(TracerProvider().get_tracer("test"))
    call = Call(
        policy=policies()[METHOD],
        request_id="r",
        client_ip="",
        user_agent="",
        rest=False,
        metadata={"traceparent": TRACEPARENT},
        status=200,
    )
    call.span = spans.begin(call)
    current.set(call)
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(hang)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("some.Service", {"Hang": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=spans.client_interceptors()) as channel:
        asking = asyncio.ensure_future(_ask(channel))
        await asyncio.wait_for(begun.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(ended.wait(), 10)
    await server.stop(0)


async def _ask(channel: grpc.aio.Channel) -> None:
    await channel.unary_unary("/some.Service/Hang")(b"", timeout=60)
