"""Hashes of passwords that cost next to nothing: most tests only need somebody who has an account.

They are made by argon2id all the same. `python -m tests.cheap_hashes MODULE` is `python -m MODULE` with them.
"""

from __future__ import annotations

import runpy
import sys

from argon2.profiles import CHEAPEST

from services.auth import passwords

if __name__ == "__main__":
    passwords.COST = CHEAPEST  # type: ignore[misc]  # Final for everybody else
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
