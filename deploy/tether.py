"""Runs a command that ends when its parent does: `python tether.py SIGNAL PARENT USER COMMAND…`.

It is a program of its own, not a `preexec_fn`: a fork of a process with threads (a test run with gRPC in it)
must not run Python before the exec. The pid stays the same, so the parent watches the command itself.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    death_signal, parent, user, *command = sys.argv[1:]
    # What the caller ignores (`nohup`, `&` in a script) the command would inherit ignored.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if user:
        become(user)
    if sys.platform == "linux":
        # After the change of user, which clears it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != int(parent):
            sys.exit("the parent is gone")
    os.execvp(command[0], command)


def become(user: str) -> None:
    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


if __name__ == "__main__":
    main()
