"""What stores tell of subscriptions: who is believed, what a set of events amounts to, and when a phone notices."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import jwt
import psycopg
import pytest
from google.api.httpbody_pb2 import HttpBody
from hypothesis import given
from hypothesis import strategies as st
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc, subscriptions_pb2, subscriptions_pb2_grpc

from deploy.parts import running
from runtime.clock import utc_now
from runtime.config import Config, ConfigError
from runtime.server import serving
from runtime.tiers import read_tiers
from services.auth.accounts import NO_SUBSCRIPTION, Subscription
from services.auth.app import service as auth
from services.auth.subscriptions_domain import StoreEvent, subscriptions
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import PASSWORD, Phone, puzzle_session
from tests.journeys.test_bad_input import NO_OBJECT

SECRET, NEXT_SECRET = "a secret of the store", "its successor"
AGREED = "Bearer what RevenueCat was told"
PATH, REVENUECAT_PATH = "/v1/subscription/events", "/v1/subscription/events/revenuecat"
END = "2099-11-16T21:00:00Z"
TIERS = read_tiers()

# How some systems write one; not we.
BRACED = "{6f9619ff-8b86-4d01-b42d-00cf4fc964ff}"


@pytest.fixture(scope="module")
async def store_edge(
    new_database: Any, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    """A mesh that knows stores. In a process of its own: not all tests here leave this one's loop its turn."""
    directory = tmp_path_factory.mktemp("stores")
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url)
    stores = {"webhook_secret": f"{SECRET}, {NEXT_SECRET}", "revenuecat_authorization": AGREED}
    async with running(service_part("all", config, directory, **stores)), envoy_for(config, directory) as edge:
        await until_healthy(edge)
        yield edge


