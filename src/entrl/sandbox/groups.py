"""Processes that lead a group (`start_new_session`): whether they have ended, and the end of all that they started.

A number is free for another process once the one that had it is collected (waited for), and to signal the group of that
number then may end a stranger. So it is asked without collecting, and the group is killed before.
"""

import contextlib
import math
import os
import signal
import subprocess
import time

LONGEST = 0.05  # seconds between two looks


def ended(process: subprocess.Popen[bytes], seconds: float = 0.0) -> int | None:
    """Exit code of a process that ends within `seconds`, negative for a signal; None for one that lives.

    Not collected, but where somebody else did it, and on systems without waitid (macOS before Python 3.13).
    """
    end, pause = time.monotonic() + seconds, LONGEST / 100
    while (code := _look(process)) is None and (left := end - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST)
    return code


def _look(process: subprocess.Popen[bytes]) -> int | None:
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll()
    try:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # collected by somebody else
        return process.wait()
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def end_group(process: subprocess.Popen[bytes], *, patience_s: float = 0.0) -> int:
    """SIGTERM where there is patience, then SIGKILL to the whole group, also to what outlived its leader; exit code."""
    if patience_s and ended(process) is None:
        _signal(process, signal.SIGTERM)
        ended(process, patience_s)
    _signal(process, signal.SIGKILL)
    return process.wait()


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, when it has ended; not collected."""
    code = ended(process, math.inf)
    assert code is not None
    return code


def _signal(process: subprocess.Popen[bytes], what: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, what)
