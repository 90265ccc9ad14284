"""What a schema file says of its domain, and which files stop the start."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runtime.config import Config, ConfigError
from runtime.errors import Failure
from services.sessions.domains import Domains
from services.sessions.exercises_domain import Catalogue
from services.sessions.policies_domain import Strategy
from services.sessions.schemas import Schemas

NOW = datetime(2026, 2, 26, 12, tzinfo=UTC)
PLANT: dict[str, Any] = {
    "x-version": 3,
    "x-policy": "most_recent_wins",
    "x-time": "seen_at",
    "type": "object",
    "required": ["species"],
    "properties": {"species": {"type": "string", "minLength": 1}, "seen_at": {"type": "string"}},
}


def written(directory: Path, name: str, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / name).write_text(text, encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    ("domain", "strategy"),
    [
        ("session", Strategy.CLIENT_WINS),
        ("health_metric", Strategy.CLIENT_WINS),
        ("attendance", Strategy.SERVER_WINS),
        ("task", Strategy.MOST_RECENT_WINS),
        ("work_order", Strategy.MOST_RECENT_WINS),
        ("ticket", Strategy.PRESERVE_ESCALATION),
        ("no_such_domain", Strategy.MANUAL),
    ],
)
def test_the_file_of_a_domain_names_its_policy(domain: str, strategy: Strategy) -> None:
    policy = Schemas().default_policy(domain)
    assert (policy.strategy, policy.auto_resolve) == (strategy, strategy is not Strategy.MANUAL)


def test_a_file_of_the_operator_makes_a_domain(tmp_path: Path) -> None:
    schemas = Schemas(written(tmp_path, "plant.json", PLANT))
    file = schemas["plant"]
    assert (file.version, file.strategy, file.time, file.document) == (3, Strategy.MOST_RECENT_WINS, "seen_at", PLANT)
    assert "plant" in schemas
    assert "session" in schemas
    assert "plant" not in Schemas()


def test_a_file_that_says_nothing_more_leaves_conflicts_to_people_and_records_without_a_time(tmp_path: Path) -> None:
    schemas = Schemas(written(tmp_path, "plant.json", {"x-version": 1, "type": "object"}))
    assert schemas.default_policy("plant").strategy is Strategy.MANUAL
    data = {"seen_at": "2026-02-26T10:00:00Z", "": "2026-02-26T10:00:00Z"}
    assert Domains(schemas, Catalogue()).prepare("plant", data, NOW).happen_time is None


def test_the_time_line_says_when_a_record_took_place(tmp_path: Path) -> None:
    domains = Domains(Schemas(written(tmp_path, "plant.json", PLANT)), Catalogue())
    seen = {"species": "oak", "seen_at": "2026-02-26T12:00:00+02:00"}
    assert domains.prepare("plant", seen, NOW).happen_time == datetime(2026, 2, 26, 10, tzinfo=UTC)
    assert domains.prepare("plant", {"species": "oak"}, NOW).happen_time is None
    for unreadable in ("last week", "1970-01-01T00:00:00Z", "2026-03-26T10:00:00Z", 7):
        with pytest.raises(Failure, match="seen_at"):
            domains.prepare("plant", {"species": "oak", "seen_at": unreadable}, NOW)


def test_files_may_refer_to_each_other_and_to_ours(tmp_path: Path) -> None:
    written(tmp_path, "plant.json", PLANT)
    written(tmp_path, "garden.json", {"x-version": 1, "properties": {"best": {"$ref": "satchel:plant"}}})
    schemas = Schemas(written(tmp_path, "elliptical.json", {"x-version": 1, "allOf": [{"$ref": "satchel:session"}]}))
    schemas.check("garden", {"best": {"species": "oak"}})
    for domain, data in (("garden", {"best": {}}), ("elliptical", {})):
        with pytest.raises(Exception, match="is required"):
            schemas.check(domain, data)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("plant.json", "{", "is no JSON"),
        ("plant.json", "", "is no JSON"),
        ("plant.json", "[]", "must hold a JSON object"),
        ("plant.json", {**PLANT, "type": "objekt"}, "is no valid JSON Schema"),
        ("plant.json", {**PLANT, "pattern": "(["}, "is no valid JSON Schema"),
        ("plant.json", {**PLANT, "properties": []}, "is no valid JSON Schema"),
        ("plant.json", {**PLANT, "$ref": "satchel:nobody"}, "is no valid JSON Schema"),
        ("plant.json", {**PLANT, "$ref": "http://127.0.0.1:9/x.json"}, "is no valid JSON Schema"),
        ("plant.json", {**PLANT, "$id": "satchel:session"}, "has the same $id"),
        ("plant.json", {**PLANT, "$id": 7}, "$id must be a string"),
        ("plant.json", {**PLANT, "x-policy": "coin_toss"}, "x-policy must be one of client_wins, "),
        ("plant.json", {**PLANT, "x-policy": ["manual"]}, "x-policy must be one of client_wins, "),
        ("plant.json", {**PLANT, "x-writer": "nobody"}, "x-writer must be one of client, server"),
        ("plant.json", {**PLANT, "x-writer": ["server"]}, "x-writer must be one of client, server"),
        ("plant.json", {**PLANT, "x-writer": "server"}, "x-policy has nothing to decide where x-writer is server"),
        ("plant.json", {**PLANT, "x-version": 0}, "x-version must be a whole number from 1"),
        ("plant.json", {**PLANT, "x-version": True}, "x-version must be a whole number from 1"),
        ("plant.json", {"type": "object"}, "x-version must be a whole number from 1"),
        ("plant.json", {**PLANT, "x-time": "seen"}, "x-time must name one of its properties"),
        ("plant.json", {**PLANT, "x-time": 7}, "x-time must name one of its properties"),
        ("plant.json", {**PLANT, "x-time-lead-seconds": -1}, "x-time-lead-seconds must be a number from 0 to 86400"),
        ("plant.json", {**PLANT, "x-time-lead-seconds": "1"}, "x-time-lead-seconds must be a number from 0 to 86400"),
        ("Plant.json", PLANT, "a domain's name is"),
        ("2plants.json", PLANT, "a domain's name is"),
        ("my-plant.json", PLANT, "a domain's name is"),
        (f"{'p' * 65}.json", PLANT, "a domain's name is"),
        ("session.json", PLANT, "there is a domain session already"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, name: str, content: Any, why: str) -> None:
    written(tmp_path, "good.json", PLANT)
    with pytest.raises(ConfigError) as refused:
        Schemas(written(tmp_path, name, content))
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / name}: ")
    assert why in said
    assert "\n" not in said


def test_a_directory_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SATCHEL_DOMAINS: .*nowhere is no directory"):
        Schemas(tmp_path / "nowhere")


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATCHEL_DOMAINS", "")
    monkeypatch.setenv("SATCHEL_DATABASE_URL", "postgresql://nowhere")
    assert Config().domains is None
