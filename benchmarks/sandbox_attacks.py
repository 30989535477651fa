"""Attacks on the sandbox, each tried in every tier this machine offers; held, or what got through.

    python benchmarks/sandbox_attacks.py [--record NAME] [--only NAME ...] [--rate]

An attack is a program; whether it got through is looked up outside, in what it was after: a file, a listening socket,
a signal handler, a process that should live, processes that should be gone. `--rate` measures programs a second too.
As which user: whoever starts it. Needs nothing but `entrl.sandbox`, so a Python without our packages runs it as another
user:

    setpriv --reuid 61000 --regid 61000 --clear-groups env PYTHONPATH=src python3 benchmarks/sandbox_attacks.py
"""

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from entrl.sandbox import Limits, Outcome, Sandbox, open_sandbox, probe

sys.path.insert(0, str(Path(__file__).parent))
from sandbox_programs import PROGRAMS

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_suffix(".json")
LIMITS = Limits(wall_s=5.0, cpu_s=3, memory_mib=256, output_kib=64)
SETTLE_S = 3.0
SECRET = "entrl-secret-5f2c"
PR_SET_CHILD_SUBREAPER = 36
BASE = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # the interpreter's own, beside its environment's


class Scene(NamedTuple):
    """What an attack may be after."""

    folder: Path  # anybody may write here
    secret: Path  # anybody may read and write it
    victim: subprocess.Popen[bytes]  # a process of the same user, or of root
    server: socket.socket  # listens on 127.0.0.1
    unix: socket.socket  # listens on a path and would take anybody
    signals: list[int]  # that reached this process
    inherited: int  # an open, inheritable descriptor on the secret


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    os.environ["ENTRL_SECRET"] = SECRET
    with tempfile.TemporaryDirectory(prefix="entrl-attacks-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o777)
        secret = folder / "secret"
        secret.write_text(SECRET)
        secret.chmod(0o666)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(0.2)
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        unix.listen()
        unix.settimeout(0.2)
        signals: list[int] = []
        for number in (signal.SIGUSR1, signal.SIGIO):
            old = signal.signal(number, lambda got, _: signals.append(got))
            stack.callback(signal.signal, number, old)
        inherited = os.open(secret, os.O_RDONLY)
        stack.callback(os.close, inherited)
        os.set_inheritable(inherited, True)
        victim = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(10**6) # {SECRET}"])
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        yield Scene(folder, secret, victim, server, unix, signals, inherited)


def got_through(scene: Scene, outcome: Outcome, before: set[int], limits: Limits) -> str:
    """What an attack achieved, whichever it was; "" where it held."""
    said = (outcome.stdout + outcome.stderr).decode(errors="replace")
    found = []
    if SECRET in said:
        found.append("read what it must not")
    if "ImportError" in said or "ModuleNotFoundError" in said:
        found.append("nothing: the attack could not be run, so nothing is known")
    if "DID " in said:
        found.append("it says it did " + ", ".join(line[4:] for line in said.splitlines() if line.startswith("DID ")))
    if scene.secret.read_text() != SECRET or sorted(os.listdir(scene.folder)) != ["secret", "socket"]:
        found.append("changed files")
    if scene.secret.stat().st_mode & 0o777 != 0o666:
        found.append("changed rights")
    if scene.victim.poll() is not None:
        found.append("killed another process")
    if scene.signals:
        found.append("sent a signal to the parent")
    for name, listening in (("network", scene.server), ("unix socket", scene.unix)):
        with contextlib.suppress(TimeoutError):
            listening.accept()[0].close()
            found.append(f"connected by {name}")
    if left := sandboxed() - before:
        found.append(f"left {len(left)} processes behind")
    kept = limits.output_kib * 1024
    if len(outcome.stdout) > kept or len(outcome.stderr) > kept // 16:
        found.append("more output than the limit")
    if outcome.seconds > limits.wall_s + 3:
        found.append(f"ran for {outcome.seconds:.1f} s")
    return "; ".join(found)


def installed() -> list[str]:
    """Of each folder of packages that an interpreter of this machine has, two files that this user can read."""
    own = {sysconfig.get_path(name, vars=base) for base in ({}, BASE) for name in ("purelib", "platlib")}
    folders = {Path(path) for path in own} | set(Path("/usr/lib").glob("python3*/dist-packages"))
    found = []
    for folder in sorted(folders):
        files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("*/__init__.py"))]
        found += [str(file) for file in files if file.stat().st_size and os.access(file, os.R_OK)][:2]
    return found


