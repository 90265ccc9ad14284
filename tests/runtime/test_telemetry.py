"""What a process tells about itself at its own address."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

import pytest

from deploy.sockets import free_port
from runtime.telemetry import serve_metrics


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
