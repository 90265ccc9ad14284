"""The page on which `make run` gathers what every part tells of itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.metrics import Told, merged, served
from deploy.sockets import free_port
from runtime.config import SERVICES
from tests.deploy.test_run import Terminal, launched
from tests.polling import until

PLACE = r"(?m)^ +Metrics +(http://127\.0\.0\.1:(\d+)/metrics)"


class TestMerging:
    def test_every_line_says_whose_it_is_and_every_metric_is_described_once(self) -> None:
        page = (
            "# HELP calls_total Calls.\n# TYPE calls_total counter\n"
            'calls_total{rpc="A b",text="x{y} \\" z"} 3.0\n'
            "# HELP open Open ones.\n# TYPE open gauge\nopen 1\n"
            "# HELP unused_total Nothing yet.\n# TYPE unused_total counter\n"
        )
        text = merged(
            [
                Told(service="auth", instance="auth-1", up=True, page=page),
                Told(service="auth", instance="auth-2", up=True, page=page),
                Told(
                    service="envoy", instance="envoy", up=True, page="# TYPE seen counter\nseen{} 2\nseen_more 1 17\n"
                ),
                Told(service="redis", instance="redis", up=False),
            ]
        )
        described = Counter(line.rsplit(" ", 1)[0] if line.startswith("# TYPE") else "" for line in text.splitlines())
        described.pop("")
        assert set(described.values()) == {1}
        families = {one.name: one for one in text_string_to_metric_families(text)}
        (first, second) = families["calls"].samples
        assert first.labels == {"service": "auth", "instance": "auth-1", "rpc": "A b", "text": 'x{y} " z'}
        assert second.labels["instance"] == "auth-2"
        assert [sample.value for sample in families["open"].samples] == [1, 1]
        up = {sample.labels["instance"]: sample.value for sample in families["up"].samples}
        assert up == {"auth-1": 1, "auth-2": 1, "envoy": 1, "redis": 0}
        assert 'seen{service="envoy",instance="envoy"} 2' in text
        assert 'seen_more{service="envoy",instance="envoy"} 1 17' in text

    def test_lines_of_one_metric_stand_together(self) -> None:
        page = '# TYPE a gauge\na 1\n# TYPE b histogram\nb_bucket{le="1"} 1\nb_sum 1\nb_count 1\n'
        told = [Told(service=name, instance=name, up=True, page=page) for name in ("x", "y")]
        names = [re.split("[{_ ]", line)[0] for line in merged(told).splitlines() if not line.startswith("#")]
        assert names == ["up", "up", "a", "a", *["b"] * 6]


async def test_who_says_nothing_or_asks_for_something_else_does_not_keep_others_from_the_page() -> None:
    async def page() -> str:
        return "up 1\n"

    async with served(page, 0) as url, httpx.AsyncClient() as http:
        port = httpx.URL(url).port
        assert port is not None
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        reader, wrong = await asyncio.open_connection("127.0.0.1", port)
        wrong.write(b"nonsense\r\n\r\n")
        assert (await http.get(url)).text == "up 1\n"
        assert (await http.head(url)).headers["content-length"] == "5"
        assert (await http.get(url.replace("metrics", "secrets"))).status_code == 404
        assert await reader.read() == b""
        silent.close()
        wrong.close()


async def test_who_only_looks_whether_somebody_listens_is_no_error() -> None:
    async def page() -> str:
        return "up 1\n"

    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(str(context["message"])))
    async with served(page, 0) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write_eof()
        # The other side has seen it, and closes as well.
        assert await reader.read() == b""
        writer.close()
        await asyncio.sleep(0)
    assert errors == []


@pytest.fixture(scope="module")
async def terminal() -> AsyncIterator[Terminal]:
    with TemporaryDirectory(prefix="satchel-") as made:
        async with launched(Path(made), WORKERS="2", SATCHEL_METRICS_PORT=str(free_port())) as started:
            await started.read_until("Ctrl-C stops everything")
            yield started


async def test_a_stack_tells_of_all_its_parts_at_one_place(terminal: Terminal) -> None:
    url = (await terminal.read_until(PLACE))[1]
    async with httpx.AsyncClient() as http:
        answer = await http.get(url)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    up = {sample.labels["instance"]: sample.value for sample in families["up"].samples}
    processes = {f"{name}-{number}" for name in SERVICES for number in (1, 2)}
    assert processes | {"postgres", "envoy"} <= up.keys()
    assert set(up.values()) == {1}
    tellers = {sample.labels["instance"] for sample in families["python_info"].samples}
    assert tellers == processes
    assert "envoy_server_live" in families
    pools = {
        (s.labels["service"], s.labels["db_client_connection_pool_name"])
        for s in families["db_client_connection_max"].samples
    }
    assert {("auth", "auth"), ("sessions", "sessions"), ("uploads", "uploads")} <= pools


async def test_a_process_that_is_down_is_missed_and_the_others_still_tell(terminal: Terminal) -> None:
    url = (await terminal.read_until(PLACE))[1]
    pid = await terminal.pid_of("garmin-2")
    os.kill(pid, signal.SIGSTOP)
    async with httpx.AsyncClient(timeout=30) as http:

        async def up() -> dict[str, float]:
            families = {one.name: one for one in text_string_to_metric_families((await http.get(url)).text)}
            return {sample.labels["instance"]: sample.value for sample in families["up"].samples}

        try:
            states = await up()
            assert (states["garmin-2"], states["garmin-1"], states["auth-1"]) == (0, 1, 1)
        finally:
            os.kill(pid, signal.SIGCONT)

        async def back() -> bool:
            return (await up())["garmin-2"] == 1

        await until(back)


async def test_the_page_is_for_this_machine_only(terminal: Terminal) -> None:
    import psutil

    port = int((await terminal.read_until(PLACE))[2])
    listening = [
        one.laddr.ip
        for one in psutil.Process(terminal.process.pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]


async def test_a_port_that_is_taken_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    try:
        async with launched(tmp_path / "home", SATCHEL_METRICS_PORT=str(port)) as terminal:
            await terminal.read_until(rf"Satchel did not start: port {port} .*SATCHEL_METRICS_PORT")
    finally:
        taken.close()
