"""Owns who wins when a phone's change meets another version on the server: five policies, each a pure function."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from runtime.errors import invalid, missing


class Strategy(StrEnum):
    """How a conflict is decided."""

    CLIENT_WINS = "client_wins"
    SERVER_WINS = "server_wins"
    MOST_RECENT_WINS = "most_recent_wins"
    """The later change by the phones' clocks, corrected and never later than now; a tie goes to the server."""
    PRESERVE_ESCALATION = "preserve_escalation"
    """The phone's content, with what the server knows of an escalation."""
    MANUAL = "manual"
    """Kept with both sides until somebody decides."""


class Winner(StrEnum):
    """Whose version stands after a conflict."""

    CLIENT = "client"
    SERVER = "server"
    MERGED = "merged"
    NONE = "none"
    """Nobody's yet: the server's stays until somebody decides."""


ESCALATION: Final = ("escalation_level", "escalated_at", "escalated_by", "status")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a tenant has decided for a domain."""

    strategy: Strategy
    auto_resolve: bool
    """Whether conflicts are decided at once; always false for MANUAL."""
    notify_on_conflict: bool
    """Whether the user's other devices are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two versions that met."""

    data: dict[str, Any] | None
    """None: deleted."""
    time: datetime
    """When the change was made, by its phone's corrected clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a policy makes of two sides."""

    winner: Winner
    data: dict[str, Any] | None
    """What the record holds afterwards; None: it is deleted."""


def default_policy(strategy: Strategy) -> Policy:
    """The policy of a domain whose schema file names `strategy`, for tenants that have not decided."""
    return Policy(strategy=strategy, auto_resolve=strategy is not Strategy.MANUAL, notify_on_conflict=False)


def parse_policy(strategy: str, auto_resolve: bool | None, notify_on_conflict: bool) -> Policy:
    """A policy by its names. Raises Failure: FIELD_MISSING, FIELD_INVALID, also for manual with auto_resolve."""
    if not strategy:
        raise missing("resolution_policy")
    if strategy not in tuple(Strategy):
        raise invalid("resolution_policy", f"must be one of {', '.join(Strategy)}", "UNKNOWN_VALUE")
    manual = strategy == Strategy.MANUAL
    if manual and auto_resolve:
        raise invalid("auto_resolve", "must be false for manual")
    return Policy(
        strategy=Strategy(strategy),
        auto_resolve=not manual if auto_resolve is None else auto_resolve,
        notify_on_conflict=notify_on_conflict,
    )


def judge(policy: Policy, *, server: Side, client: Side) -> Verdict:
    """Who wins. A policy that does not resolve by itself leaves the server's version until somebody decides."""
    undecided = Verdict(winner=Winner.NONE, data=server.data)
    if not policy.auto_resolve:
        return undecided
    match policy.strategy:
        case Strategy.CLIENT_WINS:
            return Verdict(winner=Winner.CLIENT, data=client.data)
        case Strategy.SERVER_WINS:
            return Verdict(winner=Winner.SERVER, data=server.data)
        case Strategy.MOST_RECENT_WINS:
            if client.time > server.time:
                return Verdict(winner=Winner.CLIENT, data=client.data)
            return Verdict(winner=Winner.SERVER, data=server.data)
        case Strategy.PRESERVE_ESCALATION:
            return _preserve_escalation(server, client)
        case _:
            return undecided


def _preserve_escalation(server: Side, client: Side) -> Verdict:
    """A merge; where one side is a deletion, an escalated ticket stays and any other follows the phone."""
    if server.data is None:
        return Verdict(winner=Winner.CLIENT, data=client.data)
    kept: dict[str, Any] = {name: server.data[name] for name in ESCALATION if name in server.data}
    if client.data is None:
        escalated = bool(server.data.get("escalation_level"))
        return Verdict(winner=Winner.SERVER if escalated else Winner.CLIENT, data=server.data if escalated else None)
    own = {name: value for name, value in client.data.items() if name not in ESCALATION}
    return Verdict(winner=Winner.MERGED, data={**own, **kept})
