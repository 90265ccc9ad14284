"""Traces, as a collector of OpenTelemetry receives them: what the edge begins goes on in every service with a part."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from deploy.parts import Child, Part, completed, running
from deploy.sockets import free_port
from runtime.server import serving
from tests.conftest import ALL, Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import device_session
from tests.polling import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PHONE = "b7ad6b7169203331"


@dataclass
class Collector(pb_grpc.TraceServiceServicer):  # type: ignore[misc]  # generated without types
    """Keeps what it is sent."""

    spans: list[tuple[str, Span]] = field(default_factory=list)
    """With the names of the services that they are of."""

    async def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:
        for told in request.resource_spans:
            (service,) = [one.value.string_value for one in told.resource.attributes if one.key == "service.name"]
            self.spans += [(service, span) for scope in told.scope_spans for span in scope.spans]
        return pb.ExportTraceServiceResponse()

    def of(self, trace: str) -> dict[str, list[Span]]:
        """The spans of a trace by their services."""
        found: dict[str, list[Span]] = {}
        for service, span in self.spans:
            if span.trace_id.hex() == trace:
                found.setdefault(service, []).append(span)
        return found


@asynccontextmanager
async def collecting(port: int) -> AsyncIterator[Collector]:
    collector, server = Collector(), grpc.aio.server()
    pb_grpc.add_TraceServiceServicer_to_server(collector, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


@asynccontextmanager
async def traced_mesh(
    database_url: str, directory: Path, port: int, *names: str
) -> AsyncIterator[tuple[Edge, list[Child]]]:
    """Services of these `names` as processes, and an Envoy, that send their spans to the port; and the others."""
    config = config_for(directory / "home", database_url=database_url)
    async with AsyncExitStack() as stack:
        others = {name: service for name, service in ALL.items() if name not in names}
        await stack.enter_async_context(serving(config, others))
        endpoint = f"http://127.0.0.1:{port}"
        children = [
            await stack.enter_async_context(running(service_part(name, config, directory, otlp_endpoint=endpoint)))
            for name in names
        ]
        edge = await stack.enter_async_context(envoy_for(config, directory / "edge", otlp=("127.0.0.1", port)))
        await until_healthy(edge)
        yield edge, children


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A mesh whose spans are collected."""

    edge: Edge
    collector: Collector


@pytest.fixture(scope="module")
async def watched(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    port, directory, names = free_port(), tmp_path_factory.mktemp("traces"), ("auth", "sessions", "uploads")
    async with collecting(port) as collector, traced_mesh(new_database(), directory, port, *names) as (edge, _):
        yield Watched(edge=edge, collector=collector)


def attribute(span: Span, name: str) -> object:
    (value,) = [one.value for one in span.attributes if one.key == name]
    return getattr(value, value.WhichOneof("value"))


def parents(spans: Sequence[Span]) -> set[str]:
    return {span.parent_span_id.hex() for span in spans}


async def test_a_call_is_one_trace_from_the_edge_through_two_services(watched: Watched) -> None:
    edge, collector = watched.edge, watched.collector
    phone = await edge.phone()
    await phone.call("POST", "/sessions/batch_upload", json={"sessions": [device_session()]})
    # The export of an account reads the records where they are, and the files where those are.
    answer = await phone.call("GET", "/v1/auth/export", headers={"traceparent": f"00-{TRACE}-{PHONE}-01"})
    assert answer.status_code == 200, answer.text

    async def whole() -> bool:
        return {"satchel-edge", "satchel-auth", "satchel-sessions", "satchel-uploads"} <= collector.of(TRACE).keys()

    await until(whole, 30)
    spans = collector.of(TRACE)
    (edge_span,) = spans["satchel-edge"]
    assert parents([edge_span]) == {PHONE}, "the phone's own trace goes on"
    (served,) = [span for span in spans["satchel-auth"] if span.parent_span_id == edge_span.span_id]
    calls = [
        span
        for one in ("auth", "sessions", "uploads")
        for span in spans[f"satchel-{one}"]
        if span.kind == Span.SPAN_KIND_CLIENT
    ]
    assert {span.parent_span_id.hex() for span in calls if span in spans["satchel-auth"]} == {served.span_id.hex()}
    for service in ("satchel-sessions", "satchel-uploads"):
        answered = [span for span in spans[service] if span.kind == Span.SPAN_KIND_SERVER]
        assert answered
        assert parents(answered) <= {span.span_id.hex() for span in calls}
    assert attribute(served, "rpc.method") == served.name.partition("/")[2]
    assert attribute(served, "rpc.grpc.status_code") == 0
    assert attribute(served, "satchel.request_id") == answer.headers["x-request-id"]


async def test_each_call_is_a_trace_of_its_own_and_what_services_ask_by_themselves_is_none(watched: Watched) -> None:
    edge, collector = watched.edge, watched.collector
    phone = await edge.phone()
    for _ in range(3):
        assert (await phone.call("GET", "/users/me/stats")).status_code == 200
    assert (await phone.call("GET", "/sessions/nothing")).status_code in (400, 404)

    def named(name: str) -> list[Span]:
        return [span for service, span in collector.spans if service == "satchel-sessions" and name in span.name]

    async def told() -> bool:
        return len(named("GetUserStats") + named("GetStats")) >= 3 and len(named("ExerciseSession")) >= 1

    await until(told, 30)
    stats = named("GetUserStats") + named("GetStats")
    assert len({span.trace_id for span in stats}) == len(stats) == 3
    (missing,) = named("ExerciseSession")
    assert missing.status.code != Status.STATUS_CODE_ERROR, "a refusal is the caller's fault"
    assert not [span for _, span in collector.spans if "ListRevokedSignIns" in span.name]


async def test_a_collector_that_is_away_costs_nothing_but_the_traces(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    async with traced_mesh(database_url, tmp_path, port, "auth", "sessions") as (edge, children):
        phone = await edge.phone()
        assert (await phone.call("GET", "/users/me/stats")).status_code == 200
        await asyncio.gather(*(child.stop() for child in children))
        codes = [await child.wait() for child in children]
        assert codes == [0, 0], "nobody had to end them by force"


async def test_nothing_of_ours_is_loaded_while_it_is_off_and_a_library_that_is_missing_is_named() -> None:
    off = (
        "import sys, runtime.server, services.sessions.app\n"
        "from runtime.tracing import traced, client_interceptors\n"
        "with traced('', 'all'):\n"
        "    assert client_interceptors() == ()\n"
        "    sys.exit('runtime.spans' in sys.modules)\n"
    )
    missing = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from runtime.config import ConfigError\n"
        "from runtime.tracing import traced\n"
        "try:\n"
        "    traced('http://127.0.0.1:4317', 'all').__enter__()\n"
        "except ConfigError as error:\n"
        "    sys.exit('requirements/traces.txt' not in str(error))\n"
        "sys.exit(1)\n"
    )
    checks = [Part(name="check", command=[sys.executable, "-c", one], log=Path("/dev/null")) for one in (off, missing)]
    await asyncio.gather(*(completed(check) for check in checks))


@pytest.mark.parametrize("endpoint", ["collector", "https://collector:4317", "http://collector", "http://a b:1"])
async def test_an_endpoint_that_is_none_ends_the_start(endpoint: str, database_url: str, tmp_path: Path) -> None:
    config = config_for(tmp_path / "home", database_url=database_url)
    child = Child(service_part("health", config, tmp_path, otlp_endpoint=endpoint))
    await child.start()
    assert await child.wait() == 78
    assert "SATCHEL_OTLP_ENDPOINT" in (tmp_path / "health.log").read_text()
