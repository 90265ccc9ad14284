"""Satchel's figures, each beside its floor measured in the same run."""

import os

# Servers are started while gRPC runs here. Its handlers for forks have nothing to do then, and say so each time; it
# reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
