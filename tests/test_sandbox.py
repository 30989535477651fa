"""Programs in the sandbox: what they get, what they may use, what is said when it cannot be had."""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from entrl.errors import SandboxError
from entrl.sandbox import Limits, boxes, open_sandbox, permit_unsafe, probe, processes, tiers
from entrl.sandbox.groups import end_group, ended
from entrl.sandbox.probing import TIERS

SHORT = Limits(wall_s=1.5, cpu_s=1, memory_mib=256, output_kib=16)


@pytest.fixture(params=TIERS)
def box(request):
    why = next(found.why for found in probe() if found.tier == request.param)
    if why:
        pytest.skip(f"not covered here: {request.param}: {why}")
    return open_sandbox(tier=request.param, limits=SHORT)


def test_input_output_and_exit_code(box):
    outcome = box.run("import sys\nprint(sum(map(int, input().split())), file=sys.stdout)\nsys.exit(3)", b"3 4\n")
    assert (outcome.status, outcome.stdout, outcome.exit_code) == ("error", b"7\n", 3)
    assert box.run("print(open(0).read()[::-1])", "añb".encode()).stdout.decode() == "bña\n"
    assert box.run("", b"x" * 300_000).status == "ok"  # a program need not read what it is given


def test_a_program_is_main_and_sees_an_empty_environment(box):
    program = "import os, sys\nprint(__name__, sys.argv, hash('a'), *sorted(os.environ))"
    outcome = box.run(program)
    assert outcome.stdout.startswith(b"__main__ ['program.py'] ")
    assert outcome.stdout == box.run(program).stdout  # PYTHONHASHSEED; LC_CTYPE is Python's own, PWD bubblewrap's
    assert set(outcome.stdout.split()[3:]) <= {b"PYTHONHASHSEED", b"LC_CTYPE", b"PWD"}


def test_errors_of_the_program_are_its_own(box):
    assert b"ZeroDivisionError" in box.run("1/0").stderr
    assert b"SyntaxError" in box.run("def").stderr
    assert box.run("import os; os.abort()").status == "error"
    assert box.run("import ctypes; ctypes.string_at(0)").exit_code == -11


def test_the_standard_library_with_what_it_is_linked_to(box):
    outcome = box.run("import ctypes, decimal, hashlib, lzma, sqlite3, ssl, zlib, zoneinfo\nprint(zlib.crc32(b'a'))")
    assert outcome.stdout == b"3904355907\n", outcome.stderr


@pytest.mark.slow
def test_limits(box):
    assert box.run("while True: pass").status == "timeout"
    asleep = box.run("import time; time.sleep(60)")
    assert asleep.status == "timeout"
    assert 1.4 < asleep.seconds < 6
    assert b"MemoryError" in box.run("x = bytearray(300 * 2**20)").stderr
    assert box.run("x = bytearray(100 * 2**20); print(len(x))").status == "ok"


@pytest.mark.slow
def test_output_is_cut_by_the_parent(box):
    for stream in ("stdout", "stderr"):
        outcome = box.run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)")
        assert outcome.status == "output"
        assert len(outcome.stdout) <= 16 * 1024
        assert len(outcome.stderr) <= 1024


def test_installed_packages_cannot_be_read_and_all_of_the_standard_library_can(box):
    """Those of the interpreter and of a virtual environment, wherever they lie."""
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("purelib", vars={"base": sys.base_prefix})}
    files = [str(next(Path(folder).glob("*/__init__.py"))) for folder in own]
    program = f"""
import os, pkgutil
for file in {files!r}:
    try:
        open(file).close()
    except OSError as error:
        print(type(error).__name__)
for module in pkgutil.iter_modules():
    file = module.module_finder.find_spec(module.name).origin
    open(file, "rb").close() if file and os.path.sep in file else None
print("done")
"""
    *refused, last = box.run(program).stdout.decode().split()
    assert last == "done"
    assert len(refused) == len(files)
    assert set(refused) <= {"PermissionError", "FileNotFoundError"}


def test_landlock_names_the_neighbours_of_packages_and_follows_no_link(monkeypatch, tmp_path):
    """A link beside the packages would give what it points to."""
    (tmp_path / "lib" / "python3" / "dist-packages").mkdir(parents=True)
    (tmp_path / "lib" / "json").mkdir()
    (tmp_path / "lib" / "python3" / "tool.py").touch()
    (tmp_path / "lib" / "elsewhere").symlink_to("/etc")
    root = str(tmp_path / "lib")
    monkeypatch.setattr(tiers, "SYSTEM", (root,))
    monkeypatch.setattr(tiers, "python_paths", tuple)
    for cached in (tiers.package_folders, tiers.readable):
        cached.cache_clear()
    read, listed = tiers.readable()
    for cached in (tiers.package_folders, tiers.readable):
        cached.cache_clear()
    assert read == (f"{root}/json", f"{root}/python3/tool.py", *tiers.DEVICES)
    assert listed == (root, f"{root}/python3")


