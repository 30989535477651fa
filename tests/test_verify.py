"""The pool against items that really hang, crash, exit, raise and eat memory, in real processes."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from entrl.verify import Verdict, VerifierError, VerifierPool, shared_pool

CHECKER = """
import ctypes, os, re, signal, sys, time

def square(x):
    return x * x

def act(what, arg=None):
    if what == "spin":
        while True:
            pass
    if what == "spin_in_c":  # never gives the interpreter back: only a SIGKILL ends it
        re.match(r"(a+)+$", "a" * 64 + "b")
    if what == "ignore_term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(60)
    if what == "exit":
        os._exit(7)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "raise":
        raise KeyError("nothing here")
    if what == "memory":
        return len(bytearray(64 * 2**30))
    if what == "sys_exit":
        sys.exit(3)
    if what == "print":
        print("noise " * 2000)
        sys.stdout.flush()
    if what == "sleep":
        time.sleep(arg)
    if what == "pid":
        return os.getpid()
    return what
"""


@pytest.fixture
def checker(tmp_path, monkeypatch):
    (tmp_path / "a_checker.py").write_text(CHECKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "a_checker"


@pytest.fixture
def pool():
    pool = VerifierPool(2)
    yield pool
    pool.close()


def test_values_come_back_in_order(pool, checker):
    verdicts = pool.run(f"{checker}:square", [(i,) for i in range(200)])
    assert [v.value for v in verdicts] == [i * i for i in range(200)]
    assert {v.status for v in verdicts} == {"ok"}
    assert pool.started == 2


@pytest.mark.parametrize("bad", ["spin", "spin_in_c", "ignore_term"])
def test_a_hanging_item_costs_that_item_only(pool, checker, bad):
    items = [("a",), ("b",), (bad,), ("c",), ("d",), ("e",)]
    began = time.monotonic()
    verdicts = pool.run(f"{checker}:act", items, timeout_s=0.5)
    assert time.monotonic() - began < 10
    assert [v.status for v in verdicts] == ["ok", "ok", "timeout", "ok", "ok", "ok"]
    assert [v.value for v in verdicts] == ["a", "b", None, "c", "d", "e"]
    assert "0.5 s" in verdicts[2].detail


@pytest.mark.parametrize(
    ("bad", "why"), [("exit", "exit code 7"), ("segfault", "SIGSEGV"), ("sys_exit", "exit code 3")]
)
def test_a_dying_item_costs_that_item_only(pool, checker, bad, why):
    verdicts = pool.run(f"{checker}:act", [("a",), (bad,), ("b",), ("c",)])
    assert [v.status for v in verdicts] == ["ok", "crash", "ok", "ok"]
    assert why in verdicts[1].detail
    assert [v.value for v in pool.run(f"{checker}:act", [("a",)] * 8)] == ["a"] * 8
    assert pool.started == 3


@pytest.mark.parametrize(("bad", "why"), [("raise", "KeyError"), ("memory", "MemoryError")])
def test_an_exception_is_that_items_crash_and_needs_no_restart(pool, checker, bad, why):
    verdicts = pool.run(f"{checker}:act", [("a",), (bad,), ("b",)])
    assert [v.status for v in verdicts] == ["ok", "crash", "ok"]
    assert why in verdicts[1].detail
    assert pool.started == 2


def test_every_item_hangs(pool, checker):
    verdicts = pool.run(f"{checker}:act", [("spin",)] * 4, timeout_s=0.2)
    assert [v.status for v in verdicts] == ["timeout"] * 4
    assert pool.run(f"{checker}:act", [("a",)]) == [Verdict(status="ok", value="a")]


def test_the_clock_is_per_item_not_per_batch(checker):
    pool = VerifierPool(1)
    verdicts = pool.run(f"{checker}:act", [("sleep", 0.3)] * 4, timeout_s=0.9)
    pool.close()
    assert [v.status for v in verdicts] == ["ok"] * 4


def test_importing_is_not_on_the_clock(checker, pool, tmp_path):
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(0.8)\n")
    verdicts = pool.run(f"{checker}:square", [(3,)], timeout_s=0.4, imports=["slow_import"])
    assert verdicts == [Verdict(status="ok", value=9)]


def test_what_a_checker_prints_does_not_reach_the_answers(pool, checker):
    assert [v.value for v in pool.run(f"{checker}:act", [("print",), ("a",)])] == ["print", "a"]


def test_a_checker_that_cannot_be_loaded_stops_the_run(pool, checker):
    with pytest.raises(VerifierError, match=r"cannot load a_checker:cube: AttributeError"):
        pool.run(f"{checker}:cube", [(1,)])
    with pytest.raises(VerifierError, match="ModuleNotFoundError"):
        pool.run("no_such_module_here:x", [(1,)])
    assert pool.run(f"{checker}:square", [(2,)])[0].value == 4


def test_nothing_to_do_starts_nothing(pool):
    assert pool.run("anything:at_all", []) == []
    assert pool.started == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        VerifierPool(0)
    with pytest.raises(ValueError, match="timeout_s must be > 0"):
        VerifierPool().run("a:b", [(1,)], timeout_s=0)


def test_children_are_kept_and_closed(pool, checker):
    first = {v.value for v in pool.run(f"{checker}:act", [("pid",)] * 8)}
    second = {v.value for v in pool.run(f"{checker}:act", [("pid",)] * 8)}
    assert first == second
    pool.close()
    for pid in first:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_idle_child_that_died_is_replaced(pool, checker):
    pids = {v.value for v in pool.run(f"{checker}:act", [("pid",)] * 8)}
    for pid in pids:
        os.kill(pid, 9)
    assert [v.status for v in pool.run(f"{checker}:act", [("a",)] * 8)] == ["ok"] * 8


def test_after_a_fork_the_child_has_children_of_its_own(pool, checker):
    parents = {v.value for v in pool.run(f"{checker}:act", [("pid",)] * 4)}
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # the forked process: report and leave without pytest's clean-up
        try:
            verdicts = pool.run(f"{checker}:act", [("pid",)] * 4)
            ok = {v.status for v in verdicts} == {"ok"} and not {v.value for v in verdicts} & parents
            pool.close()
            os.write(write, b"1" if ok else b"0")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"1"
    assert {v.value for v in pool.run(f"{checker}:act", [("pid",)] * 4)} <= parents


def test_a_child_starts_without_torch(pool):
    names = pool.run("builtins:eval", [("'torch' in __import__('sys').modules",)], imports=["entrl_rewards.accuracy"])
    assert names == [Verdict(status="ok", value=False)]


def test_shared_pool_is_one_per_number_of_workers():
    assert shared_pool(2) is shared_pool(2)


def test_from_a_script_on_standard_input():
    """Where `multiprocessing` spawn fails: no file to import again, no main guard."""
    script = textwrap.dedent("""
        from entrl.verify import VerifierPool
        print([v.value for v in VerifierPool(2).run("math:sqrt", [(4,), (9,)])])
    """)
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[2.0, 3.0]", done.stderr


@pytest.mark.multiprocess
def test_two_accelerate_ranks_have_pools_of_their_own(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(
        textwrap.dedent("""
            import torch.distributed as dist
            from accelerate import Accelerator
            from accelerate.utils import gather_object
            from entrl_rewards.accuracy import Accuracy

            rank = Accelerator(cpu=True)
            assert rank.num_processes == 2 and dist.get_backend() == "gloo"
            hang = r"\\boxed{\\sum_{k=1}^{9^{9^{9^9}}} k}"
            texts = [r"\\boxed{2}", hang] if rank.process_index else [r"\\boxed{2}", r"\\boxed{3}"]
            scores = gather_object(Accuracy(timeout_s=1.0).score(texts, ["2", "2"]))
            if rank.is_main_process:
                print("scores", scores)
        """)
    )
    # MULTI_CPU starts one process here; MULTI_GPU in the launcher with cpu=True in the script gives two gloo ranks.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=120, env=env)
    assert "scores [1.0, 0.0, 1.0, None]" in done.stdout, done.stderr


def test_an_orphan_that_hangs_is_ended_by_the_kernel(checker, tmp_path):
    script = textwrap.dedent(f"""
        import os, sys, threading, time
        sys.path.insert(0, {str(tmp_path)!r})
        from entrl.verify import VerifierPool
        pool = VerifierPool(1)
        print(pool.run("a_checker:act", [("pid",)])[0].value, flush=True)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), 9)).start()
        pool.run("a_checker:act", [("spin",)], timeout_s=1.0)
    """)
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60)
    child = int(done.stdout)
    until = time.monotonic() + 20
    while time.monotonic() < until and _runs(child):
        time.sleep(0.1)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether it lives; an unreaped zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
