"""Owns how a streamed answer ends that fails after it has begun: no reader may take what has come for all of it.

A JSON caller has read 200 by then, and the status behind the answer does not reach it: what came would look like all
there is, or HTTP/1.1 would leave it waiting for the rest. So the line is cut. gRPC callers get the status.
"""

from __future__ import annotations

from typing import Final

# The edge takes so many trailers from a service, and cuts off an answer that has more: see deploy/envoy/clusters.py.
MAX_TRAILERS: Final = 100
# A service cannot cut a line by itself, short of ending; only what it must not send makes the edge do so.
TOO_MANY_TRAILERS: Final = tuple((f"x-broken-{number}", "") for number in range(MAX_TRAILERS + 1))
