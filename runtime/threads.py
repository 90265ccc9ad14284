"""Owns how threads that only compute give way to those that answer."""

from __future__ import annotations

import os
import sys
import threading


def step_back(nice: int) -> None:
    """Gives the calling thread, and those that it starts, this niceness, 0 to 19: they run when the others do not.

    On Linux a priority is a thread's own; elsewhere it is the process's, and stays.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
