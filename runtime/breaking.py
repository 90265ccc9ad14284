"""Owns how a streamed answer ends that fails after it has begun: no reader may take what has come for all of it.

A JSON caller has read 200 by then, and the status behind the answer does not reach it: what came would look like all
there is, or HTTP/1.1 would leave it waiting for the rest. So the line is cut. gRPC callers get the status.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

# The edge takes so many trailers from a service, and cuts off an answer that has more: see deploy/envoy/clusters.py.
MAX_TRAILERS: Final = 100
# A handler cannot cut its own line; only what it must not send makes the edge do so.
TOO_MANY_TRAILERS: Final = tuple((f"x-broken-{number}", "") for number in range(MAX_TRAILERS + 1))

_OPEN_FILES: Final = "/dev/fd"  # of this process, on Linux and macOS


def cut_lines(ports: Collection[int]) -> int:
    """Ends every connection that this process has accepted on `ports`, at once; returns how many.

    Trailers would wait behind what a slow reader has not taken, and gRPC, told to stop, would drop both and send an end
    that the edge takes for a good one.
    """
    return sum(_cut(line) for line in _accepted(ports))


def _accepted(ports: Collection[int]) -> Iterator[socket.socket]:
    try:
        names = os.listdir(_OPEN_FILES)
    except OSError:  # a system without it: gRPC ends the answers in its own way
        return
    for name in names:
        # Its number may be another file's by now, or none's: then it is no connection of ours.
        with suppress(OSError, ValueError):
            copy = os.dup(int(name))
            try:
                line = socket.socket(fileno=copy)
            except OSError:  # another kind of file
                os.close(copy)
                continue
            with line:
                if line.family in (socket.AF_INET, socket.AF_INET6) and line.getsockname()[1] in ports:
                    line.getpeername()
                    yield line


def _cut(line: socket.socket) -> bool:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
        return True
    return False