def signature(body: bytes, secret: str = SECRET, *, at: float | None = None) -> str:
    moment = int(time.time() if at is None else at)
    digest = hmac.new(secret.encode(), b"%d." % moment + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


def event(user_id: str, **given: Any) -> dict[str, Any]:
    return {
        "event_id": str(uuid4()),
        "type": "subscription.updated",
        "user_id": user_id,
        "tier": "studio",
        "status": "active",
        "period_end": END,
        "cancel_at_period_end": False,
        "event_time": "2026-02-26T10:00:00Z",
        **given,
    }


async def tell(edge: Edge, said: Any, secret: str = SECRET, **headers: str) -> httpx.Response:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return await edge.http.post(PATH, content=body, headers={"x-satchel-signature": signature(body, secret), **headers})


async def status(phone: Phone) -> dict[str, Any]:
    answer = await phone.call("GET", "/v1/subscription/status")
    assert answer.status_code == 200
    return dict(answer.json())


def outcome(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["outcome"])


def details(answer: httpx.Response) -> list[Any]:
    return [(one["field"], one["reason"]) for one in answer.json()["error"]["details"]]


class TestSignatures:
    async def test_what_is_signed_counts_and_the_status_is_that_of_the_published_example(
        self, store_edge: Edge
    ) -> None:
        phone = await Phone.as_guest(store_edge.http)
        assert outcome(await tell(store_edge, event(phone.user_id))) == "applied"
        assert await status(phone) == {
            "tier": "studio",
            "status": "active",
            "current_period_end": END,
            "cancel_at_period_end": False,
        }
        me = (await phone.call("GET", "/v1/auth/me")).json()
        assert (me["tier"], me["subscription_status"], me["subscription_expires_at"]) == ("studio", "active", END)

    async def test_both_secrets_are_good_while_one_replaces_the_other(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        assert outcome(await tell(store_edge, event(phone.user_id), NEXT_SECRET)) == "applied"
        body = json.dumps(event(phone.user_id)).encode()
        both = f"{signature(body, 'nobodys')},{signature(body).partition(',')[2]}"
        answer = await store_edge.http.post(PATH, content=body, headers={"x-satchel-signature": both})
        assert outcome(answer) == "applied"

    async def test_the_bytes_are_signed_not_what_they_mean(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        said = json.dumps(event(phone.user_id, note="NOTE"), indent=1).replace('": ', '" :\t')
        body = said.replace("NOTE", "caf\\u00e9 \u00e9").encode() + b"\n\n"
        for content_type in ("application/json", "text/plain", "application/octet-stream"):
            assert outcome(await tell(store_edge, body, **{"content-type": content_type})) in ("applied", "duplicate")
        signed = {"x-satchel-signature": signature(body)}
        changed = await store_edge.http.post(PATH, content=body.replace(b" :\t", b":"), headers=signed)
        assert (changed.status_code, details(changed)) == (401, [("X-Satchel-Signature", "SIGNATURE_INVALID")])

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ("", "REQUIRED"),
            ("garbage", "INVALID_FORMAT"),
            ("v1=" + "0" * 64, "INVALID_FORMAT"),
            ("t=1", "SIGNATURE_INVALID"),
            ("t=,v1=", "INVALID_FORMAT"),
            ("t=1,t=2,v1=" + "0" * 64, "INVALID_FORMAT"),
            ("t=9999999999999,v1=" + "0" * 64, "INVALID_FORMAT"),
            ("t=-1,v1=" + "0" * 64, "INVALID_FORMAT"),
            ("t=\u0661,v1=" + "0" * 64, "INVALID_FORMAT"),
            ("t=1,v1=" + "0" * 64, "SIGNATURE_INVALID"),
            ("t=1,v1=\u00e9", "SIGNATURE_INVALID"),
            ("t=1," + "v1=00," * 500, "SIGNATURE_INVALID"),
        ],
    )
    async def test_what_is_no_signature_is_refused(self, store_edge: Edge, header: str, reason: str) -> None:
        phone = await Phone.as_guest(store_edge.http)
        body = json.dumps(event(phone.user_id)).encode()
        headers = {b"x-satchel-signature": header.encode()} if header else {}
        answer = await store_edge.http.post(PATH, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED")
        assert details(answer) == [("X-Satchel-Signature", reason)]
        assert (await status(phone))["status"] == "inactive"

    async def test_another_secret_an_empty_one_and_another_body_are_refused(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        body = json.dumps(event(phone.user_id)).encode()
        other = json.dumps(event(phone.user_id)).encode()
        for header in (signature(body, "guessed"), signature(body, ""), signature(other), signature(b"")):
            answer = await store_edge.http.post(PATH, content=body, headers={"x-satchel-signature": header})
            assert (answer.status_code, details(answer)) == (401, [("X-Satchel-Signature", "SIGNATURE_INVALID")])

    async def test_a_signature_lasts_five_minutes_and_is_of_no_future(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        body = json.dumps(event(phone.user_id)).encode()
        for age, expected in ((330, 401), (-330, 401), (270, 200), (-270, 200)):
            header = signature(body, at=time.time() - age)
            answer = await store_edge.http.post(PATH, content=body, headers={"x-satchel-signature": header})
            assert answer.status_code == expected, (age, answer.text)
            if expected == 401:
                assert details(answer) == [("X-Satchel-Signature", "SIGNATURE_EXPIRED")]

    async def test_without_a_secret_there_is_nothing_there(self, edge: Edge, phone: Phone) -> None:
        for path in (PATH, REVENUECAT_PATH):
            body = json.dumps(event(phone.user_id)).encode()
            headers = {"x-satchel-signature": signature(body, ""), "authorization": ""}
            answer = await edge.http.post(path, content=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
            assert "is not set" in answer.json()["error"]["message"]

    async def test_over_grpc_the_same_holds(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        body = json.dumps(event(phone.user_id)).encode()
        async with grpc.aio.insecure_channel(store_edge.target) as channel:
            stub = subscriptions_pb2_grpc.SubscriptionServiceStub(channel)
            request = subscriptions_pb2.ReceiveEventRequest(document=HttpBody(data=body))
            answer = await stub.ReceiveEvent(request, metadata=(("x-satchel-signature", signature(body)),))
            assert answer.outcome == "applied"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ReceiveEvent(request)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    def test_the_secrets_show_in_no_repr(self) -> None:
        config = Config(database_url="postgresql://x", webhook_secret=SECRET, revenuecat_authorization=AGREED)
        assert SECRET not in repr(config)
        assert AGREED not in repr(config)


class TestBodies:
    @pytest.mark.parametrize("body", [*NO_OBJECT.values(), b"", b" "], ids=[*NO_OBJECT, "nothing", "blank"])
    async def test_what_is_no_object_is_malformed_though_it_is_signed(self, store_edge: Edge, body: bytes) -> None:
        answer = await tell(store_edge, body[:200_000])
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST"), answer.text

    @pytest.mark.parametrize(
        ("field", "bad"),
        [
            *(("event_id", bad) for bad in (None, "", 7, [], "x" * 201, "a\0b", " ", "\ud83d")),
            *(("type", bad) for bad in (None, "", 7, {}, "x" * 201, "a\nb")),
            *(("user_id", bad) for bad in (None, "", 7, "user_123", "x" * 10_000, BRACED, "g" * 32)),
            *(("tier", bad) for bad in (None, "", 7, "gold", "STUDIO", "a\0")),
            *(("status", bad) for bad in (None, "", 7, "ACTIVE", "trialing")),
            *(("period_end", bad) for bad in (7, "tomorrow", "2099-11-16", "2099-02-30T10:00:00Z", [])),
            *(("cancel_at_period_end", bad) for bad in ("true", 1, [])),
            *(("event_time", bad) for bad in (None, "", 7, "now", "1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z")),
            *(("product", bad) for bad in (7, "x" * 201, "a\0b")),
        ],
    )
    async def test_a_bad_field_is_named_and_nothing_is_noted(self, store_edge: Edge, field: str, bad: Any) -> None:
        phone = await Phone.as_guest(store_edge.http)
        said = event(phone.user_id)
        answer = await tell(store_edge, {**said, field: bad})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["details"][0]["field"] == field
        assert (await status(phone))["status"] == "inactive"
        assert outcome(await tell(store_edge, said)) == "applied"

    async def test_what_is_too_large_is_refused_before_it_is_read(self, store_edge: Edge) -> None:
        answer = await tell(store_edge, json.dumps({**event(str(uuid4())), "note": "x" * 300_000}).encode())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")

    async def test_a_type_that_is_unknown_is_noted_and_changes_nothing(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        said = {**event(phone.user_id, type="invoice.paid"), "tier": 7}
        assert [outcome(await tell(store_edge, said)) for _ in range(2)] == ["noted", "duplicate"]
        assert (await status(phone))["status"] == "inactive"

    async def test_who_is_unknown_is_no_failure_that_the_store_would_repeat_for_ever(self, store_edge: Edge) -> None:
        said = event(str(uuid4()))
        assert [outcome(await tell(store_edge, said)) for _ in range(2)] == ["unknown_user", "duplicate"]


class TestStatus:
    async def test_cancelled_is_paid_for_until_its_end(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        expected = {"tier": "studio", "status": "cancelled", "current_period_end": END, "cancel_at_period_end": True}
        for number, said in enumerate(({"status": "cancelled"}, {"cancel_at_period_end": True})):
            await tell(store_edge, event(phone.user_id, event_time=f"2026-02-26T10:0{number}:00Z", **said))
            assert await status(phone) == expected
        await tell(store_edge, event(phone.user_id, event_time="2026-02-26T11:00:00Z"))
        assert (await status(phone))["status"] == "active"

    async def test_a_cancelled_one_past_its_end_is_expired(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        ended = "2026-03-01T00:00:00Z"
        await tell(store_edge, event(phone.user_id, status="cancelled", period_end=ended))
        expected = {"tier": "free", "status": "expired", "current_period_end": ended, "cancel_at_period_end": False}
        assert await status(phone) == expected

    async def test_an_expired_one_is_over_whatever_its_end_was_to_be(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        await tell(store_edge, event(phone.user_id))
        await tell(store_edge, event(phone.user_id, status="expired", event_time="2026-02-27T10:00:00Z"))
        assert await status(phone) == {
            "tier": "free",
            "status": "expired",
            "current_period_end": "2026-02-27T10:00:00Z",
            "cancel_at_period_end": False,
        }

    async def test_inactive_is_as_of_an_account_that_never_had_one(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        before = await status(phone)
        await tell(store_edge, event(phone.user_id))
        await tell(store_edge, event(phone.user_id, status="inactive", tier="free", event_time="2026-02-27T10:00:00Z"))
        assert await status(phone) == before

    async def test_one_without_an_end_runs_for_ever_and_cannot_be_cancelled_for_it(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        await tell(store_edge, event(phone.user_id, period_end=None))
        assert (await status(phone))["current_period_end"] is None
        assert (await status(phone))["tier"] == "studio"
        answer = await tell(store_edge, event(phone.user_id, period_end=None, cancel_at_period_end=True))
        assert (answer.status_code, details(answer)) == (400, [("period_end", "REQUIRED")])


class TestOrder:
    async def test_late_events_and_repeats_change_nothing_that_is_newer(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        told = [
            event(phone.user_id, tier="premium", event_time="2026-02-26T10:00:00Z"),
            event(phone.user_id, event_time="2026-02-26T10:00:01Z"),
            event(phone.user_id, status="cancelled", event_time="2026-02-26T12:00:02+02:00"),
        ]
        shuffled = random.Random(11)
        for _ in range(3):
            shuffled.shuffle(told)
            for said in told:
                await tell(store_edge, said)
        assert (await status(phone))["status"] == "cancelled"
        assert (await status(phone))["tier"] == "studio"

    async def test_the_first_of_two_events_with_one_id_counts(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        said = event(phone.user_id)
        changed = {**said, "tier": "premium", "event_time": "2026-02-27T10:00:00Z"}
        assert [outcome(await tell(store_edge, one)) for one in (said, changed)] == ["applied", "duplicate"]
        assert (await status(phone))["tier"] == "studio"

    async def test_one_product_expires_and_another_one_goes_on(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        for said in (
            event(phone.user_id, product="premium.month", tier="premium"),
            event(phone.user_id, product="studio.year", event_time="2026-02-27T10:00:00Z"),
            event(phone.user_id, product="premium.month", status="expired", event_time="2026-02-28T10:00:00Z"),
        ):
            await tell(store_edge, said)
        assert (await status(phone))["tier"] == "studio"

    async def test_two_replicas_that_hear_everything_at_once_agree(
        self, database_url: str, redis_url: str, tmp_path: Path
    ) -> None:
        configs = [
            config_for(tmp_path, database_url=database_url, redis_url=redis_url, webhook_secret=SECRET)
            for _ in range(2)
        ]
        async with AsyncExitStack() as stack:
            channels = []
            for config in configs:
                await stack.enter_async_context(serving(config, {"auth": auth}))
                channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(config.auth_address)))
            request = auth_pb2.SignUpRequest(email="two@example.com", password=PASSWORD)
            account = await auth_pb2_grpc.AuthServiceStub(channels[0]).SignUp(request)
            stubs = [subscriptions_pb2_grpc.SubscriptionServiceStub(channel) for channel in channels]
            told = [
                event(
                    account.user.id,
                    period_end=f"2099-01-01T00:00:{number:02}Z",
                    event_time=f"2026-02-26T10:00:{number:02}Z",
                )
                for number in range(20)
            ]
            shuffled = random.Random(5)

            async def hear(stub: Any, said: dict[str, Any]) -> str:
                body = json.dumps(said).encode()
                message = subscriptions_pb2.ReceiveEventRequest(document=HttpBody(data=body))
                answer = await stub.ReceiveEvent(message, metadata=(("x-satchel-signature", signature(body)),))
                return str(answer.outcome)

            heard = [(stub, said) for said in told for stub in stubs]
            shuffled.shuffle(heard)
            outcomes = await asyncio.gather(*(hear(stub, said) for stub, said in heard))
            assert sorted(outcomes) == ["applied"] * 20 + ["duplicate"] * 20
            metadata = (("authorization", f"Bearer {account.access_token}"),)
            asked = auth_pb2.GetSubscriptionStatusRequest()
            stood = await auth_pb2_grpc.AuthServiceStub(channels[1]).GetSubscriptionStatus(asked, metadata=metadata)
            assert stood.current_period_end.string_value == "2099-01-01T00:00:19Z"


MOMENTS = st.integers(0, 6).map(lambda hours: datetime(2026, 2, 26, tzinfo=UTC) + timedelta(hours=hours))
PEOPLE = st.sampled_from(["a", "b", "c"])
SUBSCRIPTIONS = st.builds(
    Subscription,
    tier=st.sampled_from([tier.name for tier in TIERS.all]),
    status=st.sampled_from(["active", "cancelled", "expired", "inactive"]),
    end_time=st.none() | MOMENTS,
    cancel_at_period_end=st.booleans(),
)
EVENTS = st.lists(
    st.builds(
        StoreEvent,
        source=st.sampled_from(["webhook", "revenuecat"]),
        id=st.text("0123456789", min_size=1, max_size=2),
        type=st.just("x"),
        time=MOMENTS,
        subscriber=PEOPLE,
        product=st.sampled_from(["", "month", "year"]),
        subscription=st.none() | SUBSCRIPTIONS,
        transferred_to=st.just("") | PEOPLE,
    ),
    unique_by=lambda one: (one.source, one.id),
    max_size=12,
)


class TestWhatASetOfEventsAmountsTo:
    @given(events=EVENTS, data=st.data())
    def test_any_order_and_repetition_amounts_to_the_same(self, events: list[StoreEvent], data: st.DataObject) -> None:
        repeated = data.draw(st.lists(st.sampled_from(events), max_size=8)) if events else []
        other = data.draw(st.permutations([*events, *repeated]))
        assert subscriptions(other, TIERS.rank) == subscriptions(events, TIERS.rank)

    @given(events=EVENTS)
    def test_everybody_who_is_named_has_one(self, events: list[StoreEvent]) -> None:
        named = {name for one in events for name in (one.subscriber, one.transferred_to) if name}
        assert subscriptions(events, TIERS.rank).keys() == named

    @given(events=EVENTS, said=SUBSCRIPTIONS)
    def test_the_newest_word_on_the_only_product_counts(self, events: list[StoreEvent], said: Subscription) -> None:
        newest = StoreEvent(
            source="webhook", id="newest", type="x", time=utc_now(), subscriber="a", product="", subscription=said
        )
        alone = [one for one in events if not one.product and not one.transferred_to]
        assert subscriptions([*alone, newest], TIERS.rank)["a"] == said

    def test_who_gives_all_away_has_nothing(self) -> None:
        said = Subscription(tier="studio", status="active", end_time=None, cancel_at_period_end=False)
        time = datetime(2026, 2, 26, tzinfo=UTC)
        bought = StoreEvent(source="s", id="1", type="x", time=time, subscriber="a", subscription=said)
        given = StoreEvent(
            source="s", id="2", type="x", time=time + timedelta(hours=1), subscriber="a", transferred_to="b"
        )
        assert subscriptions([given, bought], TIERS.rank) == {"a": NO_SUBSCRIPTION, "b": said}


class TestWhatATierChanges:
    async def test_a_refresh_after_paying_has_the_tier_and_lifts_its_limits(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        sent = [puzzle_session(), puzzle_session()]
        answer = (await phone.call("POST", "/v1/sessions", json={"sessions": sent})).json()
        assert (answer["synced"], len(answer["rejected"])) == (1, 1)
        await tell(store_edge, event(phone.user_id))
        answer = await store_edge.http.post("/v1/auth/refresh", json={"refresh_token": phone.refresh_token})
        claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
        assert claims["tier"] == "studio"
        paid = Phone(phone.http, phone.user_id, phone.email, answer.json()["access_token"], "")
        answer = (await paid.call("POST", "/v1/sessions", json={"sessions": sent})).json()
        assert (answer["synced"], answer["rejected"]) == (2, [])

    async def test_a_refresh_after_the_end_has_the_free_tier(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        await tell(store_edge, event(phone.user_id, period_end="2026-03-01T00:00:00Z"))
        answer = await store_edge.http.post("/v1/auth/refresh", json={"refresh_token": phone.refresh_token})
        assert jwt.decode(answer.json()["access_token"], options={"verify_signature": False})["tier"] == "free"

    async def test_a_change_is_in_the_log_of_events_and_goes_with_the_account(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        said = event(phone.user_id)
        await tell(store_edge, said)

        def rows(statement: str) -> list[Any]:
            with psycopg.connect(store_edge.mesh.config.database_url) as connection:
                return connection.execute(statement, [phone.user_id]).fetchall()

        kept = "SELECT actor, detail FROM auth.security_events WHERE kind = 'subscription_changed' AND account_id = %s"
        assert rows(kept) == [("service:webhook", {"tier": "studio", "status": "active", "event_id": said["event_id"]})]
        told = "SELECT event_id FROM auth.subscription_events WHERE subscriber = %s"
        assert len(rows(told)) == 1
        await phone.call("DELETE", "/v1/auth/me")
        assert rows(told) == []
        assert outcome(await tell(store_edge, event(phone.user_id))) == "unknown_user"
        assert rows("SELECT tier FROM auth.accounts WHERE id = %s") == [("free",)]


def revenuecat(type: str, user_id: str, **given: Any) -> dict[str, Any]:
    """An event as RevenueCat's documentation shows it."""
    said = {
        "event_timestamp_ms": 1772100000000,
        "product_id": "com.subscription.monthly",
        "period_type": "NORMAL",
        "purchased_at_ms": 1772100000000,
        "expiration_at_ms": 4098286800000,
        "environment": "PRODUCTION",
        "entitlement_id": None,
        "entitlement_ids": ["studio"],
        "presented_offering_id": None,
        "transaction_id": "123456789012345",
        "original_transaction_id": "123456789012345",
        "is_family_share": False,
        "country_code": "US",
        "app_user_id": user_id,
        "aliases": ["$RCAnonymousID:8069238d6049ce87cc529853916d624c"],
        "original_app_user_id": "$RCAnonymousID:87c6049c58069238dce29853916d624c",
        "currency": "USD",
        "price": 4.99,
        "price_in_purchased_currency": 4.99,
        "subscriber_attributes": {"$email": {"updated_at_ms": 1662955084635, "value": "firstlast@gmail.com"}},
        "store": "APP_STORE",
        "takehome_percentage": 0.7,
        "offer_code": None,
        "type": type,
        "id": str(uuid4()),
        "app_id": "1234567890",
        **given,
    }
    return {"event": said, "api_version": "1.0"}


async def rc(edge: Edge, type: str, user_id: str, **given: Any) -> str:
    said = revenuecat(type, user_id, **given)
    return outcome(await edge.http.post(REVENUECAT_PATH, json=said, headers={"authorization": AGREED}))


class TestRevenueCat:
    async def test_only_who_names_the_agreed_word_is_believed(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        said = revenuecat("INITIAL_PURCHASE", phone.user_id)
        for header in (None, "", "Bearer", AGREED.lower(), AGREED[:-1], f"Bearer {phone.access_token}"):
            headers = {"authorization": header} if header is not None else {}
            answer = await store_edge.http.post(REVENUECAT_PATH, json=said, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED"), header
        assert (await status(phone))["status"] == "inactive"
        assert await rc(store_edge, "INITIAL_PURCHASE", phone.user_id) == "applied"

    async def test_a_purchase_over_its_life(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        at = 1772100000000
        for step, (type, more, expected) in enumerate(
            [
                ("TEST", {}, "inactive"),
                ("INITIAL_PURCHASE", {}, "active"),
                ("CANCELLATION", {"cancel_reason": "UNSUBSCRIBE"}, "cancelled"),
                ("UNCANCELLATION", {}, "active"),
                ("SUBSCRIPTION_PAUSED", {}, "active"),
                ("PRODUCT_CHANGE", {"new_product_id": "com.subscription.weekly"}, "active"),
                ("CANCELLATION", {"cancel_reason": "BILLING_ERROR"}, "active"),
                ("BILLING_ISSUE", {"grace_period_expiration_at_ms": 4098286900000}, "active"),
                ("RENEWAL", {"expiration_at_ms": 4100000000000}, "active"),
                ("SOMETHING_NEW", {}, "active"),
                ("EXPIRATION", {"expiration_at_ms": at + 10_000, "expiration_reason": "UNSUBSCRIBE"}, "expired"),
                ("RENEWAL", {}, "active"),
            ]
        ):
            await rc(store_edge, type, phone.user_id, event_timestamp_ms=at + 1000 * step, **more)
            stood = await status(phone)
            assert stood["status"] == expected, (type, stood)
            assert stood["tier"] == ("studio" if expected in ("active", "cancelled") else "free")
        assert stood["current_period_end"] == "2099-11-13T21:00:00Z"

    async def test_a_refund_ends_what_was_paid_for(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        await rc(store_edge, "INITIAL_PURCHASE", phone.user_id)
        refund = {"cancel_reason": "CUSTOMER_SUPPORT", "expiration_at_ms": 1772100500000}
        await rc(store_edge, "CANCELLATION", phone.user_id, event_timestamp_ms=1772100600000, **refund)
        assert (await status(phone))["status"] == "expired"

    async def test_what_is_bought_for_good_has_no_end(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        await rc(store_edge, "NON_RENEWING_PURCHASE", phone.user_id, expiration_at_ms=None)
        assert await status(phone) == {
            "tier": "studio",
            "status": "active",
            "current_period_end": None,
            "cancel_at_period_end": False,
        }

    @pytest.mark.parametrize(
        "given",
        [
            {"environment": "SANDBOX"},
            {"entitlement_ids": ["coins"], "product_id": "coins.100"},
            {"entitlement_ids": None, "product_id": None},
        ],
        ids=["tried out", "something else", "nothing"],
    )
    async def test_what_is_no_tier_is_noted_and_changes_nothing(self, store_edge: Edge, given: dict[str, Any]) -> None:
        phone = await Phone.as_guest(store_edge.http)
        assert await rc(store_edge, "INITIAL_PURCHASE", phone.user_id, **given) == "noted"
        assert (await status(phone))["status"] == "inactive"

    async def test_somebody_whom_the_store_calls_otherwise_is_known_by_an_alias(self, store_edge: Edge) -> None:
        phone = await Phone.as_guest(store_edge.http)
        anonymous = f"$RCAnonymousID:{uuid4().hex}"
        assert await rc(store_edge, "INITIAL_PURCHASE", anonymous, aliases=[anonymous, phone.user_id]) == "applied"
        assert (await status(phone))["tier"] == "studio"

    async def test_a_transfer_takes_everything_along_also_when_it_comes_first(self, store_edge: Edge) -> None:
        a, b = await Phone.as_guest(store_edge.http), await Phone.as_guest(store_edge.http)
        anonymous = f"$RCAnonymousID:{uuid4().hex}"
        told: list[tuple[str, str, dict[str, Any]]] = [
            ("INITIAL_PURCHASE", anonymous, {}),
            ("TRANSFER", "", {"transferred_from": [anonymous], "transferred_to": [a.user_id], "app_user_id": None}),
            ("RENEWAL", a.user_id, {"expiration_at_ms": 4100000000000}),
            ("TRANSFER", "", {"transferred_from": [anonymous, a.user_id], "transferred_to": [b.user_id]}),
        ]
        told = [
            (type, who, {"event_timestamp_ms": 1772100000000 + step, "id": uuid4().hex, **more})
            for step, (type, who, more) in enumerate(told)
        ]
        shuffled = random.Random(3)
        shuffled.shuffle(told)
        for type, who, more in told:
            await rc(store_edge, type, who, **more)
        assert (await status(a))["status"] == "inactive"
        assert (await status(b))["current_period_end"] == "2099-12-03T16:53:20Z"

    @pytest.mark.parametrize(
        ("field", "bad"),
        [
            *(("id", bad) for bad in (None, 7, "x" * 201)),
            *(("type", bad) for bad in (None, 7, "a\0")),
            *(("event_timestamp_ms", bad) for bad in (None, "1772100000000", True, -1, 10**30, 4098286800000)),
            *(("expiration_at_ms", bad) for bad in ("x", True, 10**30, [])),
            *(("app_user_id", bad) for bad in (None, "", 7, "x" * 201)),
            *(("aliases", bad) for bad in ("x", 7, ["x"] * 101, [7])),
            *(("entitlement_ids", bad) for bad in ("studio", [7], {"a": 1})),
        ],
    )
    async def test_a_bad_field_is_named(self, store_edge: Edge, field: str, bad: object) -> None:
        phone = await Phone.as_guest(store_edge.http)
        said = revenuecat("INITIAL_PURCHASE", phone.user_id)
        said["event"][field] = bad
        answer = await store_edge.http.post(REVENUECAT_PATH, json=said, headers={"authorization": AGREED})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["details"][0]["field"] == f"event.{field}"
        assert (await status(phone))["status"] == "inactive"

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"event": 7}', b'{"event": null}', b"{", b'"x"'])
    async def test_what_is_no_event_is_refused(self, store_edge: Edge, body: bytes) -> None:
        answer = await store_edge.http.post(REVENUECAT_PATH, content=body, headers={"authorization": AGREED})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")


class TestTiersFile:
    async def test_a_file_of_ones_own_names_other_tiers_with_other_limits(self, own_edge: Any, tmp_path: Path) -> None:
        file = tmp_path / "tiers.json"
        tiers = [
            {"name": "free", "puzzles_per_day": 2, "upload_bytes": 10},
            {"name": "gold", "puzzles_per_day": 3, "upload_bytes": 20},
        ]
        file.write_text(json.dumps({"tiers": tiers}))
        edge = await own_edge(tiers=file, webhook_secret=SECRET)
        phone = await edge.phone()
        sent = [puzzle_session() for _ in range(4)]
        asked = {"filename": "a.txt", "total_size": 15, "mime_type": "text/plain", "file_hash": "ab" * 32}
        assert (await phone.call("POST", "/v1/sessions", json={"sessions": sent})).json()["synced"] == 2
        assert (await phone.call("POST", "/api/v1/uploads/init", json=asked)).status_code == 403
        assert outcome(await tell(edge, event(phone.user_id, tier="gold"))) == "applied"
        answer = await edge.http.post("/v1/auth/refresh", json={"refresh_token": phone.refresh_token})
        paid = Phone(phone.http, phone.user_id, phone.email, answer.json()["access_token"], "")
        answer = await paid.call("POST", "/v1/sessions", json={"sessions": sent})
        assert answer.json()["synced"] == 3
        assert (await paid.call("POST", "/api/v1/uploads/init", json=asked)).status_code == 201

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            '{"tiers": []}',
            '{"tiers": [{"name": "gold", "puzzles_per_day": 1, "upload_bytes": 1}]}',
            '{"tiers": [{"name": "free", "puzzles_per_day": -1, "upload_bytes": 1}]}',
            '{"tiers": [{"name": "free", "puzzles_per_day": 1, "upload_bytes": true}]}',
            '{"tiers": [{"name": "free", "puzzles_per_day": 1}]}',
            '{"tiers": [{"name": "free", "puzzles_per_day": 1, "upload_bytes": 1, "products": "x"}]}',
        ],
    )
    def test_a_file_that_is_none_is_a_setting_that_is_wrong(self, tmp_path: Path, content: str) -> None:
        file = tmp_path / "tiers.json"
        file.write_text(content)
        with pytest.raises(ConfigError, match="SATCHEL_TIERS"):
            read_tiers(file)
        with pytest.raises(ConfigError, match="SATCHEL_TIERS"):
            read_tiers(tmp_path / "none.json")
