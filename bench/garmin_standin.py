"""Garmin for the measurement: `python -m bench.garmin_standin COUNT BYTES`, one account with so many activities.

A process of its own, on the cores that everything shares. It prints one line of JSON, and ends when its stdin does.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

from bench.recordings import fit
from tests.garmin.standin import standing_in


def main() -> None:
    count, size = int(sys.argv[1]), int(sys.argv[2])
    with standing_in() as standin:
        account = standin.account()
        latest = datetime.now(UTC).replace(microsecond=0)
        for number in range(count):
            content = fit(number * 7200, size)
            account.add_activity(latest - timedelta(hours=number + 1), content=content)
        said = {"url": standin.url, "username": account.username, "password": account.password}
        print(json.dumps(said), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