def sandboxed() -> set[int]:
    """Living processes below this one; what loses its parent comes to us, the subreaper of all of them."""
    found = set(_below(os.getpid()))
    return {number for number in found if _read(Path(f"/proc/{number}/cmdline"))}


def _below(number: int) -> list[int]:
    children = []
    for file in Path(f"/proc/{number}/task").glob("*/children"):
        children += [int(child) for child in _read(file).split()]
    return children + [deeper for child in children for deeper in _below(child)]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def attack(box: Sandbox, name: str) -> dict[str, Any]:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)  # what is left behind comes to us
    with scene() as at:
        values = {
            "parent": os.getpid(), "victim": at.victim.pid, "secret": str(at.secret), "folder": str(at.folder),
            "port": at.server.getsockname()[1], "socket": str(at.folder / "socket"), "memory_mib": LIMITS.memory_mib,
            "packages": installed(),
        }  # fmt: skip
        program = f"SCENE = {values!r}\n{PROGRAMS['prelude']}\n{PROGRAMS[name]}"
        before, threads = sandboxed() | {at.victim.pid}, threads_now()  # the kernel may list a new child late
        outcome = box.run(program)
        until = time.monotonic() + SETTLE_S
        while sandboxed() - before and time.monotonic() < until:
            time.sleep(0.05)  # the kernel ends what a killed process was the parent of, when it gets to it
        through = got_through(at, outcome, before, box.limits)
    last = (outcome.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    said = outcome.stdout.decode(errors="replace").strip()[-160:]
    return {
        "held": not through, "through": through, "status": outcome.status, "exit_code": outcome.exit_code,
        "seconds": round(outcome.seconds, 2), "said": said or last[-160:], "threads_before": threads,
    }  # fmt: skip


def threads_now() -> int:
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])


def rate(tier: Any, *, programs: int = 64, workers: int = 4, rounds: int = 3) -> dict[str, Any]:
    """Trivial programs a second, and the processor time that one costs, its interpreter and bubblewrap included."""
    box = open_sandbox(tier=tier, workers=workers)
    jobs = [("print(sum(map(int, input().split())))", f"{n} 1".encode()) for n in range(programs)]
    seconds, cpu, loads = [], [], []
    for _ in range(rounds):
        loads.append(round(os.getloadavg()[0], 2))
        began, used = time.perf_counter(), _cpu()
        outcomes = box.run_all(jobs)
        seconds.append(round(time.perf_counter() - began, 3))
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        cpu.append(round(1000 * (_cpu() - used) / programs, 1))
        assert [int(outcome.stdout) for outcome in outcomes] == [n + 1 for n in range(programs)]
    return {
        "programs": programs, "workers": workers, "seconds": seconds, "load": loads,
        "per_second": round(programs / sorted(seconds)[rounds // 2], 1), "cpu_ms_each": cpu,
    }  # fmt: skip


def _cpu() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[name for name in PROGRAMS if name != "prelude"])
    parser.add_argument("--rate", action="store_true")
    parser.add_argument("--record", metavar="NAME", help=f"keep the result under this name in {RESULT.name}")
    args = parser.parse_args()
    entry: dict[str, Any] = {
        "commit": commit(),
        "user": "root" if os.geteuid() == 0 else "user",
        **machine(),
        "tiers": {},
    }
    for found in probe():
        if not found.works:
            entry["tiers"][found.tier] = {"not covered": found.why}
            print(f"{found.tier}: not covered here: {found.why}")
            continue
        box = open_sandbox(tier=found.tier, limits=LIMITS)
        results = {name: attack(box, name) for name in args.only}
        entry["tiers"][found.tier] = {"attacks": results}
        for name, result in results.items():
            verdict = "held" if result["held"] else f"GOT THROUGH: {result['through']}"
            print(f"{found.tier:<11} {name:<22} {verdict:<8} {result['status']:<8} {result['said'][:90]!r}", flush=True)
        if args.rate:
            entry["tiers"][found.tier]["rate"] = rate(found.tier)
            print(found.tier, entry["tiers"][found.tier]["rate"])
    if args.record:
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps(kept | {args.record: entry}, indent=1) + "\n")
    through = [
        result for of in entry["tiers"].values() for result in of.get("attacks", {}).values() if not result["held"]
    ]
    print(f"{len(through)} got through")
    return 1 if through else 0


def commit() -> str:
    git: Callable[..., Any] = subprocess.run
    head = git(["git", "-c", f"safe.directory={ROOT}", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    return head.stdout.strip() or os.environ.get("ENTRL_COMMIT", "unknown")


def machine() -> dict[str, str]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
