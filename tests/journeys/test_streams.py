"""The Sync stream through the edge: handshake, receipts, the feed, conflicts, limits and goodbyes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import grpc
import pytest
from satchel.sessions.v1 import sync_pb2 as pb

from tests.conftest import Edge, config_for, envoy_for, running, service_part, until_healthy
from tests.factories import Phone, puzzle_session
from tests.polling import until
from tests.sessions.test_exports import store_42_megabytes
from tests.streams import PATIENCE, change, now, talking


@pytest.fixture(scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


class TestHandshake:
    async def test_a_welcome_tells_the_limits_the_schemas_and_where_the_feed_stands(
        self, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        async with talking(channel, phone.metadata, device_id="phone-1") as talk:
            assert talk.welcome.limits.max_changes == 1000
            assert talk.welcome.limits.max_record_bytes == 256 * 1024
            assert talk.welcome.limits.pushes_per_minute == 100
            assert talk.welcome.domains["journal"] >= 1
            assert talk.welcome.schema_version == 1
            assert talk.welcome.cursor

    async def test_the_clock_offset_is_what_the_phone_adds(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, client_time=now(-3600)) as talk:
            assert 3590 < talk.welcome.clock_offset.ToTimedelta().total_seconds() < 3700

    async def test_nothing_is_done_before_hello(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata) as talk:
            await talk.say("1", push=pb.PushChangesRequest(changes=[change()]))
            refusal = await talk.hear("refusal")
            assert (refusal.reason, refusal.code, refusal.field) == ("FIELD_MISSING", "SYNC_002", "hello")
            await talk.hello()
            assert (await talk.push(change())).receipts[0].status == "APPLIED"

    @pytest.mark.parametrize("device_id", ["", "über", "a b", "x" * 256, "a/b"])
    async def test_a_bad_device_id_is_refused_and_may_be_mended(
        self, channel: grpc.aio.Channel, phone: Phone, device_id: str
    ) -> None:
        async with talking(channel, phone.metadata) as talk:
            await talk.say("1", hello=pb.Hello(device_id=device_id))
            assert (await talk.hear("refusal")).field == "device_id"
            await talk.hello(device_id="mended")

    async def test_a_second_hello_is_refused(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            await talk.say(hello=pb.Hello(device_id="a"))
            assert (await talk.hear("refusal")).reason == "FIELD_INVALID"

    @pytest.mark.parametrize("version", [2, 99, -1])
    async def test_a_schema_of_the_past_or_the_future_ends_the_stream(
        self, channel: grpc.aio.Channel, phone: Phone, version: int
    ) -> None:
        async with talking(channel, phone.metadata) as talk:
            await talk.say(hello=pb.Hello(device_id="a", schema_version=version))
            assert (await talk.hear("refusal")).code == "SYNC_005"
            assert await talk.code() is grpc.StatusCode.FAILED_PRECONDITION

    async def test_a_stream_needs_a_token(self, channel: grpc.aio.Channel) -> None:
        async with talking(channel, ()) as talk:
            assert await talk.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_an_empty_message_is_refused(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            await talk.call.write(pb.SyncRequest(request_id="7"))
            said = await talk.hear()
            assert (said.request_id, said.refusal.reason) == ("7", "FIELD_MISSING")


class TestFeed:
    async def test_what_one_device_pushes_the_other_gets(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with (
            talking(channel, phone.metadata, device_id="a") as first,
            talking(channel, phone.metadata, device_id="b") as second,
        ):
            given = change(data={"title": "from the first", "text": "x"})
            receipts = await first.push(given)
            assert [one.status for one in receipts.receipts] == ["APPLIED"]
            (entry,) = await second.changes()
            assert (entry.domain, entry.id, entry.version) == ("journal", given.id, 1)
            assert json.loads(entry.data) == {"title": "from the first", "text": "x"}

    async def test_a_phone_is_not_sent_what_it_pushed_itself(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            receipts = await talk.push(change(), change())
            assert receipts.next_cursor
            await talk.say("beat", heartbeat=pb.Heartbeat())
            await talk.hear("heartbeat_ack")  # and no changes before it
            async with talking(channel, phone.metadata, device_id="a", cursor=receipts.next_cursor) as again:
                await again.say("beat", heartbeat=pb.Heartbeat())
                await again.hear("heartbeat_ack")

    async def test_what_was_stored_otherwise_than_it_was_sent_comes_back(
        self, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            sent = puzzle_session(difficulty="HARD")
            id = sent.pop("id")
            receipts = await talk.push(change("puzzle", id, data=sent))
            assert (receipts.receipts[0].status, receipts.next_cursor) == ("APPLIED", "")
            (entry,) = await talk.changes()
            assert json.loads(entry.data)["difficulty"] == "hard"

    async def test_uploads_by_the_typed_contracts_are_pushed_to_live_phones(
        self, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            answer = await phone.call("POST", "/v1/sessions", json={"sessions": [puzzle_session()]})
            assert answer.status_code == 200
            (entry,) = await talk.changes()
            assert entry.domain == "puzzle"

    async def test_an_empty_cursor_asks_for_the_whole_feed_and_none_for_what_is_new(
        self, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            await talk.push(change(), change())
        async with talking(channel, phone.metadata, device_id="b", cursor="") as talk:
            assert len(await talk.changes()) == 2
        async with talking(channel, phone.metadata, device_id="c") as talk:
            await talk.say(heartbeat=pb.Heartbeat())
            await talk.hear("heartbeat_ack")

    async def test_a_cut_stream_goes_on_from_its_cursor(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="writer") as writer:
            async with talking(channel, phone.metadata, device_id="reader") as reader:
                await writer.push(change())
                await reader.changes()
                cursor = reader.cursor
            missed = change(operation="UPSERT")
            await writer.push(missed)
            async with talking(channel, phone.metadata, device_id="reader", cursor=cursor) as reader:
                assert [entry.id for entry in await reader.changes()] == [missed.id]

    async def test_a_filtered_stream_is_sent_its_domains_only(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with (
            talking(channel, phone.metadata, device_id="a") as writer,
            talking(channel, phone.metadata, device_id="b", domains=["task"]) as reader,
        ):
            await writer.push(change("journal"))
            wanted = change("task", data={"title": "Buy bread"})
            await writer.push(wanted)
            assert [entry.id for entry in await reader.changes()] == [wanted.id]
            own = await reader.push(change("task", data={"title": "Eat it"}))
            assert own.next_cursor

    async def test_without_acks_no_more_than_the_window_is_sent(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        for _ in range(5):
            body = {"changes": [_json(change()) for _ in range(1000)]}
            assert (await phone.call("POST", "/api/v1/sync/push", json=body)).status_code == 200
        async with talking(channel, phone.metadata, device_id="a", cursor="") as talk:
            pages = [await talk.hear("changes") for _ in range(talk.welcome.limits.max_unacknowledged)]
            await talk.say(heartbeat=pb.Heartbeat())
            await talk.hear("heartbeat_ack")
            await talk.say(ack=pb.Ack(cursor=pages[-1].next_cursor))
            seen = [entry.id for page in pages for entry in page.changes]
            while len(seen) < 5000:
                page = await talk.hear("changes")
                seen += [entry.id for entry in page.changes]
                await talk.say(ack=pb.Ack(cursor=page.next_cursor))
            assert len(set(seen)) == len(seen) == 5000

    @pytest.mark.parametrize("cursor", ["x", "AAAA", "🙂", "A" * 24, "A" * 5000])
    async def test_a_made_up_cursor_is_refused(self, channel: grpc.aio.Channel, phone: Phone, cursor: str) -> None:
        async with talking(channel, phone.metadata) as talk:
            await talk.say(hello=pb.Hello(device_id="a", cursor=cursor))
            assert (await talk.hear("refusal")).field == "cursor"
            await talk.hello()
            await talk.say(ack=pb.Ack(cursor=cursor))
            assert (await talk.hear("refusal")).field == "cursor"

    async def test_a_cursor_of_somebody_else_is_refused(
        self, edge: Edge, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        other = await edge.phone()
        async with talking(channel, other.metadata, device_id="a") as theirs:
            await theirs.push(change())
            cursor = (await theirs.push(change())).next_cursor
        async with talking(channel, phone.metadata) as talk:
            await talk.say(hello=pb.Hello(device_id="a", cursor=cursor))
            assert (await talk.hear("refusal")).field == "cursor"

    async def test_nobody_sees_another_users_changes(self, edge: Edge, channel: grpc.aio.Channel, phone: Phone) -> None:
        other = await edge.phone()
        async with (
            talking(channel, phone.metadata, device_id="a") as mine,
            talking(channel, other.metadata, device_id="a", cursor="") as theirs,
        ):
            await mine.push(change())
            await theirs.say(heartbeat=pb.Heartbeat())
            await theirs.hear("heartbeat_ack")


class TestPush:
    async def test_a_repeat_with_its_key_gets_the_same_receipts(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            given = change()
            first = await talk.push(given, idempotency_key="k1")
            second = await talk.push(given, idempotency_key="k1")
            assert list(first.receipts) == list(second.receipts)
            await talk.say(push=pb.PushChangesRequest(changes=[change()], idempotency_key="k1"))
            assert (await talk.hear("refusal")).code == "SYNC_003"

    async def test_bad_items_do_not_sink_the_good_ones(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            broken = change()
            broken.data = "{"
            large = change(data={"title": "x", "text": "y" * 5_000_000})
            receipts = await talk.push(broken, change("nowhere"), large, change(id="a/b"), change())
            statuses = [one.status for one in receipts.receipts]
            assert statuses == ["REJECTED", "REJECTED", "REJECTED", "REJECTED", "APPLIED"]
            assert all(one.reason == "FIELD_INVALID" for one in receipts.receipts[:4])

    @pytest.mark.parametrize("count", [0, 1001])
    async def test_too_few_and_too_many_are_refused_and_the_stream_lives(
        self, channel: grpc.aio.Channel, phone: Phone, count: int
    ) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            await talk.say(push=pb.PushChangesRequest(changes=[change()] * count))
            assert (await talk.hear("refusal")).field == "changes"
            assert (await talk.push(change())).receipts[0].status == "APPLIED"

    async def test_a_skewed_clock_is_corrected_before_the_later_change_wins(
        self, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        async with (
            talking(channel, phone.metadata, device_id="slow", client_time=now(-86_400)) as slow,
            talking(channel, phone.metadata, device_id="right") as right,
        ):
            id = str(uuid4())
            await right.push(change("task", id, data={"title": "earlier"}, client_time=now(-60)))
            await slow.changes()
            later = change("task", id, data={"title": "later"}, base_version=0, client_time=now(-86_400))
            (receipt,) = (await slow.push(later)).receipts
            assert receipt.status == "APPLIED"
            assert receipt.conflict.server_version == 1


class TestConflicts:
    @pytest.fixture
    async def tenant(self, own_edge: Callable[..., Awaitable[Edge]]) -> Tenant:
        """A mesh whose journals are decided by people, and two users of it."""
        edge = await own_edge(admin_email="admin@example.com")
        admin = await edge.phone(email="admin@example.com")
        await _policy(admin, "journal", "manual")
        return Tenant(edge, admin, await edge.phone())

    async def test_an_open_conflict_is_told_at_hello_and_resolved_once(self, tenant: Tenant) -> None:
        async with grpc.aio.insecure_channel(tenant.edge.target) as channel:
            metadata, id = tenant.phone.metadata, str(uuid4())
            async with talking(channel, metadata, device_id="a") as talk:
                await talk.push(change("journal", id, data={"text": "one"}))
                (receipt,) = (await talk.push(change("journal", id, data={"text": "two"}))).receipts
                assert (receipt.status, receipt.version) == ("CONFLICT", 1)
            async with talking(channel, metadata, device_id="b") as talk:
                notice = await talk.hear("conflict")
                assert notice.conflict_id == receipt.conflict.conflict_id
                assert list(notice.resolution_options) == ["accept_server", "accept_client", "merge"]
                assert json.loads(notice.server_data) == {"text": "one"}
                decision = pb.ResolveConflictRequest(conflict_id=notice.conflict_id, resolution="accept_client")
                await talk.say("1", resolve=decision)
                heard = [await talk.hear() for _ in range(2)]
                said = {one.WhichOneof("message"): one for one in heard}
                assert said["resolution"].resolution.winning_version == "client"
                assert json.loads(said["changes"].changes.changes[0].data) == {"text": "two"}
                await talk.say("2", resolve=decision)
                assert (await talk.hear("refusal")).code == "SYNC_004"

    async def test_other_live_devices_are_told_of_a_conflict_when_the_policy_says_so(self, tenant: Tenant) -> None:
        await _policy(tenant.admin, "task", "server_wins", notify_on_conflict=True)
        async with grpc.aio.insecure_channel(tenant.edge.target) as channel:
            metadata, id = tenant.phone.metadata, str(uuid4())
            async with (
                talking(channel, metadata, device_id="a") as first,
                talking(channel, metadata, device_id="b") as second,
            ):
                await first.push(change("task", id, data={"title": "one"}))
                assert [entry.id for entry in await second.changes()] == [id]
                (receipt,) = (await first.push(change("task", id, data={"title": "two"}))).receipts
                notice = await second.hear("conflict")
                assert notice.conflict_id == receipt.conflict.conflict_id
                assert not notice.resolution_options
                await first.say(heartbeat=pb.Heartbeat())
                await first.hear("heartbeat_ack")  # who pushed it has it in its receipts


class TestLimits:
    async def test_one_stream_more_than_a_user_may_have_is_refused(
        self, own_edge: Callable[..., Awaitable[Edge]]
    ) -> None:
        edge = await own_edge(streams_per_user=2)
        phone, other = await edge.phone(), await edge.phone()
        async with grpc.aio.insecure_channel(edge.target) as channel:
            async with (
                talking(channel, phone.metadata, device_id="a"),
                talking(channel, phone.metadata, device_id="b"),
                talking(channel, other.metadata, device_id="a"),
                talking(channel, phone.metadata) as third,
            ):
                await third.say(hello=pb.Hello(device_id="c"))
                assert await third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            async with asyncio.timeout(PATIENCE):
                while not await _welcomed(channel, phone):  # the streams that were cancelled take a moment to be gone
                    pass

    async def test_the_third_push_over_the_rate_ends_the_stream(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(rate_limits="on")
        phone = await edge.phone()
        async with (
            grpc.aio.insecure_channel(edge.target) as channel,
            talking(channel, phone.metadata, device_id="a") as talk,
        ):
            for _ in range(100):
                await talk.push(change())
            for _ in range(3):
                await talk.say(push=pb.PushChangesRequest(changes=[change()]))
                refusal = await talk.hear("refusal")
                assert refusal.code == "RATE_001"
                assert refusal.retry_after.seconds >= 1
            assert await talk.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_more_messages_than_anybody_needs_are_refused(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:
            for _ in range(10):
                for _ in range(100):
                    await talk.say(heartbeat=pb.Heartbeat())
                heard = [await talk.hear() for _ in range(100)]
            assert heard[98].WhichOneof("message") == "heartbeat_ack"
            assert heard[99].refusal.code == "RATE_001"  # hello was the first of the thousand
            await talk.say(heartbeat=pb.Heartbeat())
            await talk.hear("heartbeat_ack")

    async def test_a_flood_is_cut(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        async with talking(channel, phone.metadata, device_id="a") as talk:

            async def flood() -> None:
                # The call may have ended between two writes: that is how grpcio says so.
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    while True:
                        await talk.say(heartbeat=pb.Heartbeat())

            flooding = asyncio.create_task(flood())
            said = 0
            with suppress(grpc.aio.AioRpcError, AssertionError):
                while await talk.hear():
                    said += 1
            await flooding  # ends only because the stream does
            assert said < 5000

    async def test_a_silent_phone_is_sent_away(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(stream_idle_timeout=0.5)
        phone = await edge.phone()
        async with (
            grpc.aio.insecure_channel(edge.target) as channel,
            talking(channel, phone.metadata, device_id="a") as talk,
        ):
            goodbye = await talk.hear("go_away")
            assert goodbye.cause == pb.GoAway.CAUSE_IDLE
            assert await talk.code() is grpc.StatusCode.OK

    @pytest.mark.parametrize("chatty", [False, True], ids=["silent", "chatty"])
    async def test_a_phone_that_takes_nothing_is_sent_away_and_leaves_its_place(
        self, own_edge: Callable[..., Awaitable[Edge]], chatty: bool
    ) -> None:
        edge = await own_edge(streams_per_user=1, stream_idle_timeout=1.0)
        phone = await edge.phone()
        store_42_megabytes(edge, phone)
        async with (
            grpc.aio.insecure_channel(edge.target, options=_SMALL_WINDOW) as stuck,
            grpc.aio.insecure_channel(edge.target) as channel,
            talking(stuck, phone.metadata, device_id="a", cursor="") as talk,
        ):

            async def chat() -> None:
                with suppress(grpc.aio.AioRpcError):
                    while chatty:  # is heard, and wants no answer
                        await talk.say(ack=pb.Ack(cursor=talk.welcome.cursor))
                        await asyncio.sleep(0.1)

            chatting = asyncio.create_task(chat())
            await until(lambda: _welcomed(channel, phone), seconds=30)
            chatting.cancel()
            await asyncio.gather(chatting, return_exceptions=True)
            # Whenever it listens again, it learns that it has to come again.
            assert await talk.code() is not grpc.StatusCode.OK

    async def test_a_stream_ends_with_its_lifetime(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(stream_lifetime=0.5)
        phone = await edge.phone()
        async with (
            grpc.aio.insecure_channel(edge.target) as channel,
            talking(channel, phone.metadata, device_id="a") as talk,
        ):
            assert (await talk.hear("go_away")).cause == pb.GoAway.CAUSE_LIFETIME

    async def test_signing_out_ends_the_stream(self, channel: grpc.aio.Channel, edge: Edge) -> None:
        phone = await edge.phone()
        async with talking(channel, phone.metadata, device_id="a") as talk:
            assert (await phone.call("POST", "/v1/auth/signout", json={"scope": "this"})).status_code == 200
            assert await talk.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_what_is_no_message_ends_the_stream(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        call = channel.stream_stream("/satchel.sessions.v1.SyncService/Sync")(metadata=phone.metadata)
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_a_stopping_process_tells_phones_to_come_again(
        self, database_url: str, redis_url: str, tmp_path: Path
    ) -> None:
        config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
        async with running(service_part("all", config, tmp_path)) as process, envoy_for(config, tmp_path) as edge:
            await until_healthy(edge)
            phone = await edge.phone()
            async with (
                grpc.aio.insecure_channel(edge.target) as channel,
                talking(channel, phone.metadata, device_id="a") as talk,
            ):
                stopping = asyncio.create_task(process.stop())
                goodbye = await talk.hear("go_away")
                assert goodbye.cause == pb.GoAway.CAUSE_DRAINING
                assert await talk.code() is grpc.StatusCode.OK
                await stopping


# What a phone takes in that nobody reads: by default it may be megabytes.
_SMALL_WINDOW = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.max_receive_message_length", -1),
)


class Tenant(NamedTuple):
    """A mesh with an administrator and a user."""

    edge: Edge
    admin: Phone
    phone: Phone


async def _policy(admin: Phone, domain: str, policy: str, **given: object) -> None:
    answer = await admin.call("PUT", f"/api/v1/sync/policies/1/{domain}", json={"resolution_policy": policy, **given})
    assert answer.status_code == 200, answer.text


async def _welcomed(channel: grpc.aio.Channel, phone: Phone) -> bool:
    try:
        async with talking(channel, phone.metadata, device_id="again"):
            return True
    except grpc.aio.AioRpcError:
        return False


def _json(one: pb.Change) -> dict[str, object]:
    return {"domain": one.domain, "id": one.id, "operation": one.operation, "data": json.loads(one.data)}
