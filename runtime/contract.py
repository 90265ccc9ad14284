"""Owns the contract: reads from the descriptors who may call each rpc, how often, and how its errors look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from google.api import annotations_pb2, httpbody_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from satchel.auth.v1 import (
    application_tokens_pb2,
    auth_pb2,
    deletions_pb2,
    devices_pb2,
    emails_pb2,
    exports_pb2,
    garmin_credentials_pb2,
    guests_pb2,
    passwords_pb2,
    second_factors_pb2,
    security_events_pb2,
    sso_pb2,
    subscriptions_pb2,
    token_exchange_pb2,
    users_pb2,
)
from satchel.garmin.v1 import garmin_pb2
from satchel.health.v1 import health_pb2, page_pb2, reference_pb2
from satchel.options.v1 import options_pb2 as options
from satchel.sessions.v1 import (
    device_sessions_pb2,
    exercise_sessions_pb2,
    health_metrics_pb2,
    meta_pb2,
    puzzle_sessions_pb2,
    stats_pb2,
    sync_pb2,
    workout_plans_pb2,
)
from satchel.uploads.v1 import uploads_pb2

FILES: Final = (
    auth_pb2,
    sso_pb2,
    devices_pb2,
    security_events_pb2,
    passwords_pb2,
    emails_pb2,
    subscriptions_pb2,
    second_factors_pb2,
    guests_pb2,
    deletions_pb2,
    exports_pb2,
    users_pb2,
    garmin_credentials_pb2,
    application_tokens_pb2,
    token_exchange_pb2,
    exercise_sessions_pb2,
    puzzle_sessions_pb2,
    device_sessions_pb2,
    stats_pb2,
    sync_pb2,
    meta_pb2,
    health_metrics_pb2,
    workout_plans_pb2,
    uploads_pb2,
    health_pb2,
    garmin_pb2,
    page_pb2,
    reference_pb2,
)

# The rpcs of gRPC itself carry no options of ours: probes and grpcurl may call them without a token.
INFRASTRUCTURE: Final = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.reflection.v1.ServerReflection",
)


# The one service whose rpcs are closed to who acts for a user, unless they say otherwise.
_GUARDED: Final = "satchel.auth.v1"


class ContractError(Exception):
    """The protos leave something open that a server must know."""


@dataclass(frozen=True)
class Limit:
    """A number of calls in a moving window."""

    count: int
    window: int
    """Seconds."""
    scope: int
    """satchel.options.v1.Scope."""
    account_field: str


@dataclass(frozen=True)
class HttpRule:
    """One REST door of an rpc."""

    verb: str
    path: str


@dataclass(frozen=True)
class Policy:
    """What the contract says of one rpc."""

    method: str
    """As on the wire: /package.Service/Method."""
    access: int
    """satchel.options.v1.Access."""
    limits: tuple[Limit, ...]
    dialect: int
    """satchel.options.v1.Dialect."""
    takes_key: bool
    """Whether an idempotency key is honoured."""
    success_status: int
    camel_case: bool
    read_only: bool
    """Whether a repeat is safe whatever happened to the first call (NO_SIDE_EFFECTS)."""
    http: tuple[HttpRule, ...]
    delegable: bool = True
    """Whether it is open to an application's token, and to a service that acts for a user."""
    events: bool = False
    """Whether one request is answered by a stream of messages, each of them whole by itself."""

    @property
    def service(self) -> str:
        """Full name of the service, such as satchel.auth.v1.AuthService."""
        return self.method[1:].partition("/")[0]


def services() -> tuple[ServiceDescriptor, ...]:
    """Every service of the product, in the order of the files."""
    return tuple(service for file in FILES for service in file.DESCRIPTOR.services_by_name.values())


def policies(descriptors: Iterable[ServiceDescriptor] | None = None) -> dict[str, Policy]:
    """The policy of every rpc by its wire name, those of gRPC itself included.

    Raises ContractError for an rpc that does not say who may call it, or that answers REST in no dialect.
    """
    found = {
        policy.method: policy
        for service in (services() if descriptors is None else descriptors)
        for method in service.methods
        for policy in (_policy(method),)
    }
    for service in INFRASTRUCTURE:
        for method in ("Check", "Watch", "List", "ServerReflectionInfo"):
            name = f"/{service}/{method}"
            found[name] = Policy(name, options.ACCESS_PUBLIC, (), options.DIALECT_CORE, False, 200, False, True, ())
    return found


def _policy(method: MethodDescriptor) -> Policy:
    name = f"/{method.containing_service.full_name}/{method.name}"
    said = method.GetOptions()
    access = said.Extensions[options.access]
    if access == options.ACCESS_UNSPECIFIED:
        raise ContractError(f"{name} does not say who may call it: give it option (satchel.options.v1.access)")
    dialect = said.Extensions[options.errors]
    if dialect == options.DIALECT_UNSPECIFIED:
        raise ContractError(f"{name} names no error dialect: give it option (satchel.options.v1.errors)")
    return Policy(
        method=name,
        access=access,
        limits=tuple(_limit(name, method, limit) for limit in said.Extensions[options.rate_limit]),
        dialect=dialect,
        takes_key=said.Extensions[options.idempotency] == options.IDEMPOTENCY_OPTIONAL,
        success_status=said.Extensions[options.success_status] or 200,
        camel_case=said.Extensions[options.camel_case],
        read_only=said.idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
        http=tuple(_http_rules(said)),
        delegable=said.Extensions[options.delegable] or method.containing_service.file.package != _GUARDED,
        events=(
            method.server_streaming
            and not method.client_streaming
            and method.output_type.full_name != httpbody_pb2.HttpBody.DESCRIPTOR.full_name
        ),
    )


def _limit(name: str, method: MethodDescriptor, limit: options.RateLimit) -> Limit:
    if limit.count < 1 or limit.window.seconds < 1 or limit.scope == options.SCOPE_UNSPECIFIED:
        raise ContractError(f"{name} has a rate limit without a count, a window or a scope")
    by_account = limit.scope == options.SCOPE_IP_AND_ACCOUNT
    if by_account and limit.account_field not in method.input_type.fields_by_name:
        raise ContractError(f"{name} limits by an account field that its request does not have")
    return Limit(limit.count, limit.window.seconds, limit.scope, limit.account_field)


def _http_rules(said: descriptor_pb2.MethodOptions) -> Iterator[HttpRule]:
    rule = said.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        verb = binding.WhichOneof("pattern")
        if verb == "custom":
            yield HttpRule(binding.custom.kind, binding.custom.path)
        elif verb:
            yield HttpRule(verb.upper(), getattr(binding, verb))
