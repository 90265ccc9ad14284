"""The dashboard and the alerts: they ask for nothing that a running stack does not tell of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.parts import ROOT
from tests.deploy.test_run import launched
from tests.factories import Phone

DASHBOARD = ROOT / "deploy" / "grafana" / "satchel.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
EXAMPLE = ROOT / "deploy" / "prometheus" / "prometheus.yml"
# Grafana puts a duration in its place.
INTERVAL = "$__rate_interval"
# What a metric has by where it comes from, or gets where it is stored.
LABELS_OF_ALL = {"service", "instance", "job", "le"}


def panels() -> list[dict[str, Any]]:
    return [one for one in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if one["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    shown = [target["expr"].replace(INTERVAL, "5m") for panel in panels() for target in panel["targets"]]
    return shown + [rule["expr"] for rule in rules()]


def selectors(node: Any) -> Iterator[Any]:
    """The metrics that an expression asks for."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (part := getattr(node, name, None)) is not None:
            yield from selectors(part)
    for part in getattr(node, "args", ()):
        yield from selectors(part)


@pytest.fixture(scope="module")
async def told() -> AsyncIterator[dict[str, set[str]]]:
    """The metrics of a running stack, each with the labels that it has been seen with."""
    with TemporaryDirectory(prefix="satchel-") as made:
        async with launched(Path(made)) as terminal, httpx.AsyncClient(base_url=terminal.url) as http:
            await terminal.read_until("Ctrl-C stops everything")
            await Phone.signed_up(http)
            assert (await http.get("/nothing")).status_code == 404
            url = (await terminal.read_until(r"Metrics +(http://127\.0\.0\.1:\d+/metrics)"))[1]
            text = (await http.get(url, timeout=30)).text
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            # A counter that has counted nothing yet is described, and has no line.
            found.setdefault(line.split()[2], set())
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_can_be_read(expression: str) -> None:
    assert list(selectors(promql_parser.parse(expression)))


def test_they_ask_for_what_a_stack_tells_of(told: dict[str, set[str]]) -> None:
    asked = {one.name: one for expression in expressions() for one in selectors(promql_parser.parse(expression))}
    assert len(asked) > 25
    assert sorted(set(asked) - told.keys()) == []


def test_labels_by_which_they_choose_and_sum_are_there(told: dict[str, set[str]]) -> None:
    seen = {label for labels in told.values() for label in labels} | LABELS_OF_ALL
    # Of counters with labels that have counted nothing yet.
    seen |= {"code", "kind", "outcome", "status"}
    for expression in expressions():
        summed = {name.strip() for names in re.findall(r"\bby \(([^)]*)\)", expression) for name in names.split(",")}
        chosen = set(re.findall(r"[{,] *([a-z_]+) *(?:=|!=|=~|!~)[\"~]", expression))
        assert summed | chosen <= seen, expression


def test_every_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_panels_do_not_cover_each_other_and_each_one_has_a_name() -> None:
    shown = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({one["id"] for one in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for one in shown:
        place = one["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, one["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert one["title"]


def test_prometheus_itself_takes_them() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool on PATH")
    for what, file in (("rules", ALERTS), ("config", EXAMPLE)):
        subprocess.run([promtool, "check", what, str(file)], check=True)


def test_the_example_reads_the_page_and_the_alerts() -> None:
    example = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    assert example["rule_files"] == [ALERTS.name]
    (job,) = example["scrape_configs"]
    assert job["honor_labels"], "service and instance are the page's own"
