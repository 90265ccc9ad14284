"""Owns what a process tells about itself: JSON log lines and Prometheus metrics."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO, Final, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import orjson
import structlog
from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

RPC_SECONDS: Final = Histogram(
    "rpc_server_duration_seconds",
    "Time from a call's arrival to its answer.",
    ["rpc_service", "rpc_method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
)
RPC_ANSWERS: Final = Counter(
    "rpc_server_responses", "Answers by gRPC status.", ["rpc_service", "rpc_method", "rpc_grpc_status_code"]
)
RPC_ACTIVE: Final = Gauge("rpc_server_active_requests", "Calls in progress.", ["rpc_service", "rpc_method"])
STREAMS_OPEN: Final = Gauge("sync_streams_open", "Sync streams that are open.")
LIMITS_LOCAL: Final = Counter(
    "rate_limit_local_decisions", "Rate limits decided from this process's own counts because Redis was away."
)
SWEPT: Final = Counter("swept_rows", "Rows that were removed since they had grown too old.", ["kind"])
SWEEP_ERRORS: Final = Counter("sweep_errors", "Sweeps that failed and were left to the next round.", ["kind"])
FOREIGN_BLOBS: Final = Gauge(
    "blobs_of_another_installation", "1 while files lie in a store that another installation has marked as its own."
)
ERASURE_ERRORS: Final = Counter("account_erasure_errors", "Attempts to erase a deleted account that failed.")
MAILS: Final = Counter("mails", "Mail that is done with, by what became of it.", ["kind", "outcome"])
MAIL_ERRORS: Final = Counter("mail_errors", "Attempts to send a mail that failed and are repeated.")
MERGE_ERRORS: Final = Counter("guest_merge_errors", "Attempts to move what a guest has to an account that failed.")
OUTBOX_RECORDS: Final = Counter(
    "outbox_records", "Records that were handed to the sessions service, by what became of them.", ["status"]
)
OUTBOX_ERRORS: Final = Counter("outbox_errors", "Attempts to hand records to the sessions service that failed.")
WEBSOCKETS: Final = Gauge("websocket_connections", "Phones that are connected by WebSocket.")
WEBSOCKET_ENDS: Final = Counter("websocket_ends", "Ended WebSocket connections by close code.", ["code"])
REVOCATION_ERRORS: Final = Counter("revocation_refresh_errors", "Failed attempts to learn which sign-ins were ended.")
DEPENDENCY_UP: Final = Gauge("dependency_up", "1 while this process reaches what it stands on.", ["dependency"])
STREAM_ANSWERS_QUEUED: Final = Gauge("sync_stream_answers_queued", "Answers that wait for their streams' phones.")
STREAM_PUSHES_WAITING: Final = Gauge("sync_stream_pushes_waiting", "Pushes of streams that wait to be stored.")
STREAMS_FULL: Final = Gauge("sync_streams_full", "Streams that are told no more before their phone acknowledges.")
STREAM_LAG: Final = Gauge(
    "sync_feed_lag_seconds", "Age of the oldest change that a stream was not told yet whose phone would take it."
)
BACKLOG: Final = Gauge("backlog_items", "What waits in a table to be carried out, by all replicas.", ["queue"])
BACKLOG_AGE: Final = Gauge("backlog_age_seconds", "Age of the oldest item that waits, by queue.", ["queue"])
BACKLOG_ERRORS: Final = Counter("backlog_look_errors", "Failed attempts to see what waits.", ["queue"])
BLOB_WRITTEN: Final = Counter("blob_written_bytes", "Bytes of uploads that were stored.")
BLOB_READ: Final = Counter("blob_read_bytes", "Bytes of files that were read for callers.")
LINES_LOST: Final = Counter("log_lines_lost", "Lines of the log that could not be written.")
OUTCOMES_REPORTED: Final = Counter("outcomes_reported", "Rows of outcomes that the health service has taken.")
OUTCOMES_DROPPED: Final = Counter("outcomes_dropped", "Outcomes that no figure counts: no room, or no sense.")
OUTCOME_ERRORS: Final = Counter("outcome_report_errors", "Attempts to report outcomes that failed.")


def log_to_stderr(service: str, level: str) -> None:
    """One JSON object a line on stderr, for our own lines and those of libraries."""
    structlog.configure(
        cache_logger_on_first_use=True,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _lines)),
    )
    structlog.contextvars.bind_contextvars(service=service)
    _lines.level, _lines.service = logging.getLevelNamesMapping()[level.upper()], service
    logging.basicConfig(level=level.upper(), handlers=[_ToStructlog()], force=True)


def log_rpc(routine: bool, **event: Any) -> None:
    """Writes the line of one call: at info, or at debug for a routine one.

    The only line that every call writes, so it goes past structlog's processors, in the same form.
    """
    if _lines.level <= (logging.DEBUG if routine else logging.INFO):
        event["level"] = "debug" if routine else "info"
        event["timestamp"] = datetime.now(UTC)
        _lines.write(_dumps({"event": "rpc", "service": _lines.service, **event}) + b"\n")


class _Lines:
    """Where log lines go, once `log_to_stderr` has said so.

    A line that nobody takes (a full disk, a reader who has gone) is lost and counted: what it tells of goes on.
    """

    level = logging.INFO
    service = ""

    def write(self, line: bytes) -> None:
        """A whole line in one write, so that lines of processes that share a file do not mix."""
        try:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
        except (OSError, ValueError):  # ValueError: it is closed
            LINES_LOST.inc()

    def flush(self) -> None:
        """Nothing waits here."""


_lines: Final = _Lines()


def logger() -> structlog.typing.FilteringBoundLogger:
    """The logger; call it in a function or keep the result, both are cheap."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log


def serve_metrics(address: str, *, ready: Callable[[], bool]) -> None:
    """Serves, from threads at http://`address`, /metrics and /readyz: 200 when `ready`, else 503.

    Nothing when the address is empty. Raises OSError when it is taken.
    """
    if not address:
        return
    metrics: WSGIApplication = make_wsgi_app()

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment["PATH_INFO"] != "/readyz":
            return metrics(environment, start)
        start("200 OK" if ready() else "503 Service Unavailable", [("content-type", "application/json")])
        return [_dumps({"ready": ready()})]

    host, _, port = address.rpartition(":")
    server = make_server(host, int(port), answer, _MetricsServer, _SilentHandler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _MetricsServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A probe every few seconds is nothing to tell."""


def _dumps(event: dict[str, Any], **_: Any) -> bytes:
    return orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z)


class _ToStructlog(logging.Handler):
    """Hands the lines of libraries to structlog, so that a process writes one format."""

    def emit(self, record: logging.LogRecord) -> None:
        logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