def test_the_group_is_killed_before_its_leader_is_collected():
    """What outlived the leader goes with it; once the number is free, nobody is signalled."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.exit(7)"

    def leader():
        started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        assert started.stdout is not None
        with started.stdout as output:
            return started, int(output.readline())

    process, child = leader()
    assert ended(process, 20) == 7
    assert process.returncode is None  # so the number is still its own
    _wait_for(lambda: _read(f"/proc/{child}/cmdline"))  # empty for a moment while it starts
    assert end_group(process) == 7
    _wait_for(lambda: not _read(f"/proc/{child}/cmdline"))

    process, child = leader()
    process.wait()
    assert (ended(process), end_group(process, patience_s=1)) == (7, 7)
    _wait_for(lambda: _read(f"/proc/{child}/cmdline"))  # empty for a moment while it starts
    os.kill(child, signal.SIGKILL)


def test_how_long_an_end_is_waited_for():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    began = time.monotonic()
    assert ended(process, 0.2) is None
    assert 0.2 <= time.monotonic() - began < 5
    assert end_group(process, patience_s=20) == -signal.SIGTERM


def test_a_thread_for_deep_recursion(box):
    program = """
import sys, threading
sys.setrecursionlimit(10**6); threading.stack_size(2**26)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
thread = threading.Thread(target=lambda: print(depth(50_000))); thread.start(); thread.join()
"""
    assert box.run(program).stdout == b"50000\n"


def test_several_at_a_time_in_order(box):
    outcomes = box.run_all([("print(int(input()) ** 2)", str(n).encode()) for n in range(8)])
    assert [int(outcome.stdout) for outcome in outcomes] == [n**2 for n in range(8)]


@pytest.mark.slow
def test_outputs_closed_by_a_program_that_goes_on(box):
    began = time.monotonic()
    assert box.run("import os, time\nos.close(1); os.close(2); time.sleep(60)").status == "timeout"
    assert time.monotonic() - began < 10


def test_a_sandbox_that_fails_is_no_verdict_on_the_program(box, monkeypatch):
    monkeypatch.setattr(processes, "order", lambda *_: (99).to_bytes(8, "big"))
    with pytest.raises(SandboxError, match=r"could not start a program .*standard input ended early"):
        box.run("print(1)")


@pytest.mark.slow
def test_a_program_that_empties_and_fills_its_own_pipes(box):
    """It opens them the other way round: what was ready when the parent looked is so no more."""
    program = """
import os, time
try:
    out = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
except PermissionError:  # bubblewrap of root
    os._exit(0)
end = time.monotonic() + 1.0
while time.monotonic() < end:
    os.write(1, b"x")
    try:
        os.read(out, 10)
    except BlockingIOError:
        pass
"""
    assert box.run(program).status in ("ok", "output")


def test_a_pipe_that_is_not_ready_after_all_stays_open():
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(process.stdin.fileno(), bytes(1 << 16))
        watch = processes._Watch(process, b"more", "landlock", Limits())
        assert watch._send()
        assert watch.unsent == b"more"
        assert watch._receive(process.stdout.fileno())
        process.kill()


def test_a_killed_parent_takes_its_program_along(box):
    code = f"from entrl.sandbox import *; open_sandbox(tier={box.tier!r}).run('import time; time.sleep(60)')"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        # the probe's programs come and go before
        _wait_for(lambda: _below(parent.pid) and (time.sleep(1.5) or _below(parent.pid)))
        begun = _below(parent.pid)
        assert begun
    finally:
        parent.kill()
        parent.wait()
    _wait_for(lambda: not any(_read(f"/proc/{process}/cmdline") for process in begun))


def test_refused_where_nothing_works(monkeypatch):
    none = tuple(boxes.probe()[i].__class__(tier=tier, why="no kernel") for i, tier in enumerate(TIERS))
    monkeypatch.setattr(boxes, "probe", lambda: none)
    with pytest.raises(SandboxError, match=r"bubblewrap: no kernel; landlock: no kernel\)\. Run it in a container"):
        open_sandbox()


def test_unsafe_only_where_a_person_has_said_so(monkeypatch):
    monkeypatch.setattr(boxes, "_permitted", [])
    with pytest.raises(ValueError, match="unsafe is a word of the command line only"):
        open_sandbox(tier="unsafe")
    permit_unsafe()
    assert open_sandbox().tier == "unsafe"
    assert open_sandbox(limits=SHORT).run("print(open('/proc/self/cmdline').read()[:1])").status == "ok"


def test_limits_are_checked():
    with pytest.raises(ValueError, match="wall_s must be > 0, got 0"):
        Limits(wall_s=0)
    with pytest.raises(ValueError, match="cpu_s must be a whole number"):
        Limits(cpu_s=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="workers must be >= 1"):
        open_sandbox(workers=0)


def test_from_many_threads():
    box, found = open_sandbox(limits=SHORT), []
    threads = [threading.Thread(target=lambda: found.append(box.run("print(1)").stdout)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"1\n"] * 4


def _below(process):
    """Children of a process, and theirs."""
    children = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        children += [int(child) for child in _read(task).split()]
    return children + [deeper for child in children for deeper in _below(child)]


def _read(file):
    try:
        return Path(file).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _wait_for(found, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come")
