"""Access tokens under attack: ours, a service's and those of a Supabase project; whatever comes is a Failure."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.call import Principal
from runtime.config import Config
from runtime.errors import Failure
from runtime.foreign import LEEWAY as FOREIGN_LEEWAY
from runtime.foreign import foreign_tokens
from runtime.identity import ISSUER, LEEWAY, MESH_AUDIENCE, Revocations, Verifier
from services.auth.tokens import PREFIX, parse_refresh_token
from tests.issuers import Issuer, Key, b64, compact, issuer, signed_with_secret

NOW = 1_772_100_000
USER, SIGN_IN = uuid4(), uuid4()
MESH_SECRET = b"m" * 32
PROJECT_SECRET = b"a project's own secret, of some length"
BAD = "INVALID_TOKEN"


@dataclass
class Door:
    """A verifier, and what it takes to get past it."""

    verifier: Verifier
    revocations: Revocations
    key: Key
    project: Issuer
    clock: list[float] = field(default_factory=lambda: [float(NOW)])

    def claims(self, **given: Any) -> dict[str, Any]:
        claims = {
            "iss": ISSUER,
            "sub": str(USER),
            "sid": str(SIGN_IN),
            "tenant_id": 3,
            "role": "user",
            "tier": "pro",
            "iat": NOW,
            "exp": NOW + 3600,
            **given,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def project_claims(self, **given: Any) -> dict[str, Any]:
        claims = {
            "iss": self.project.url,
            "aud": "authenticated",
            "sub": str(USER),
            "role": "authenticated",
            "session_id": str(SIGN_IN),
            "iat": NOW,
            "exp": NOW + 3600,
            **given,
        }
        return {name: value for name, value in claims.items() if value is not None}

    async def principal(self, token: str) -> Principal:
        return await self.verifier.principal(f"Bearer {token}")

    async def reason(self, token: str) -> str:
        try:
            await self.principal(token)
        except Failure as failure:
            return failure.reason.name
        return ""


@pytest.fixture(scope="module")
def project() -> Iterator[Issuer]:
    with issuer() as started:
        started.keys = [Key("ES256")]
        yield started


@pytest.fixture
async def doors(project: Issuer) -> AsyncIterator[Callable[..., Any]]:
    """Makes doors that take the project's tokens by secret, by keys, or not at all."""
    stack = []

    async def make(*, secret: bytes = b"", foreign: bool = True) -> Door:
        key = Key("ES256", kid="ours")
        clock = [float(NOW)]
        config = Config(
            database_url="postgresql://nowhere/none",
            supabase_issuer=project.url if foreign else "",
            supabase_jwt_secret=secret.decode(),
            supabase_tenant=9,
        )
        block = foreign_tokens(config, clock=lambda: clock[0])
        tokens = await block.__aenter__()
        stack.append(block)
        revocations = Revocations(clock=lambda: clock[0])
        revocations.add_deleted([])
        revocations.add([])

        async def fetch() -> list[dict[str, str]]:
            return [key.jwk]

        verifier = Verifier(
            fetch_keys=fetch,
            mesh_secret=MESH_SECRET,
            revocations=revocations,
            foreign=tokens,
            clock=lambda: clock[0],
        )
        return Door(verifier, revocations, key, project, clock)

    yield make
    for block in stack:
        await block.__aexit__(None, None, None)


@pytest.fixture
async def door(doors: Callable[..., Any]) -> Door:
    made: Door = await doors()
    return made


