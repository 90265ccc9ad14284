"""Two phones of one user, one call after the other and nothing broken: every answer is the model's, word for word."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from tests.convergence.doors import change_to_pb, entry_from_pb, logged_from_pb, receipt_from_pb
from tests.convergence.ledger import SLACK, now, shown
from tests.convergence.model import Change, Key, Met, Model, Receipt, Span
from tests.convergence.schedule import POLICIES
from tests.convergence.world import World
from tests.factories import Phone

MINUTE = 60_000_000

contents = st.none() | st.fixed_dictionaries(
    {"title": st.sampled_from(["a", "b"])},
    optional={"status": st.sampled_from(["open", "shut"]), "escalation_level": st.integers(0, 1)},
)
edits = st.fixed_dictionaries(
    {
        "domain": st.sampled_from(list(POLICIES)),
        "number": st.integers(0, 1),
        "data": contents,
        "behind": st.sampled_from([0, 0, 0, 1, 2, None]),  # versions; None: the phone does not say
        "minutes": st.sampled_from([-3, -2, -2, -1, 5]),  # that the phone's clock is ahead
        "group": st.sampled_from(["", "", "", "", "one", "two"]),
        "bad": st.sampled_from([False] * 12 + [True]),
    }
)


class TwoPhones(RuleBasedStateMachine):
    """The user's phones share the account; each has a cursor of its own."""

    stub: pb_grpc.SyncServiceStub
    metadata: Any
    end = ""
    """The cursor behind everything that examples before this one have left."""

    @initialize()
    def begin(self) -> None:
        self.name = uuid4().hex
        self.began = self.end
        self.noon = now()
        self.model = Model(POLICIES)
        self.cursors = [(self.began, 0), (self.began, 0)]
        self.sent: list[tuple[pb.PushChangesRequest, list[Receipt]]] = []
        self.met: dict[str, Met] = {}
        self.numbers = itertools.count()

    @rule(said=st.lists(edits, min_size=1, max_size=5), has_key=st.booleans())
    def push(self, said: list[dict[str, Any]], has_key: bool) -> None:
        changes: list[Change] = []
        for one in said:
            change = self._change(one)
            if not any(change.group and (other.group, other.key) == (change.group, change.key) for other in changes):
                changes.append(change)
        request = pb.PushChangesRequest(
            changes=[change_to_pb(one) for one in changes],
            idempotency_key=f"{self.name}-{next(self.numbers)}" if has_key else "",
        )
        sent = now()
        receipts = self._push(request)
        heard = now()
        times = [Span(min(one.time, sent - SLACK), min(one.time, heard + SLACK)) for one in changes]
        expected, met = self.model.push(changes, times, receipts)
        assert receipts == expected
        for receipt, conflict in zip(receipts, met, strict=True):
            if receipt.notice is not None and conflict is not None:
                self.met[receipt.notice.conflict_id] = conflict
        assert self.model.photos == 0 or any(one.time > sent for one in changes), (
            "only a clock ahead is too close to call"
        )
        if has_key:
            self.sent.append((request, receipts))

    @precondition(lambda self: self.sent)
    @rule(which=st.floats(0, 0.99))
    def repeat(self, which: float) -> None:
        request, receipts = self.sent[int(which * len(self.sent))]
        again = self._push(request)
        assert again == receipts
        assert _ids(again) == _ids(receipts)

    @precondition(lambda self: self.sent)
    @rule(which=st.floats(0, 0.99))
    def misuse(self, which: float) -> None:
        request, _ = self.sent[int(which * len(self.sent))]
        other = pb.PushChangesRequest()
        other.CopyFrom(request)
        other.changes[0].id += "-other"
        with pytest.raises(grpc.RpcError) as refused:
            self._push(other)
        assert refused.value.code() is grpc.StatusCode.ABORTED

    @rule(phone=st.integers(0, 1), limit=st.sampled_from([1, 2, 5, 1000]))
    def pull(self, phone: int, limit: int) -> None:
        cursor, position = self.cursors[phone]
        answer = self.stub.PullChanges(pb.PullChangesRequest(cursor=cursor, limit=limit), metadata=self.metadata)
        news = [entry for entry in self.model.feed() if self.model.records[entry[0]].position > position]
        assert [tuple(entry_from_pb(one)) for one in answer.changes] == news[:limit]
        assert answer.has_more == (len(news) > limit)
        if news:
            position = self.model.records[news[:limit][-1][0]].position
        self.cursors[phone] = answer.next_cursor, position

    @precondition(lambda self: self.met)
    @rule(
        which=st.floats(0, 0.99),
        choice=st.sampled_from(["accept_server", "accept_client", "merge"]),
        title=st.sampled_from(["a", "c"]),
    )
    def decide(self, which: float, choice: str, title: str) -> None:
        id, met = list(self.met.items())[int(which * len(self.met))]
        request = pb.ResolveConflictRequest(conflict_id=id, resolution=choice)
        merged = {"title": title} if choice == "merge" else None
        if merged:
            request.client_data.CopyFrom(json_format.ParseDict(merged, Struct()))
        if met.winner != "none":
            with pytest.raises(grpc.RpcError) as refused:
                self.stub.ResolveConflict(request, metadata=self.metadata)
            assert refused.value.code() is grpc.StatusCode.ABORTED
            return
        sent = now()
        version = self.stub.ResolveConflict(request, metadata=self.metadata).version
        assert version == self.model.decide(met, choice, merged, Span(sent - SLACK, now() + SLACK))

    def teardown(self) -> None:
        feed = self.stub.PullChanges(pb.PullChangesRequest(cursor=self.began, limit=1000), metadata=self.metadata)
        assert [tuple(entry_from_pb(one)) for one in feed.changes] == self.model.feed()
        type(self).end = feed.next_cursor
        log = self.stub.ListConflicts(pb.ListConflictsRequest(page_size=1000), metadata=self.metadata)
        mine = [logged_from_pb(one) for one in log.conflicts if self.name in one.mobile_id]
        assert {one.id: one for one in mine} == {id: shown(id, met) for id, met in self.met.items()}
        assert len(mine) == len(self.met) == len(self.model.conflicts)

    def _change(self, said: dict[str, Any]) -> Change:
        domain = said["domain"]
        key = Key(domain, f"{self.name}-{said['number']}")
        held = self.model.records.get(key)
        version = held.version if held else 0
        is_bad = said["bad"] and domain == "task"
        return Change(
            key=key,
            data={"notes": "no title"} if is_bad else said["data"],
            base=None if said["behind"] is None else max(0, version - said["behind"]),
            time=self.noon + said["minutes"] * MINUTE,
            group=said["group"],
            refusal="FIELD_MISSING" if is_bad else "",
        )

    def _push(self, request: pb.PushChangesRequest) -> list[Receipt]:
        answer = self.stub.PushChanges(request, metadata=self.metadata, timeout=20)
        return [receipt_from_pb(one) for one in answer.receipts]


def _ids(receipts: list[Receipt]) -> list[str]:
    return [one.notice.conflict_id for one in receipts if one.notice]


@pytest.fixture(scope="module")
async def user(mesh: World) -> Phone:
    return await mesh.user()


def test_every_answer_is_the_models(mesh: World, user: Phone) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{mesh.sessions_port}") as channel:
        machine = type(
            "OneUser", (TwoPhones,), {"stub": pb_grpc.SyncServiceStub(channel), "metadata": user.metadata, "end": ""}
        )
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=20,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
