"""Owns the rpcs that stores call: unpack, call, pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import subscriptions_pb2 as pb
from satchel.auth.v1 import subscriptions_pb2_grpc as pb_grpc

from runtime.call import header
from runtime.tiers import Tiers
from services.auth.subscriptions_convert import signed_event
from services.auth.subscriptions_domain import Subscriptions, check_size
from services.auth.subscriptions_revenuecat_convert import revenuecat_event
from services.auth.subscriptions_signatures import AUTHORIZATION, SIGNATURE, check_authorization, check_signature

Context = ServicerContext[Any, Any]


class SubscriptionServicer(pb_grpc.SubscriptionServiceServicer):
    """satchel.auth.v1.SubscriptionService."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        tiers: Tiers,
        *,
        secrets: Sequence[str],
        revenuecat: Sequence[str],
        sandbox: bool,
        now: Callable[[], datetime],
    ) -> None:
        """`secrets` and `revenuecat` are what stores prove themselves with; `sandbox`: trial purchases count."""
        self._subscriptions = subscriptions
        self._tiers = tiers
        self._secrets = secrets
        self._revenuecat = revenuecat
        self._sandbox = sandbox
        self._now = now

    async def ReceiveEvent(self, request: pb.ReceiveEventRequest, context: Context) -> pb.ReceiveEventResponse:
        document, now = request.document.data, self._now()
        check_size(document)
        check_signature(header(SIGNATURE.lower()), document, self._secrets, now)
        event = signed_event(document, self._tiers, now)
        return pb.ReceiveEventResponse(outcome=await self._subscriptions.receive(event))

    async def ReceiveRevenueCatEvent(
        self, request: pb.ReceiveRevenueCatEventRequest, context: Context
    ) -> pb.ReceiveRevenueCatEventResponse:
        document = request.document.data
        check_size(document)
        check_authorization(header(AUTHORIZATION.lower()), self._revenuecat)
        event = revenuecat_event(document, self._tiers, self._now(), sandbox=self._sandbox)
        return pb.ReceiveRevenueCatEventResponse(outcome=await self._subscriptions.receive(event))