class TestOurs:
    async def test_a_good_one_speaks_for_its_user(self, door: Door) -> None:
        known = await door.principal(door.key.sign(door.claims()))
        assert known == Principal(user_id=USER, sign_in_id=SIGN_IN, tenant_id=3, role="user", tier="pro")

    async def test_one_without_a_signature_is_refused(self, door: Door) -> None:
        for alg in ("none", "None", "nOnE", "", None, 7, ["ES256"], {"a": 1}):
            assert await door.reason(compact({"alg": alg, "kid": "ours"}, door.claims())) == BAD
        assert await door.reason(compact({"alg": "ES256", "kid": "ours"}, door.claims())) == BAD

    async def test_the_public_key_is_no_secret(self, door: Door) -> None:
        for claims in (door.claims(), door.claims(aud=MESH_AUDIENCE, sub="service:x")):
            for secret in (door.key.pem, door.key.pem.strip(), json.dumps(door.key.jwk).encode(), b""):
                assert await door.reason(signed_with_secret({"alg": "HS256", "kid": "ours"}, claims, secret)) == BAD

    async def test_who_knows_the_meshs_secret_speaks_for_no_user(self, door: Door) -> None:
        header = {"alg": "HS256", "kid": "ours"}
        assert await door.reason(signed_with_secret(header, door.claims(), MESH_SECRET)) == BAD
        assert await door.reason(signed_with_secret(header, door.claims(aud=MESH_AUDIENCE), MESH_SECRET)) == BAD
        service = door.claims(aud=MESH_AUDIENCE, role="admin", sub="service:garmin")
        known = await door.principal(signed_with_secret(header, service, MESH_SECRET))
        assert (known.role, known.user_id) == ("service", UUID(int=0))

    async def test_a_users_token_is_no_service_whatever_it_says(self, door: Door) -> None:
        assert (await door.principal(door.key.sign(door.claims(role="service")))).role == "user"
        for aud in (MESH_AUDIENCE, [MESH_AUDIENCE], "authenticated", "", []):
            assert await door.reason(door.key.sign(door.claims(aud=aud, role="service"))) == BAD

    async def test_a_key_id_looks_nothing_up_but_keys(self, door: Door) -> None:
        for kid in (None, "", "../../keys/mesh.key", "/dev/null", "' OR 1=1 --", "\0", "x" * 7000):
            assert await door.reason(door.key.sign(door.claims(), kid=kid)) == BAD

    async def test_nobody_asks_where_a_token_says_that_its_keys_are(self, door: Door) -> None:
        forger = Key("ES256", kid="ours")
        with issuer() as other:
            other.keys = [forger]
            for header in ({"jku": f"{other.url}/jwks"}, {"x5u": f"{other.url}/x"}, {"jwk": forger.jwk}):
                assert await door.reason(forger.sign(door.claims(), **header)) == BAD
                assert await door.reason(forger.sign(door.claims(), kid="new", **header)) == BAD
            assert await door.reason(forger.sign(door.claims(iss=other.url))) == BAD
            assert other.asked == []

    async def test_another_kind_of_key_or_algorithm_is_refused(self, door: Door) -> None:
        for algorithm in ("RS256", "ES384", "EdDSA"):
            assert await door.reason(Key(algorithm, kid="ours").sign(door.claims())) == BAD

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"iss": iss} for iss in (None, "", "satchel ", "Satchel", 7, ["satchel"])),
            *({"sub": sub} for sub in (None, "", "x", 7, [], "1234")),
            *({"sid": sid} for sid in (None, "", "x", 7, {})),
            *({"tenant_id": tenant} for tenant in (None, "x", [], {}, 1e999)),
            {"role": None},
            {"tier": None},
            *({"exp": exp} for exp in (None, "x", str(NOW + 60), True, [], 10**30)),
            *({"iat": iat} for iat in (None, "x", True, 10**30)),
            {"nbf": NOW + 60},
        ],
    )
    async def test_what_it_must_say(self, door: Door, wrong: dict[str, Any]) -> None:
        assert await door.reason(door.key.sign(door.claims(**wrong))) == BAD

    async def test_the_leeway_has_edges(self, door: Door) -> None:
        for exp, iat, reason in (
            (NOW - LEEWAY + 1, NOW - 100, ""),
            (NOW - LEEWAY, NOW - 100, "TOKEN_EXPIRED"),
            (NOW + 100, NOW + LEEWAY, ""),
            (NOW + 100, NOW + LEEWAY + 1, BAD),
        ):
            assert await door.reason(door.key.sign(door.claims(exp=exp, iat=iat))) == reason

    async def test_what_was_believed_once_expires_all_the_same(self, door: Door) -> None:
        token = door.key.sign(door.claims(exp=NOW + 10))
        assert await door.reason(token) == ""
        door.clock[0] = NOW + 10 + LEEWAY
        assert await door.reason(token) == "TOKEN_EXPIRED"

    async def test_a_huge_or_deep_one_is_refused_in_no_time(self, door: Door) -> None:
        header = {"alg": "ES256", "kid": "ours"}
        huge = (
            "x" * 10_000_000,
            "." * 8000,
            compact(b"[" * 3000, b"{}"),
            compact(header, b'{"a":' * 1000 + b"1" + b"}" * 1000, b"x" * 64),
            compact(b'{"alg": ' + b"9" * 5500 + b"}", b"{}"),
            door.key.sign(door.claims(x="x" * 9000)),
        )
        started = time.perf_counter()
        for token in huge:
            assert await door.reason(token) == BAD
        assert time.perf_counter() - started < 2


