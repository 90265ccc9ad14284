"""Owns training plans: what counts as one, and whose it is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from runtime.call import IdempotencyKey, Principal
from runtime.errors import Failure, Reason
from runtime.ids import parse_id
from services.sessions.metrics_domain import parse_date
from services.sessions.records_domain import Key, Prepared
from services.sessions.typed_domain import Stored, Submitted, TypedRecords

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.plans_store import PlanStore
    from services.sessions.records_store import RecordStore

DOMAIN: Final = "workout_plan"


class WorkoutPlans:
    """Plans as typed views on records of domain `workout_plan`."""

    def __init__(self, store: RecordStore, plans: PlanStore, domains: Domains, *, now: Callable[[], datetime]) -> None:
        self._records = TypedRecords(store, domains, DOMAIN, is_named_by_content=lambda _: True, now=now)
        self._store = store
        self._plans = plans

    async def save(self, caller: Principal, plan: Submitted, key: IdempotencyKey | None) -> Stored:
        """Stores a plan. Raises Failure: FIELD_MISSING, FIELD_INVALID, IDEMPOTENCY_CONFLICT, SYNC_CONFLICT."""
        return await self._records.save_one(caller, plan, key)

    async def get(self, caller: Principal, id: str) -> Stored:
        """One of the caller's plans. Raises Failure: FIELD_INVALID, FORBIDDEN, NOT_FOUND."""
        canonical = parse_id("workout_id", id)
        record = await self._store.record(caller.user_id, Key(DOMAIN, canonical))
        if record is not None and not record.deleted:
            return Stored(id=canonical, data=record.data)
        if record is None and await self._plans.exists(canonical):
            raise Failure(Reason.FORBIDDEN, "This plan belongs to somebody else.")
        raise Failure(Reason.NOT_FOUND, "There is no such plan.")


def prepare(data: dict[str, Any]) -> Prepared:
    """What is stored of checked data. A plan has not taken place."""
    if "scheduled_date" in data:
        parse_date("scheduled_date", data["scheduled_date"])
    return Prepared(data, None)
