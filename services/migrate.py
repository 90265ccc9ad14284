"""Brings every schema to the version of this code: `python -m services.migrate`, before the services start."""

from __future__ import annotations

import os
import sys

import psycopg

from runtime.config import SERVICES, ConfigError, from_environment
from runtime.migrations import migrate


def main() -> int:
    """Migrates each service; returns the exit status."""
    try:
        config = from_environment()
        for service in SERVICES:
            migrate(config.database_url, service)
    except (ConfigError, psycopg.Error) as error:
        print(f"migrate: {error}", file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