class TestOfAProject:
    async def test_by_its_published_keys(self, door: Door) -> None:
        known = await door.principal(door.project.keys[0].sign(door.project_claims()))
        assert known == Principal(
            user_id=USER, sign_in_id=SIGN_IN, tenant_id=9, role="user", tier="free", issuer=door.project.url
        )

    async def test_by_its_secret(self, doors: Callable[..., Any]) -> None:
        door = await doors(secret=PROJECT_SECRET)
        good = signed_with_secret({"alg": "HS256", "typ": "JWT"}, door.project_claims(), PROJECT_SECRET)
        assert (await door.principal(good)).user_id == USER
        assert await door.reason(door.project.keys[0].sign(door.project_claims())) == BAD

    async def test_each_secret_and_key_is_good_for_its_own_issuer_alone(self, doors: Callable[..., Any]) -> None:
        door = await doors(secret=PROJECT_SECRET)
        header = {"alg": "HS256"}
        assert await door.reason(signed_with_secret(header, door.project_claims(), MESH_SECRET)) == BAD
        for aud in (MESH_AUDIENCE, ["authenticated", MESH_AUDIENCE]):
            ours = door.claims(aud=aud)
            assert await door.reason(signed_with_secret(header, ours, PROJECT_SECRET)) == BAD
        assert await door.reason(door.key.sign(door.project_claims())) == BAD
        by_keys = await doors()
        assert await by_keys.reason(by_keys.project.keys[0].sign(by_keys.claims(), kid="ours")) == BAD
        assert await by_keys.reason(signed_with_secret(header, by_keys.project_claims(), PROJECT_SECRET)) == BAD

    async def test_its_public_key_is_no_secret(self, door: Door) -> None:
        key = door.project.keys[0]
        for secret in (key.pem, json.dumps(key.jwk).encode(), b""):
            forged = signed_with_secret({"alg": "HS256", "kid": key.kid}, door.project_claims(), secret)
            assert await door.reason(forged) == BAD
        assert await door.reason(compact({"alg": "none"}, door.project_claims())) == BAD

    async def test_without_the_setting_nobody_elses_are_good(self, doors: Callable[..., Any]) -> None:
        door = await doors(foreign=False)
        assert await door.reason(door.project.keys[0].sign(door.project_claims())) == BAD

    async def test_what_it_says_of_roles_is_nothing_to_us(self, door: Door) -> None:
        token = door.project.keys[0].sign(
            door.project_claims(
                role="admin",
                tier="studio",
                tenant_id=1,
                sid=str(uuid4()),
                app_metadata={"role": "admin", "tier": "studio"},
                user_metadata={"role": "service"},
            )
        )
        known = await door.principal(token)
        assert (known.role, known.tier, known.tenant_id) == ("user", "free", 9)

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"aud": aud} for aud in (None, "anon", "satchel-mesh", [], 7)),
            *({"sub": sub} for sub in (None, "", "x", 7, str(UUID(int=0)), "{" + str(USER) + "}", USER.hex)),
            *({"exp": exp} for exp in (None, "x", True, 10**30)),
            *({"iat": iat} for iat in (None, 10**30)),
        ],
    )
    async def test_what_it_must_say(self, door: Door, wrong: dict[str, Any]) -> None:
        assert await door.reason(door.project.keys[0].sign(door.project_claims(**wrong))) == BAD

    async def test_an_anonymous_user_is_one_too(self, door: Door) -> None:
        claims = door.project_claims(is_anonymous=True, aud=["authenticated"], email="")
        assert await door.reason(door.project.keys[0].sign(claims)) == ""

    async def test_a_sign_in_without_a_uuid_gets_one_that_stays(self, door: Door) -> None:
        sign = door.project.keys[0].sign
        ids = [
            (await door.principal(sign(door.project_claims(**given)))).sign_in_id
            for given in (
                {"session_id": None},
                {"session_id": None, "exp": NOW + 60},
                {"session_id": "x"},
                {"session_id": "x", "sub": str(uuid4())},
            )
        ]
        assert ids[0] == ids[1]
        assert len(set(ids)) == 3

    async def test_the_leeway_has_edges(self, door: Door) -> None:
        leeway = int(FOREIGN_LEEWAY)
        sign = door.project.keys[0].sign
        assert await door.reason(sign(door.project_claims(exp=NOW - leeway + 1))) == ""
        assert await door.reason(sign(door.project_claims(exp=NOW - leeway))) == "TOKEN_EXPIRED"
        assert await door.reason(sign(door.project_claims(iat=NOW + leeway))) == ""
        assert await door.reason(sign(door.project_claims(iat=NOW + leeway + 1))) == BAD

    async def test_who_is_deleted_here_is_refused_whatever_is_issued(self, door: Door) -> None:
        sign = door.project.keys[0].sign
        old = sign(door.project_claims())
        assert await door.reason(old) == ""
        door.revocations.add_deleted([USER])
        assert await door.reason(old) == "TOKEN_REVOKED"
        door.clock[0] += 90 * 24 * 3600
        now = int(door.clock[0])
        later = sign(door.project_claims(iat=now, exp=now + 60, session_id=str(uuid4())))
        assert await door.reason(later) == "TOKEN_REVOKED"

    async def test_until_it_is_known_who_is_deleted_nobody_elses_users_are_let_in(self, door: Door) -> None:
        vars(door.revocations).update(vars(Revocations()))  # as at the start of a process
        assert await door.reason(door.project.keys[0].sign(door.project_claims())) == "UNAVAILABLE"
        assert await door.reason(door.key.sign(door.claims())) == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_HEADERS = st.fixed_dictionaries(
    {"alg": st.sampled_from(["ES256", "HS256", "RS256", "none", 7, None, [], {}])},
    optional={"kid": st.just("ours") | _JSON, "b64": st.booleans(), "crit": _JSON, "typ": _JSON},
)
_CLAIMS = st.dictionaries(
    st.sampled_from(["iss", "sub", "sid", "tenant_id", "role", "tier", "exp", "iat", "nbf", "aud", "session_id"]),
    _JSON,
    max_size=5,
)


