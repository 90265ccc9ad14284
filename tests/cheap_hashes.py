"""Hashes of passwords that cost next to nothing: most tests only need somebody who has an account.

They are made by argon2id all the same. `python -m tests.cheap_hashes` runs every service in one process with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from argon2.profiles import CHEAPEST

from services.auth import passwords


@contextmanager
def cheap_hashes() -> Iterator[None]:
    """For the auth services that begin in this block, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "COST", CHEAPEST)
        yield


if __name__ == "__main__":
    with cheap_hashes():
        import services.__main__  # noqa: F401  # which runs them
