"""The figures as one table in Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.memory import Usage, total_pss
from bench.rounds import Pair

_MIB = 2**20
_HEAD = ("", "Satchel", "floor", "ratio", "rounds", "target", "")

IDLE_TARGET = 700  # MiB
START_TARGET = 10.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the table, ready for reading."""

    name: str
    figure: str
    floor: str = "none"
    ratio: str = ""
    spread: str = ""
    """The ratio of the worst and of the best round."""
    target: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        verdict = {True: "ok", False: "MISSED", None: ""}[self.met]
        return (self.name, self.figure, self.floor, self.ratio, self.spread, self.target, verdict)


def compared(pair: Pair) -> Line:
    """A figure beside its floor."""
    return Line(
        name=pair.name,
        figure=f"{median(pair.figures):,.0f} {pair.unit}",
        floor=f"{median(pair.floors):,.0f} ({pair.floor_name})",
        ratio=f"{pair.ratio:.2f}",
        spread=f"{min(pair.ratios):.2f} to {max(pair.ratios):.2f}",
        target="" if pair.target is None else f"at least {pair.target:g}",
        met=None if pair.target is None else pair.ratio >= pair.target,
    )


def held(name: str, parts: Sequence[Usage], *, target: int | None = None) -> Line:
    """What the stack holds in memory."""
    rss, pss = sum(part.rss for part in parts) / _MIB, total_pss(parts)
    once = rss if pss is None else pss / _MIB
    figure = f"{rss:.0f} MiB RSS" if pss is None else f"{once:.0f} MiB ({rss:.0f} RSS)"
    return Line(
        name=name,
        figure=figure,
        target="" if target is None else f"at most {target} MiB",
        met=None if target is None else once <= target,
    )


def started(seconds: Sequence[float]) -> Line:
    """How long the stack takes to answer."""
    return Line(
        name="Start on existing data until /healthz answers 200",
        figure=f"{median(seconds):.1f} s",
        spread=f"{min(seconds):.1f} to {max(seconds):.1f} s",
        target=f"at most {START_TARGET:g} s",
        met=median(seconds) <= START_TARGET,
    )


def table(lines: Iterable[Line]) -> str:
    """In Markdown, and in columns for a terminal."""
    return grid([_HEAD, *(line.cells for line in lines)])


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one being the head, as `table` writes them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([written[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *written[1:]])


def breakdown(title: str, parts: Sequence[Usage]) -> str:
    """One sentence: what each part holds."""
    each = ", ".join(
        f"{part.name}{f' ({part.processes} processes)' if part.processes > 1 else ''} "
        f"{(part.rss if part.pss is None else part.pss) / _MIB:.0f} ({part.rss / _MIB:.0f})"
        for part in parts
    )
    return f"{title}, MiB as PSS (RSS): {each}."


def as_json(
    *,
    about: Mapping[str, Any],
    pairs: Sequence[Pair],
    lines: Sequence[Line],
    memory: Mapping[str, Sequence[Usage]],
    starts: Sequence[float],
) -> dict[str, Any]:
    """Everything that was measured, round by round."""
    return {
        **about,
        "pairs": [
            {
                "name": pair.name,
                "floor": pair.floor_name,
                "unit": pair.unit,
                "target": pair.target,
                "ratio": pair.ratio,
                "figures": pair.figures,
                "floors": pair.floors,
            }
            for pair in pairs
        ],
        "lines": [asdict(line) for line in lines],
        "memory": {when: [asdict(part) for part in parts] for when, parts in memory.items()},
        "start_seconds": list(starts),
    }
