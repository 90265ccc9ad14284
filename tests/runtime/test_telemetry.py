"""What a process tells about itself at its own address."""

from __future__ import annotations

import logging
import os
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from deploy.sockets import free_port
from runtime.telemetry import LINES_LOST, log_rpc, log_to_stderr, logger, serve_metrics


def test_a_process_is_ready_while_it_takes_calls() -> None:
    ready = threading.Event()
    address = f"127.0.0.1:{free_port()}"
    serve_metrics(address, ready=ready.is_set)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{address}/readyz")
    assert (refused.value.code, refused.value.read()) == (503, b'{"ready":false}')
    ready.set()
    with urllib.request.urlopen(f"http://{address}/readyz") as answer:
        assert (answer.status, answer.read()) == (200, b'{"ready":true}')
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        assert b"rpc_server_duration_seconds" in answer.read()


def lost() -> float:
    return LINES_LOST._value.get()  # type: ignore[no-any-return]  # the library has no types for it


@pytest.mark.parametrize("how", ["closed", "full", "unread"])
def test_a_line_that_nobody_takes_is_lost_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    if how == "full":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    with suppress(OSError), open(writing, "w") as stderr:
        if how == "closed":
            stderr.close()
        monkeypatch.setattr(sys, "stderr", stderr)
        log_to_stderr("tests", "info")
        before = lost()
        logger().error("a line of ours")
        logging.getLogger("library").error("a line of a library")
        log_rpc(False, method="a line of a call")
        monkeypatch.undo()
        log_to_stderr("tests", "warning")
        assert lost() == before + 3
