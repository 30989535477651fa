"""What goes on beside the caller ends with the caller."""

import asyncio
import subprocess
import sys

import psutil
import pytest

from entrl.engines.background import as_it_comes

CHILD = """
import time
from entrl.engines.background import end_with_parent
end_with_parent({how})
print(1, flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_results_come_in_order_and_then_the_error() -> None:
    async def work(put) -> None:
        put(1)
        await asyncio.sleep(0)
        put(None)  # a result like any other
        raise KeyError("lost")

    found = as_it_comes(work)
    assert [next(found), next(found)] == [1, None]
    with pytest.raises(KeyError, match="lost"):
        next(found)


def test_whoever_stops_reading_ends_the_work() -> None:
    ended = []

    async def work(put) -> None:
        try:
            for i in range(10**6):
                put(i)
                await asyncio.sleep(0.01)
        finally:
            ended.append(True)

    found = as_it_comes(work)
    assert next(found) == 0
    found.close()
    assert ended == [True]  # close waits for it


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing happens")
@pytest.mark.parametrize("how", ["", "__import__('signal').SIGKILL"])
def test_a_child_ends_when_its_parent_is_killed(how: str) -> None:
    script = PARENT.format(child=CHILD.format(how=how))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs([child], timeout=30)[1]
