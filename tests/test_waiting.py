"""Ranks that wait for each other without a collective (`trainers/shared/waiting.py`), with a timeout of 4 s."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from entrl.runs.together import alone_on_main, failed_elsewhere, main_first, together, wait_for_all

ROOT = Path(__file__).parents[1]

RANKS = """
import json, os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from entrl.engines.faults import NoReplicaLeft
from entrl.runs.together import *
from entrl.trainers.shared import waiting

state = PartialState(cpu=True, timeout=timedelta(seconds=4))
rank, found = state.process_index, {}

def slowly(value):
    time.sleep(6)
    return value

def error_of(act):
    try:
        act()
    except Exception as error:
        return [type(error).__name__, str(error), is_hushed(error)]

def fail(error, where):
    if rank in where:
        raise error

found["group"] = [torch.distributed.get_world_size(), torch.distributed.get_backend()]
found["main"] = alone_on_main(lambda: slowly({"path": str(Path("a"))}))
found["each"] = together(lambda: slowly(rank) if rank else rank)
with main_first():
    found["entered"] = time.time()
    if rank == 0:
        slowly(None)
        found["left"] = time.time()
wait_for_all("here")
found["one"] = error_of(lambda: together(lambda: fail(KeyError("no x"), [1])))
found["elsewhere"] = failed_elsewhere()
found["both"] = error_of(lambda: together(lambda: fail(ValueError("the same"), [0, 1])))
found["of main"] = error_of(lambda: alone_on_main(lambda: fail(NoReplicaLeft("all gone"), [0])))
found["unknown"] = error_of(lambda: alone_on_main(lambda: fail(KeyError("no y"), [0])))

pids = gather_object([os.getpid()])
waiting.BEAT_S, waiting.SILENT_BEATS = 0.2, 20
time.sleep(11)  # until beats come at the new pace
def stop():  # as good as gone, for the others
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
found["gone"] = error_of(lambda: together(stop))
if rank == 0:
    while " T " not in Path(f"/proc/{pids[1]}/stat").read_text():  # a busy machine may have accused it early
        time.sleep(0.1)
    os.kill(pids[1], signal.SIGCONT)
waiting.SILENT_BEATS = 10_000
found["apart"] = error_of(lambda: wait_for_all("here" if rank else "there"))
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


@pytest.mark.multiprocess
def test_two_ranks_wait_beyond_the_timeout_of_their_group(tmp_path: Path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    config = str(ROOT / "launch" / "cpu_2.yaml")
    launch = ["accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]
    command = [sys.executable, "-m", *launch, str(script), str(tmp_path)]
    done = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["group"] == second["group"] == [2, "gloo"]
    assert first["main"] == second["main"] == {"path": "a"}
    assert (first["each"], second["each"]) == (0, 1)
    assert second["entered"] >= first["left"]
    assert second["one"] == ["KeyError", "'no x'", False]
    assert first["one"] == ["OtherRankFailed", "rank 1 failed: KeyError: 'no x'", True]
    assert (first["elsewhere"], second["elsewhere"]) == ("rank 1 failed: KeyError: 'no x'", None)
    assert first["both"] == ["ValueError", "the same", False]
    assert second["both"] == ["ValueError", "the same", True]  # said once
    assert (first["of main"], second["of main"]) == tuple(["NoReplicaLeft", "all gone", said] for said in (False, True))
    assert (first["unknown"], second["unknown"]) == (["KeyError", "'no y'", False], ["ValueError", "'no y'", True])
    assert "rank 1 has shown no sign of life for 4 s" in first["gone"][1]
    assert "ranks wait for each other: rank 0 at there/0, rank 1 at here/1." in first["apart"][1]


BEATING = """
import time
import torch.distributed as dist
from entrl.trainers.shared import waiting

store = dist.TCPStore("127.0.0.1", 0, 1, True)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
waiting.BEAT_S = 0.0  # in the store all the time
waiting._show_life(0)
time.sleep(0.3)
"""


@pytest.mark.multiprocess
def test_a_rank_that_beats_ends_in_peace():
    """A beat under way when the interpreter ended took about every third such process with it (exit code -6)."""
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", BEATING], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]


def test_one_process_waits_for_nobody():
    assert together(lambda: 3) == alone_on_main(lambda: 3) == 3
    with main_first():
        wait_for_all()
    with pytest.raises(KeyError):
        alone_on_main(lambda: {}["x"])
    assert failed_elsewhere() is None
