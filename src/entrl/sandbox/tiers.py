"""How an interpreter is started in each tier, and what it is told to give up.

bubblewrap: every namespace of its own (processes, network, mounts, users, ...), no capability, a private /proc, Python
and the system's libraries read-only and without installed packages, one tmpfs of a set size to write to, and the
filter of system calls.
landlock: the same file system and processes, but Landlock lets it read Python's paths alone, without installed
packages, and write nothing, and the filter leaves it no fork, no exec, no socket and no signal to others; as root, an
unused user first.
unsafe: the limits alone. Nothing keeps such a program from reading your files or killing your run.
"""

import functools
import marshal
import os
import shutil
import stat
import sys
import sysconfig
from pathlib import Path
from typing import Any

from entrl.errors import SandboxError
from entrl.sandbox.limits import Limits, Tier
from entrl.sandbox.system_calls import system_call_filter

MIB, KIB = 2**20, 2**10
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the same order of sets and dictionaries in every run
FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")  # no site-packages, no current folder, no bytecode written
FIRST_UID = 61184  # from here to 65519 are users for passing services, of which no file is owned
UIDS = 4096
THREADS = 64  # that one program may have
STACK = 64 * MIB  # bytes, for deep recursion
MARKER = b"entrl-sandbox-ready\n"
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@functools.cache
def interpreter() -> str:
    """The Python the programs run in: this one, without its virtual environment."""
    return os.path.realpath(sys.executable)


@functools.cache
def python_paths() -> tuple[str, ...]:
    """What an interpreter reads: itself, the standard library, the libraries it is linked with.

    Of the interpreter itself: `platstdlib` of a virtual environment is a folder that holds its site-packages.
    """
    own = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    paths = [interpreter(), *(sysconfig.get_path(name, vars=own) for name in ("stdlib", "platstdlib"))]
    shared = sysconfig.get_config_var("LIBDIR")
    paths += [str(Path(shared) / name) for name in _shared_libraries(shared)] if shared else []
    return tuple(dict.fromkeys(path for path in paths if path and not _inside(path, SYSTEM)))


@functools.cache
def package_folders() -> tuple[str, ...]:
    """Folders of installed packages beneath what an interpreter reads, which a program is not to see."""
    roots = [os.path.realpath(path) for path in (*SYSTEM, *python_paths())]
    patterns = [f"{inside}{name}" for inside in ("", "python3*/") for name in ("site-packages", "dist-packages")]
    found = {os.path.realpath(path) for root in roots for pattern in patterns for path in Path(root).glob(pattern)}
    return tuple(sorted(path for path in found if _inside(path, tuple(roots))))


@functools.cache
def readable() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what Landlock lets a program read, folders it may list and no more).

    Landlock cannot take back what it gave for the folder above, so the neighbours of packages are named one by one; a
    symlink is none of them, since its target would be meant.
    """
    read: list[str] = []
    listed: list[str] = []

    def give(path: str) -> None:
        if not any(_inside(folder, (path,)) for folder in package_folders()):
            read.append(path)
        elif path not in package_folders():
            listed.append(path)
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                if not entry.is_symlink():
                    give(entry.path)

    for path in dict.fromkeys(os.path.realpath(path) for path in (*SYSTEM, *python_paths())):
        give(path)
    return (*read, *DEVICES), tuple(listed)


def _shared_libraries(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("libpython")) if os.path.isdir(folder) else []


def _inside(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def command(tier: Tier, limits: Limits) -> list[str]:
    """What to start; SandboxError where the tier's program is missing."""
    python = [interpreter(), *FLAGS, "-c", _boot()]
    if tier != "bubblewrap":
        return python
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError("bubblewrap is not installed; apt-get install bubblewrap")
    words = [found, "--die-with-parent", "--new-session", "--hostname", "sandbox", "--cap-drop", "ALL", *_separate()]
    folders = {
        str(parent) for path in (*SYSTEM, *python_paths()) for parent in Path(path).parents if str(parent) != "/"
    }
    for folder in sorted(folders):  # for everybody to pass: bubblewrap itself makes them for their owner
        words += ["--perms", "0755", "--dir", folder]
    for path in (*SYSTEM, *python_paths()):
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            words += ["--ro-bind", path, path]
    for path in package_folders():
        words += ["--size", str(4 * KIB), "--perms", "0555", "--tmpfs", path, "--remount-ro", path]
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    words += ["--size", str(8 * limits.file_kib * KIB), "--perms", "1777", "--tmpfs", "/tmp"]
    return [*words, "--remount-ro", "/", "--chdir", "/tmp", "--", *python]


