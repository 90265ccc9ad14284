"""The keys of issuers elsewhere: kept, rotated, stale for a while, and never taken from a token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from runtime.errors import Failure
from runtime.issuers import MAX_BYTES, PAUSE, STALE_AGE, IssuerKeys, issuer_client
from runtime.signed import parse, public_key
from tests.issuers import Issuer, Key, issuer


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def served() -> Iterator[Issuer]:
    with issuer() as started:
        yield started


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with issuer_client() as client:
        yield client


async def reason(keys: IssuerKeys, token: str) -> str:
    """What a token is refused with; empty: it is believed."""
    try:
        await keys.check(parse(token, max_chars=16384))
    except Failure as failure:
        return failure.reason.name
    return ""


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384", "EdDSA"])
async def test_a_token_of_each_kind_of_key_is_believed(served: Issuer, http: httpx.AsyncClient, algorithm: str) -> None:
    served.keys = [Key(algorithm)]
    assert await reason(IssuerKeys(http, issuer=served.url), served.token()) == ""
    assert await reason(IssuerKeys(http, issuer=served.url), Key(algorithm).sign(served.claims())) == "INVALID_TOKEN"


async def test_keys_are_fetched_once_until_they_are_too_old(served: Issuer, http: httpx.AsyncClient) -> None:
    served.answers["/jwks"] = (
        200,
        {"cache-control": "public, max-age=120"},
        json.dumps({"keys": [served.keys[0].jwk]}).encode(),
    )
    clock = Clock()
    keys = IssuerKeys(http, issuer=served.url, jwks_url=f"{served.url}/jwks", clock=clock)
    for _ in range(5):
        assert await reason(keys, served.token()) == ""
    clock.time += 119
    assert await reason(keys, served.token()) == ""
    assert served.asked == ["/jwks"]
    clock.time += 1
    assert await reason(keys, served.token()) == ""
    assert served.asked == ["/jwks", "/jwks"]


async def test_many_who_ask_at_once_share_a_fetch_and_one_who_leaves_ends_it_for_nobody(
    served: Issuer, http: httpx.AsyncClient
) -> None:
    keys = IssuerKeys(http, issuer=served.url, jwks_url=f"{served.url}/jwks")
    served.held.clear()
    callers = [asyncio.create_task(reason(keys, served.token())) for _ in range(20)]
    while not served.asked:
        await asyncio.sleep(0.01)
    callers[0].cancel()
    served.held.set()
    assert await asyncio.gather(*callers[1:]) == [""] * 19
    assert served.asked == ["/jwks"]


async def test_a_new_key_is_found_and_made_up_ids_ask_seldom(served: Issuer, http: httpx.AsyncClient) -> None:
    clock = Clock()
    keys = IssuerKeys(http, issuer=served.url, jwks_url=f"{served.url}/jwks", clock=clock)
    assert await reason(keys, served.token()) == ""
    served.keys.append(Key(kid="two"))
    clock.time += PAUSE
    assert await reason(keys, served.token()) == ""
    assert len(served.asked) == 2
    for number in range(50):
        assert await reason(keys, Key.sign(served.keys[0], served.claims(), kid=f"made up {number}")) == "INVALID_TOKEN"
    assert len(served.asked) == 2


async def test_a_key_that_is_withdrawn_is_good_no_more(served: Issuer, http: httpx.AsyncClient) -> None:
    clock = Clock()
    keys = IssuerKeys(http, issuer=served.url, clock=clock)
    old = served.token()
    assert await reason(keys, old) == ""
    served.keys = [Key(kid="two")]
    clock.time += 301
    assert await reason(keys, old) == "INVALID_TOKEN"


async def test_while_the_issuer_is_away_its_last_keys_are_good_for_a_day(
    served: Issuer, http: httpx.AsyncClient
) -> None:
    clock = Clock()
    keys = IssuerKeys(http, issuer=served.url, clock=clock)
    token = served.token()
    assert await reason(keys, token) == ""
    served.go_away()
    clock.time += STALE_AGE - 1
    assert await reason(keys, token) == ""
    assert await reason(keys, Key(kid="two").sign(served.claims())) == "UNAVAILABLE"
    clock.time += 1
    assert await reason(keys, token) == "UNAVAILABLE"
    served.come_back()
    clock.time += PAUSE
    assert await reason(keys, token) == ""


async def test_without_any_keys_an_issuer_that_is_away_is_left_alone_for_a_moment(
    served: Issuer, http: httpx.AsyncClient
) -> None:
    served.go_away()
    keys = IssuerKeys(http, issuer=served.url, jwks_url=f"{served.url}/jwks", clock=Clock())
    for _ in range(10):
        assert await reason(keys, served.token()) == "UNAVAILABLE"
    assert len(served.asked) == 1


async def test_an_issuer_that_refuses_connections_is_away(http: httpx.AsyncClient) -> None:
    with issuer() as gone:
        token = gone.token()
    assert await reason(IssuerKeys(http, issuer=gone.url), token) == "UNAVAILABLE"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [7, null, {}, {"kty": "RSA"}, {"kty": ["RSA"], "alg": {}}, {"kty": "EC", "crv": "P-256", "x": 7}]}',
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "one", "alg": "HS256"}]}',
        b"[" * 100_000,
        b'{"keys": [], "x": "' + b"x" * MAX_BYTES + b'"}',
    ],
    ids=lambda body: body[:20].decode(),
)
async def test_what_is_no_key_set_is_no_answer(served: Issuer, http: httpx.AsyncClient, body: bytes) -> None:
    served.answers["/jwks"] = (200, {}, body)
    assert await reason(IssuerKeys(http, issuer=served.url), served.token()) == "UNAVAILABLE"


async def test_a_key_set_beyond_all_measure_is_not_read_to_its_end(served: Issuer, http: httpx.AsyncClient) -> None:
    whole = json.dumps({"keys": [served.keys[0].jwk], "x": "x" * MAX_BYTES}).encode()
    served.answers["/jwks"] = (200, {}, whole)
    assert await reason(IssuerKeys(http, issuer=served.url), served.token()) == "UNAVAILABLE"


async def test_no_redirect_is_followed(served: Issuer, http: httpx.AsyncClient) -> None:
    with issuer() as other:
        served.answers["/jwks"] = (302, {"location": f"{other.url}/jwks"}, b"")
        assert await reason(IssuerKeys(http, issuer=served.url), other.token()) == "UNAVAILABLE"
        assert other.asked == []


@pytest.mark.parametrize("wrong", ["issuer", "jwks_uri"])
async def test_a_discovery_document_must_be_the_issuers_own(
    served: Issuer, http: httpx.AsyncClient, wrong: str
) -> None:
    document = {"issuer": served.url, "jwks_uri": f"{served.url}/jwks", wrong: "http://example.com/jwks"}
    served.answers["/.well-known/openid-configuration"] = (200, {}, json.dumps(document).encode())
    assert await reason(IssuerKeys(http, issuer=served.url), served.token()) == "UNAVAILABLE"
    assert "/jwks" not in served.asked


async def test_a_token_without_a_key_id_is_good_where_there_is_one_key(served: Issuer, http: httpx.AsyncClient) -> None:
    token = served.keys[0].sign(served.claims(), kid=None)
    assert await reason(IssuerKeys(http, issuer=served.url), token) == ""
    served.keys.append(Key(kid="two"))
    assert await reason(IssuerKeys(http, issuer=served.url), token) == "INVALID_TOKEN"


def test_a_key_that_is_too_small_or_not_for_signatures_is_no_key() -> None:
    key = Key()
    assert public_key(key.jwk) is not None
    assert public_key({**key.jwk, "use": "enc"}) is None
    assert public_key({**key.jwk, "alg": "HS256"}) is None
    assert public_key({**key.jwk, "alg": "ES256"}) is None
    key.private = rsa.generate_private_key(65537, 1024)
    assert public_key(key.jwk) is None
    assert public_key({**Key("ES256").jwk, "alg": "ES384"}) is None


async def test_a_key_is_used_with_its_own_algorithm_alone(served: Issuer, http: httpx.AsyncClient) -> None:
    other = served.keys[0].sign(served.claims(), alg="PS256")
    assert await reason(IssuerKeys(http, issuer=served.url), other) == "INVALID_TOKEN"
