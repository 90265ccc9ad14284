"""Owns the rpcs of measurements: unpack, call, pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.sessions.v1 import health_metrics_pb2 as pb
from satchel.sessions.v1 import health_metrics_pb2_grpc as pb_grpc

from runtime.call import answer_status, idempotency_key, principal
from runtime.documents import counted, one_or_items
from runtime.errors import Failure
from runtime.outcomes import Tally, carried, syncs
from services.sessions import metrics_convert as convert
from services.sessions.batches import capture
from services.sessions.metrics_domain import DOMAIN, FIELD, HealthMetrics
from services.sessions.typed_domain import Result, Submitted, tally_of

Context = ServicerContext[Any, Any]
CREATED = 201


class HealthMetricServicer(pb_grpc.HealthMetricServiceServicer):
    """satchel.sessions.v1.HealthMetricService."""

    def __init__(self, metrics: HealthMetrics) -> None:
        self._metrics = metrics

    @syncs(DOMAIN)
    async def CreateHealthMetrics(
        self, request: pb.CreateHealthMetricsRequest, context: Context
    ) -> pb.CreateHealthMetricsResponse:
        items = capture(convert.metric_from_pb, counted(request.health_metrics, FIELD))
        return convert.create_response(await self._save(items))

    @syncs(DOMAIN, items=1)
    async def CreateHealthMetricsJson(self, request: pb.CreateHealthMetricsJsonRequest, context: Context) -> HttpBody:
        one, many = one_or_items(request.document.data, FIELD)
        if one is not None:
            item = convert.metric_from_json(one)
            stored = await self._metrics.save_one(principal(), item, idempotency_key())
            answer_status(CREATED)
            return convert.metric_document(stored)
        items = capture(convert.metric_from_json, many)
        return convert.create_document(await self._save(items))

    async def _save(self, items: Sequence[Submitted | Failure]) -> list[Result]:
        carried(Tally(DOMAIN, len(items)))
        results = await self._metrics.save(principal(), items, idempotency_key())
        carried(tally_of(DOMAIN, results))
        return results

    async def ListHealthMetrics(
        self, request: pb.ListHealthMetricsRequest, context: Context
    ) -> pb.ListHealthMetricsResponse:
        start = getattr(request, "from")
        page = await self._metrics.page(
            principal(), request.type, start, request.to, request.page_size, request.page_token
        )
        return convert.list_response(page)
