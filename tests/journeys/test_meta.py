"""What an app finds out before anybody has signed in: schemas that it may keep, and whether it is too old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import jwt
import orjson
import psycopg
import pytest
from satchel.sessions.v1 import meta_pb2, meta_pb2_grpc

from runtime.call import Principal
from runtime.database import Database, database
from runtime.keys import signing_keys
from services.auth.tokens import AccessTokens
from services.sessions.meta_domain import OPEN, AppVersions, Gate
from services.sessions.meta_store import AppVersionStore
from tests.conftest import Edge

NOW = datetime(2026, 2, 26, 12, tzinfo=UTC)
STORE = "https://example.com/app"
SET = {"latest_version": "2.10.0", "min_supported_version": "2.1", "store_url": STORE}


@pytest.fixture
async def admin(edge: Edge) -> dict[str, str]:
    """The headers of an administrator, of a tenant that is not the first."""
    user = await edge.phone()
    claims = jwt.decode(user.access_token, options={"verify_signature": False})
    principal = Principal(
        user_id=UUID(claims["sub"]), sign_in_id=UUID(claims["sid"]), tenant_id=7, role="admin", tier="free"
    )
    return {"authorization": "Bearer " + AccessTokens(signing_keys(edge.mesh.config.keys)).mint(principal)}


def error_of(answer: httpx.Response) -> tuple[int, str, list[str]]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], [one["field"] for one in error["details"]]


class TestSchemas:
    @pytest.mark.parametrize("prefix", ["", "/v1"])
    async def test_everybody_may_read_every_domain(self, edge: Edge, prefix: str) -> None:
        answer = await edge.http.get(f"{prefix}/meta/schemas")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        found = {one["domain"]: one for one in answer.json()["schemas"]}
        assert {"session", "bike", "rower", "treadmill", "health_metric", "workout_plan", "ticket"} <= found.keys()
        assert list(found) == sorted(found)
        assert (found["bike"]["version"], found["bike"]["policy"]) == (1, "client_wins")
        assert found["bike"]["schema"]["properties"]["device_type"] == {"const": "bike"}
        for domain, shown in found.items():
            one = await edge.http.get(f"{prefix}/meta/schemas/{domain}")
            assert (one.status_code, one.json()) == (200, shown)

    async def test_a_domain_that_is_none_is_not_found(self, edge: Edge) -> None:
        for path in ("/meta/schemas/nothing", "/v1/meta/schemas/nothing", "/meta/schemas/Bike"):
            assert error_of(await edge.http.get(path)) == (404, "NOT_FOUND", [])

    @pytest.mark.parametrize("path", ["/meta/schemas", "/v1/meta/schemas/bike"])
    async def test_what_a_caller_has_is_not_sent_again(self, edge: Edge, path: str) -> None:
        first = await edge.http.get(path)
        tag = first.headers["etag"]
        assert tag.startswith('"')
        assert first.headers["cache-control"] == "public, max-age=300"
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await edge.http.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert (again.headers["etag"], again.headers["cache-control"]) == (tag, "public, max-age=300")
        for unknown in ('"other"', tag.strip('"'), ""):
            again = await edge.http.get(path, headers={"if-none-match": unknown})
            assert (again.status_code, again.content) == (200, first.content)

    async def test_a_connection_goes_on_after_an_answer_without_a_body(self, edge: Edge) -> None:
        tag = (await edge.http.get("/meta/schemas/bike")).headers["etag"].encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        request = b"GET /meta/schemas/bike HTTP/1.1\r\nHost: x\r\nIf-None-Match: " + tag + b"\r\n"
        writer.write(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(20):
            said = await reader.read()
        writer.close()
        heads = [part.partition(b"\r\n")[0] for part in said.split(b"\r\n\r\n")]
        assert heads == [b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 304 Not Modified", b""]
        assert b"transfer-encoding" not in said

    async def test_domains_have_tags_of_their_own(self, edge: Edge) -> None:
        tags = [(await edge.http.get(f"/meta/schemas/{domain}")).headers["etag"] for domain in ("bike", "rower")]
        assert tags[0] != tags[1]

    async def test_a_grpc_caller_reads_the_same_whatever_it_has(self, edge: Edge) -> None:
        rest = await edge.http.get("/meta/schemas")
        async with grpc.aio.insecure_channel(edge.target) as channel:
            stub = meta_pb2_grpc.MetaServiceStub(channel)
            metadata = (("if-none-match", rest.headers["etag"]),)
            body = await stub.ListSchemas(meta_pb2.ListSchemasRequest(), metadata=metadata, timeout=20)
        assert (body.content_type, orjson.loads(body.data)) == ("application/json", rest.json())


class TestAppVersion:
    async def test_what_an_administrator_sets_everybody_reads(self, edge: Edge, admin: dict[str, str]) -> None:
        platform = f"p{uuid4().hex[:20]}"
        answer = await edge.http.put(f"/meta/app_version/{platform}", json=SET, headers=admin)
        assert answer.status_code == 200, answer.text
        answer_of = {"platform": platform, "latest_version": "2.10.0", "min_supported_version": "2.1.0"}
        read = (await edge.http.get("/meta/app_version", params={"platform": platform.upper()})).json()
        assert datetime.fromisoformat(read.pop("updated_at")) == datetime.fromisoformat(answer.json()["updated_at"])
        assert read == {**answer_of, "store_url": STORE, "force_update": False, "update_available": False}

        answer = await edge.http.put(
            f"/v1/meta/app_version/{platform}", json={**SET, "latest_version": "3"}, headers=admin
        )
        assert answer.json()["latest_version"] == "3.0.0"
        read = (await edge.http.get("/v1/meta/app_version", params={"platform": platform})).json()
        assert read["latest_version"] == "3.0.0"

    async def test_versions_compare_as_semver_says(self, edge: Edge, admin: dict[str, str]) -> None:
        platform = f"p{uuid4().hex[:20]}"
        await edge.http.put(f"/meta/app_version/{platform}", json=SET, headers=admin)
        for version, force, update in (
            ("2.0.9", True, True),
            ("2", True, True),
            ("2.1.0-beta.1", True, True),
            ("2.1", False, True),
            ("v2.1.0", False, True),
            ("2.9.0", False, True),
            ("2.10.0-rc.1", False, True),
            ("2.10", False, False),
            ("2.10.0+45", False, False),
            ("3.0.0", False, False),
        ):
            query = {"platform": platform, "version": version}
            read = (await edge.http.get("/meta/app_version", params=query)).json()
            assert (read["force_update"], read["update_available"]) == (force, update), version

    async def test_an_administrator_forces_an_update_of_every_version_below_the_latest(
        self, edge: Edge, admin: dict[str, str]
    ) -> None:
        platform = f"p{uuid4().hex[:20]}"
        answer = await edge.http.put(f"/meta/app_version/{platform}", json={**SET, "force": True}, headers=admin)
        assert answer.json()["force"] is True

        async def forced(version: str) -> bool:
            read = await edge.http.get("/meta/app_version", params={"platform": platform, "version": version})
            return bool(read.json()["force_update"])

        assert [await forced(version) for version in ("2.0.9", "2.9", "2.10", "3.0", "")] == [
            *(True, True, False, False),
            True,  # who does not say what it has is told that the latest is a must
        ]
        answer = await edge.http.put(f"/meta/app_version/{platform}", json=SET, headers=admin)
        assert answer.json()["force"] is False
        assert [await forced(version) for version in ("2.0.9", "2.9", "")] == [True, False, False]

    async def test_what_a_caller_has_is_not_sent_again_until_it_changes(
        self, edge: Edge, admin: dict[str, str]
    ) -> None:
        platform = f"p{uuid4().hex[:20]}"
        await edge.http.put(f"/meta/app_version/{platform}", json=SET, headers=admin)
        path = f"/meta/app_version?platform={platform}&version=2.5"
        first = await edge.http.get(path)
        assert first.headers["cache-control"] == "public, max-age=60"
        known = {"if-none-match": first.headers["etag"]}
        again = await edge.http.get(path, headers=known)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        await edge.http.put(f"/meta/app_version/{platform}", json={**SET, "force": True}, headers=admin)
        changed = await edge.http.get(path, headers=known)
        assert (changed.status_code, changed.json()["force_update"]) == (200, True)
        assert changed.headers["etag"] != first.headers["etag"]

    async def test_a_connection_goes_on_after_nothing_new(self, edge: Edge, admin: dict[str, str]) -> None:
        platform = f"p{uuid4().hex[:20]}"
        await edge.http.put(f"/meta/app_version/{platform}", json=SET, headers=admin)
        path = f"/meta/app_version?platform={platform}"
        tag = (await edge.http.get(path)).headers["etag"]
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\n".encode()
        writer.write(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(20):
            said = await reader.read()
        writer.close()
        heads = [part.partition(b"\r\n")[0] for part in said.split(b"\r\n\r\n")]
        assert heads == [b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 304 Not Modified", b""]

    @pytest.mark.parametrize("path", ["/meta/schemas", "/meta/schemas/bike", "/healthz", "/meta/app_version"])
    async def test_a_cache_keeps_apart_what_pages_of_different_origins_may_read(self, edge: Edge, path: str) -> None:
        for origin in ("https://one.example", "https://two.example"):
            answer = await edge.http.get(path, headers={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["vary"].lower() == "origin"

    async def test_a_platform_nobody_has_set_is_not_found(self, edge: Edge) -> None:
        for query in ({"platform": "nowhere"}, {"platform": "nowhere", "version": "1.0.0"}):
            assert error_of(await edge.http.get("/meta/app_version", params=query)) == (404, "NOT_FOUND", [])

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("", "platform"),
            ("platform=", "platform"),
            ("platform=a%20b", "platform"),
            ("platform=%00", "platform"),
            (f"platform={'x' * 33}", "platform"),
            ("platform=ios&version=new", "version"),
            ("platform=ios&version=1.2.3.4", "version"),
            ("platform=ios&version=%D9%A1.2", "version"),
            (f"platform=ios&version=1.{'1' * 6000}", "version"),
        ],
    )
    async def test_a_question_that_makes_no_sense_is_refused(self, edge: Edge, query: str, field: str) -> None:
        answer = await edge.http.get(f"/meta/app_version?{query}")
        assert error_of(answer) == (400, "VALIDATION_FAILED", [field])

    @pytest.mark.parametrize(
        ("platform", "change", "field"),
        [
            ("ios", {"latest_version": ""}, "latest_version"),
            ("ios", {"latest_version": "newest"}, "latest_version"),
            ("ios", {"min_supported_version": ""}, "min_supported_version"),
            ("ios", {"min_supported_version": "2.10.1"}, "min_supported_version"),
            ("ios", {"store_url": "javascript:alert(1)"}, "store_url"),
            ("ios", {"store_url": "https://example.com/" + "x" * 500}, "store_url"),
            ("ios", {"store_url": "https://example.com/\u0000"}, "store_url"),
            ("a%20b", {}, "platform"),
        ],
    )
    async def test_what_makes_no_sense_is_not_set(
        self, edge: Edge, admin: dict[str, str], platform: str, change: dict[str, str], field: str
    ) -> None:
        answer = await edge.http.put(f"/meta/app_version/{platform}", json={**SET, **change}, headers=admin)
        assert error_of(answer) == (400, "VALIDATION_FAILED", [field])
        assert (await edge.http.get("/meta/app_version?platform=ios")).status_code == 404

    async def test_only_administrators_set_it(self, edge: Edge) -> None:
        phone = await edge.phone()
        answer = await phone.call("PUT", "/meta/app_version/ios", json=SET)
        assert error_of(answer) == (403, "AUTH_FORBIDDEN", [])
        assert (await edge.http.put("/meta/app_version/ios", json=SET)).status_code == 401


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=2, name="test") as opened:
        yield opened


class TestTheGateOfSync:
    async def test_only_what_is_known_to_be_too_old_is_kept_out(self, db: Database) -> None:
        versions = AppVersions(AppVersionStore(db), now=lambda: NOW)
        await versions.set("ios", "2.10", "2.1", STORE)
        answers: dict[tuple[str, str], Any] = {
            ("iOS", "2.0.9"): Gate(supported=False, update_available=True, store_url=STORE),
            ("ios", "2.1"): Gate(supported=True, update_available=True, store_url=STORE),
            ("ios", "2.10.0"): Gate(supported=True, update_available=False, store_url=STORE),
            ("ios", ""): Gate(supported=True, update_available=False, store_url=STORE),
            ("ios", "newest"): OPEN,
            ("android", "0.0.1"): OPEN,
            ("", ""): OPEN,
        }
        assert {asked: await versions.gate(*asked) for asked in answers} == answers

    async def test_a_forced_update_keeps_nobody_from_handing_over(self, db: Database) -> None:
        versions = AppVersions(AppVersionStore(db), now=lambda: NOW)
        await versions.set("ios", "2.10", "2.1", STORE, force=True)
        answers = [await versions.gate("ios", version) for version in ("2.0.9", "2.1", "2.10", "")]
        assert [gate.supported for gate in answers] == [False, True, True, True]

    async def test_it_stands_open_while_the_database_is_away(
        self, new_database: Callable[[], str], server_url: str
    ) -> None:
        url = new_database()
        async with database(url, connections=2, name="test") as db:
            versions = AppVersions(AppVersionStore(db), now=lambda: NOW)
            await versions.set("ios", "2.10", "2.1", STORE)
            assert not (await versions.gate("ios", "1.0.0")).supported
            name = url.partition("?")[0].rpartition("/")[2]
            with psycopg.connect(server_url, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")  # type: ignore[arg-type]
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            assert await versions.gate("ios", "1.0.0") == OPEN
