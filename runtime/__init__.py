"""What every service stands on: the server, its interceptors, the contract they enforce, the database and the logs."""

import os

# Before gRPC is loaded: a process that we start would otherwise, between its fork and its own program, run what gRPC
# does in a child that goes on with its calls, and may crash there.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
