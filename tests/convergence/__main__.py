"""Owns the long run: `python -m tests.convergence --steps 100000 --seed 7`."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.convergence.run import Run, told
from tests.convergence.world import world

CHAPTER = 3000  # steps; then new users take over, whose records one page holds


async def main() -> None:
    parser = argparse.ArgumentParser(description="Phones that go offline against parts that die, until all agree.")
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first 3,000 steps; the next have the next one")
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="satchel-") as directory:
        async with world(Path(directory)) as started:
            for chapter in range(-(-asked.steps // CHAPTER)):
                seed, begin = asked.seed + chapter, time.monotonic()
                try:
                    counts = await Run(started, seed)(min(CHAPTER, asked.steps - chapter * CHAPTER))
                except BaseException:
                    print(f"seed {seed} failed; errors in the replicas' logs:\n{started.complaints()}", flush=True)
                    raise
                print(f"seed {seed}, {time.monotonic() - begin:.1f} s: {told(counts)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
