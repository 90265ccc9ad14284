"""Phones that go offline, push late, twice and out of order, against parts that die: nothing is lost, nothing is there
twice, and in the end every phone holds what the server holds.

SATCHEL_CONVERGE_SEED and SATCHEL_CONVERGE_STEPS ask for another run; `make converge` is the long one.
"""

from __future__ import annotations

import os

import pytest

from tests.convergence.run import Run, told
from tests.convergence.schedule import FAULTS, POLICIES, rounds
from tests.convergence.world import World

STEPS = int(os.environ.get("SATCHEL_CONVERGE_STEPS", "1000"))
SEEDS = [int(word) for word in os.environ.get("SATCHEL_CONVERGE_SEED", "1 2 3").split()]


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_phone_converges_and_nothing_acknowledged_is_lost_or_doubled(mesh: World, seed: int) -> None:
    try:
        counts = await Run(mesh, seed)(STEPS)
    except Exception as error:
        error.add_note(mesh.complaints())
        raise
    print(f"seed {seed}: {told(counts)}")
    if STEPS < 1000:
        return
    # A run that met nothing proves nothing.
    never = [what for what in (*FAULTS, *POLICIES.values()) if counts[what] == 0]
    assert not never, f"nothing of this happened: {never}"
    for what in ("cuts in the request", "cuts in the answer", "calls lost", "pushes repeated", "keys misused"):
        assert counts[what] > 0, what
    for what in ("APPLIED", "DUPLICATE", "CONFLICT", "REJECTED", "pages on streams", "pages left out", "decisions"):
        assert counts[what] > 0, what
    assert counts["too close to call"] < counts["most_recent_wins"] / 2, "most races of clocks were decided"


def test_a_seed_tells_the_whole_schedule() -> None:
    assert list(rounds(7, 600)) == list(rounds(7, 600))
    assert list(rounds(7, 600)) != list(rounds(8, 600))