def _separate() -> list[str]:
    """Namespaces of every kind; who is process 1.

    For a user it is the program: bubblewrap's own would stand beside it, without the filter and with memory that the
    same user may write. Root keeps bubblewrap's, which a killed parent takes along (the program is another user by
    then, whom it may not signal), and leaves the namespace of users to `boot`: bubblewrap's would keep root's number
    outside, to which the kernel applies no bound on threads. It has the capabilities to leave root with, and them.
    """
    if os.geteuid():
        return ["--unshare-all", "--as-pid-1"]
    kinds = [f"--unshare-{kind}" for kind in ("ipc", "pid", "net", "uts", "cgroup-try")]
    return [*kinds, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def order(tier: Tier, limits: Limits, program: str) -> bytes:
    """What `boot` is told, with its length in front."""
    content: dict[str, Any] = {
        "program": program,
        "marker": MARKER,
        "rlimits": _rlimits(tier, limits),
        "filter": b"",
        "read": None,
        "list": (),
        "uid": None,
        "keep_read": False,
        "users": False,
    }
    if tier != "unsafe":
        content["filter"] = system_call_filter(writes=tier == "bubblewrap")
    if tier == "landlock":
        content["read"], content["list"] = readable()
    if tier != "unsafe" and os.geteuid() == 0:
        content["uid"] = FIRST_UID + int.from_bytes(os.urandom(2), "big") % UIDS
        content["keep_read"] = tier == "landlock" and not everybody_reads_python()
        content["users"] = tier == "bubblewrap"
    text = marshal.dumps(content)
    return len(text).to_bytes(8, "big") + text


@functools.cache
def everybody_reads_python() -> bool:
    """Whether an unused user reaches the standard library; not where it is under a folder such as /root."""
    folders = [Path(path) for path in (sysconfig.get_path("stdlib"), interpreter())]
    return all(parent.stat().st_mode & stat.S_IXOTH for path in folders for parent in path.parents)


@functools.cache
def _boot() -> str:
    return (Path(__file__).parent / "boot.py").read_text(encoding="utf-8")


def _rlimits(tier: Tier, limits: Limits) -> list[tuple[str, int, int]]:
    memory = limits.memory_mib * MIB
    files = 0 if tier == "landlock" else limits.file_kib * KIB
    threads = _threads(tier)
    found = [
        ("RLIMIT_AS", memory, memory),
        ("RLIMIT_CPU", limits.cpu_s, limits.cpu_s + 1),
        ("RLIMIT_FSIZE", files, files),
        ("RLIMIT_NOFILE", limits.open_files, limits.open_files),
        ("RLIMIT_STACK", STACK, STACK),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_MEMLOCK", 0, 0),
    ]
    return [*found, ("RLIMIT_NPROC", threads, threads)]


def _threads(tier: Tier) -> int:
    """The kernel counts the threads of a user: of a passing one, or in a user namespace, they are the program's own.

    Otherwise the bound is that many more than the whole machine has now, which is no less than the user's own.
    """
    if tier == "bubblewrap" or (tier == "landlock" and os.geteuid() == 0):
        return THREADS
    now = Path("/proc/loadavg").read_text().split()[3].partition("/")[2]
    return int(now) + THREADS
