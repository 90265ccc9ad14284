"""Owns the process that reads strangers' recordings: `python -m services.uploads.activity_worker BYTES SECONDS`.

It may use so much memory, and so much time for one recording. Each is asked for on stdin and answered on stdout, as the
number of bytes (8, big-endian) and the bytes; the answer is JSON, since what a decoder was tricked into must not reach
the service as anything but data. The end of stdin is its end.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO, Final

import orjson

from runtime.errors import Failure, invalid, kept
from services.uploads.activity_files import summarize
from services.uploads.activity_summary import Summary, record_of

LENGTH_BYTES: Final = 8
READY: Final = b"ready\n"

# Made while there is memory.
_TOO_MUCH: Final = orjson.dumps(
    {"failure": kept(invalid("file", "takes too much memory to read", "TOO_LARGE")), "last": True}
)


def serve(read: Callable[[bytes], Summary], memory: int, seconds: float) -> None:
    """Answers each recording on stdin with what `read` says of it, until stdin ends.

    `seconds` is the last resort: whoever started this process ends it earlier, if it still lives.
    """
    _limit_memory(memory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the service decides
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that a library prints is an answer
    answers.write(READY)
    answers.flush()
    while (data := _received(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer, last = _answer(read, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(len(answer).to_bytes(LENGTH_BYTES) + answer)
        answers.flush()
        if last:
            return


def _limit_memory(memory: int) -> None:
    if sys.platform == "linux":  # elsewhere the limit is not kept, or refused
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (memory, most))


def _received(stream: BinaryIO) -> bytes | None:
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = int.from_bytes(head)
    data = stream.read(length)
    return data if len(data) == length else None


def _answer(read: Callable[[bytes], Summary], data: bytes) -> tuple[bytes, bool]:
    """The answer, and whether it is the last: a process that ran out of memory is not to be trusted with more."""
    try:
        return orjson.dumps({"summary": record_of(read(data)), "last": False}), False
    except Failure as failure:
        return orjson.dumps({"failure": kept(failure), "last": False}), False
    except MemoryError:
        pass  # what was read is only freed with the exception
    return _TOO_MUCH, True


if __name__ == "__main__":
    serve(summarize, int(sys.argv[1]), float(sys.argv[2]))