class TestWhatever:
    @settings(max_examples=200)
    @given(
        st.text(max_size=80)
        | st.builds(compact, _HEADERS | _JSON | st.binary(max_size=50), _CLAIMS | _JSON, st.binary(max_size=80))
        | st.lists(st.text("abcXYZ019-_=+/ ", max_size=30), max_size=5).map(".".join)
    )
    async def test_comes_as_a_header_is_refused(self, door: Door, text: str) -> None:
        for authorization in (text, f"Bearer {text}", f"bearer  {text}"):
            with pytest.raises(Failure) as refused:
                await door.verifier.principal(authorization)
            assert refused.value.reason.row.http == 401

    @settings(max_examples=150)
    @given(_CLAIMS)
    async def test_our_own_keys_sign_is_a_principal_or_a_refusal(self, door: Door, claims: dict[str, Any]) -> None:
        tokens = (
            door.key.sign({**door.claims(), **claims}),
            signed_with_secret({"alg": "HS256"}, {**door.claims(aud=MESH_AUDIENCE), **claims}, MESH_SECRET),
            door.project.keys[0].sign({**door.project_claims(), **claims}),
        )
        for token in tokens:
            assert await door.reason(token) in ("", BAD, "TOKEN_EXPIRED")

    @settings(max_examples=200)
    @given(
        st.text(max_size=120)
        | st.text(max_size=100).map(lambda text: PREFIX + text)
        | st.binary(max_size=80).map(lambda raw: PREFIX + b64(raw))
    )
    def test_comes_as_a_refresh_token_is_one_or_refused(self, text: str) -> None:
        try:
            parsed = parse_refresh_token(text)
        except Failure as failure:
            assert failure.reason.name == BAD
        else:
            assert parse_refresh_token(str(parsed)) == parsed
