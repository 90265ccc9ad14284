"""How much memory the stack holds, process by process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from bench.stack import Stack


@dataclass(frozen=True)
class Usage:
    """A part of the stack: its process and that process's children."""

    name: str
    processes: int
    rss: int
    """Bytes in memory, shared pages counted in every process."""
    pss: int | None
    """Bytes in memory, a page that n processes share counted 1/n in each; None where the system cannot tell."""


def usage(stack: Stack) -> list[Usage]:
    """The launcher and every part of it."""
    launcher = psutil.Process(stack.pid)
    parts = [(name, psutil.Process(pid)) for name, pid in stack.parts.items()]
    return [
        _usage("launcher", [launcher]),
        *(_usage(name, [process, *process.children(recursive=True)]) for name, process in parts),
    ]


def total_pss(parts: Iterable[Usage]) -> int | None:
    """What the parts hold together, shared pages counted once."""
    found = [part.pss for part in parts]
    return None if None in found else sum(pss or 0 for pss in found)


def _usage(name: str, processes: list[psutil.Process]) -> Usage:
    rss, pss = 0, 0
    told = True
    for process in processes:
        try:
            full = process.memory_full_info()
        except psutil.NoSuchProcess:  # a server process of PostgreSQL that has just ended
            continue
        rss += full.rss
        told = told and hasattr(full, "pss")
        pss += getattr(full, "pss", 0)
    return Usage(name, len(processes), rss, pss if told else None)
