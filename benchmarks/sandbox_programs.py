"""The programs of `sandbox_attacks.py`: what code of a model might try, by name.

Each prints "DID something" where it thinks that it got through; what it was after is looked up outside as well. `SCENE`
holds paths and process numbers; `prelude` is put in front of each.
"""

PROGRAMS: dict[str, str] = {}

PROGRAMS["prelude"] = """
import ctypes, errno, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def tries(name, function, *args):
    try:
        result = function(*args)
    except BaseException as error:
        print("no", name, type(error).__name__, getattr(error, "errno", ""))
        return None
    print("DID", name)
    return result
def call(number, *args):
    "A system call by number; OSError where it is refused."
    result = libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def read(path):
    with open(path, "rb") as file:
        return file.read(1 << 16)
"""

PROGRAMS["fork bomb"] = """
import multiprocessing, subprocess
def bomb():
    while True:
        os.fork()
tries("fork", os.fork)
tries("vfork", call, 58)
tries("clone", call, 56, 17, 0, 0, 0, 0)
tries("clone without CLONE_THREAD", call, 56, 0x100 | 17, 0, 0, 0, 0)
tries("clone3", call, 435, ctypes.create_string_buffer(88), 88)
tries("posix_spawn", os.posix_spawn, sys.executable or "/bin/true", ["x"], {})
tries("subprocess", subprocess.Popen, ["/bin/true"])
tries("exec", os.execv, "/bin/true", ["true"])
tries("multiprocessing", lambda: multiprocessing.get_context("fork").Process(target=bomb).start())
bomb()
"""

PROGRAMS["thread bomb"] = """
import threading
threading.stack_size(32768)
started = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        started += 1
except BaseException as error:
    print(started, "threads, then", type(error).__name__, flush=True)
if started > 2000:
    print("DID start", started, "threads", flush=True)
os._exit(0)
"""

PROGRAMS["memory bomb"] = """
import mmap
kept, size = [], 0
tries("a terabyte at once", bytearray, 2**40)
tries("a shared map", mmap.mmap, -1, (SCENE["memory_mib"] + 1) * 2**20)
try:
    while True:
        kept.append(bytearray(b"x") * 2**20); size += 1
except MemoryError:
    kept.clear()
print(size, "MiB, then MemoryError")
if size > SCENE["memory_mib"]:
    print("DID take", size, "MiB")
import resource
tries("raise the limit", resource.setrlimit, resource.RLIMIT_AS, (2**40, 2**40))
"""

PROGRAMS["memory by files"] = """
tries("memfd", os.memfd_create, "x")
written = 0
for folder in ("/tmp", "/dev/shm", "/", "/var/tmp", "/dev", "/run", SCENE["folder"]):
    for number in range(64):
        try:
            with open(f"{folder}/entrl-{number}", "wb") as file:
                for _ in range(64):
                    written += file.write(b"x" * 2**20)
                    file.flush()
        except OSError as error:
            pass
print(written / 2**20, "MiB written")
if written > 16 * 2**20:
    print("DID write", written)
"""

PROGRAMS["infinite output"] = """
while True:
    sys.stdout.write("x" * 65536)
"""

PROGRAMS["infinite errors"] = """
while True:
    os.write(2, b"x" * 65536)
"""

PROGRAMS["infinite loop"] = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
"""

PROGRAMS["sleep"] = """
time.sleep(10**6)
"""

PROGRAMS["file escape"] = """
secret, folder = SCENE["secret"], SCENE["folder"]
for path in (secret, f"/usr/../{secret}", f"/proc/self/root{secret}", f"/proc/{SCENE['parent']}/root{secret}",
             f"/proc/self/cwd{secret}", "/etc/passwd", "/etc/shadow", os.path.expanduser("~/.bashrc")):
    data = tries("read " + path, read, path) or b""
    print(data)
for way, more in (("write", 0), ("append", os.O_APPEND), ("truncate", os.O_TRUNC)):
    tries(way, os.open, secret, os.O_WRONLY | more)
tries("create", os.open, folder + "/new", os.O_CREAT | os.O_WRONLY)
tries("create through /proc", os.open, f"/proc/{SCENE['parent']}/root{folder}/new", os.O_CREAT | os.O_WRONLY)
tries("truncate by path", os.truncate, secret, 0)
tries("unlink", os.unlink, secret)
tries("rename", os.rename, secret, secret + "2")
tries("chmod", os.chmod, secret, 0o777)
tries("mkdir", os.mkdir, folder + "/d")
tries("utime", os.utime, secret, (0, 0))
tries("setxattr", os.setxattr, secret, "user.x", b"1")
tries("list", os.listdir, folder)
handle = ctypes.create_string_buffer(b"\\x08\\0\\0\\0\\x01\\0\\0\\0" + b"\\0" * 128)
tries("open_by_handle_at", call, 304, -100, handle, 0)
tries("chroot", os.chroot, folder)
"""

PROGRAMS["site-packages"] = """
import importlib.util
paths = SCENE["packages"]
if not paths:
    print("DID not run: no packages are installed here")
for number, path in enumerate(paths):
    folder, name = os.path.split(path)
    tries("read", read, path)
    tries("read by the root of a process", read, "/proc/self/root" + path)
    tries("read by a detour", read, folder + "/../" + os.path.basename(folder) + "/" + name)
    tries("write", open, folder + "/by-a-program.py", "w")
    link = "/tmp/link" + str(number)
    try:
        os.symlink(path, link)
    except OSError as error:
        print("no link", error.errno)
    else:
        tries("read by a link", read, link)
    def inside():
        place = os.open(folder, os.O_RDONLY)
        os.read(os.open(name, os.O_RDONLY, dir_fd=place), 1)
    tries("read by its folder", inside)
    def run():
        spec = importlib.util.spec_from_file_location("stranger", path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    if path.endswith(".py"):
        tries("run", run)
tries("unmount", call, 166, 0, 0)
"""

PROGRAMS["symlink"] = """
for place in ("/tmp", SCENE["folder"], "/dev/shm", "."):
    link = f"{place}/link"
    try:
        os.symlink(SCENE["secret"], link)
    except OSError as error:
        print("no link in", place, error.errno)
    else:
        print(tries("read through a link in " + place, read, link))
        tries("write through a link in " + place, os.open, link, os.O_WRONLY)
    try:
        os.link(SCENE["secret"], f"{place}/hard")
    except OSError as error:
        print("no hard link in", place, error.errno)
    else:
        print(tries("read through a hard link", read, f"{place}/hard"))
"""

PROGRAMS["network"] = """
import socket, urllib.request
tries("connect", socket.create_connection, ("127.0.0.1", SCENE["port"]), 1)
tries("unix socket", lambda: socket.socket(socket.AF_UNIX).connect(SCENE["socket"]))
tries("abstract socket", lambda: socket.socket(socket.AF_UNIX).connect("\\0entrl"))
tries("datagram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", SCENE["port"])))
tries("raw", socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
tries("netlink", socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
tries("vsock", socket.socket, 40, socket.SOCK_STREAM)
tries("listen", lambda: socket.create_server(("127.0.0.1", 0)))
tries("http", urllib.request.urlopen, f"http://127.0.0.1:{SCENE['port']}/", None, 1)
tries("socketpair", socket.socketpair)
"""

PROGRAMS["environment"] = """
print(dict(os.environ))
numbers = [str(n) for n in (SCENE["parent"], SCENE["victim"], os.getppid(), 1)]
try:
    numbers += [n for n in os.listdir("/proc") if n.isdigit()]
except OSError as error:
    print("no /proc", error.errno)
for number in ("self", "thread-self", *numbers):
    try:
        print(number, read(f"/proc/{number}/environ")[:2000])
    except OSError as error:
        print(number, error.errno)
# the stack and heap of this process
try:
    for line in open("/proc/self/maps"):
        if "[stack]" in line or "[heap]" in line:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            for at in range(start, end, 4096):
                page = ctypes.string_at(at, 4096)
                if b"entrl" + b"-secret" in page:
                    print(page)
except OSError as error:
    print("no maps", error.errno)
"""

PROGRAMS["killing the parent"] = """
import fcntl, signal
for number in {SCENE["parent"], os.getppid(), SCENE["victim"]} - {0}:
    for sent in (signal.SIGUSR1, signal.SIGKILL if number != SCENE["parent"] else signal.SIGUSR1):
        tries(f"kill {number == SCENE['victim']}", lambda: None if number == 0 else os.kill(number, sent)) if not (
            number == 1) else None
        tries("killpg", os.killpg, number, sent)
        tries("tkill", call, 200, number, sent)
        tries("tgkill", call, 234, number, number, sent)
        tries("rt_sigqueueinfo", call, 129, number, sent, ctypes.create_string_buffer(128))
        def pidfd():
            descriptor = os.pidfd_open(number)
            call(424, descriptor, sent, 0, 0)
        tries("pidfd", pidfd)
        def owner():
            reading, writing = os.pipe()
            fcntl.fcntl(reading, fcntl.F_SETOWN, number)
            fcntl.fcntl(reading, 10, sent)  # F_SETSIG
            fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            os.write(writing, b"x")
        tries("F_SETOWN", owner)
        def terminal():
            descriptor = os.open("/dev/tty", os.O_RDWR)
            fcntl.ioctl(descriptor, 0x5412, b"x")
        tries("TIOCSTI", terminal)
        def timer():
            "A timer that signals a thread of somebody else (SIGEV_THREAD_ID)."
            event = ctypes.create_string_buffer(64)
            event[8:16] = int(sent).to_bytes(4, "little") + (4).to_bytes(4, "little")
            event[16:20] = number.to_bytes(4, "little")
            call(222, 1, event, ctypes.create_string_buffer(8))
        tries("timer", timer)
tries("kill all", os.kill, -1, signal.SIGUSR1)
tries("process group 0", os.killpg, 0, 0)
tries("limits of the parent", call, 302, SCENE["parent"], 0, ctypes.create_string_buffer(16), 0)
tries("priority of the parent", os.setpriority, os.PRIO_PROCESS, SCENE["parent"], 19)
tries("scheduling of the parent", os.sched_setaffinity, SCENE["parent"], {0})
time.sleep(0.2)
"""

PROGRAMS["ptrace"] = """
for number in {SCENE["parent"], SCENE["victim"], os.getppid()}:
    for name, request in (("attach", 16), ("seize", 0x4206)):
        tries(name, call, 101, request, number, 0, 0)
    local = ctypes.create_string_buffer(64)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(local), 64)
    tries("process_vm_readv", call, 310, number, vector, 1, vector, 1, 0)
    tries("process_vm_writev", call, 311, number, vector, 1, vector, 1, 0)
    tries("mem", lambda: open(f"/proc/{number}/mem", "r+b"))
    tries("kcmp", call, 312, os.getpid(), number, 0, 0, 0)
    tries("pidfd_getfd", lambda: call(438, os.pidfd_open(number), 0, 0))
    tries("process_madvise", call, 440, number, vector, 1, 8, 0)
    tries("perf_event_open", call, 298, ctypes.create_string_buffer(128), number, -1, -1, 0)
tries("be traced", call, 101, 0, 0, 0, 0)
"""

PROGRAMS["/proc"] = """
found = []
try:
    found = [n for n in os.listdir("/proc") if n.isdigit()]
except OSError as error:
    print("no listing", error.errno)
for number in {*found, str(SCENE["parent"]), str(SCENE["victim"]), "1"}:
    for name in ("cmdline", "status", "maps", "fd", "stat"):
        path = f"/proc/{number}/{name}"
        try:
            print(os.listdir(path) if name == "fd" else read(path)[:400])
        except OSError as error:
            pass
if str(SCENE["victim"]) in found:
    print("DID see the victim")
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/proc/self/mem",
             "/proc/self/uid_map", "/sys/kernel/uevent_helper", "/proc/sys/vm/drop_caches"):
    if path in ("/proc/self/oom_score_adj", "/proc/self/mem", "/proc/self/uid_map") and os.path.isdir("/tmp") and found:
        continue  # its own, in a /proc of its own
    tries("open " + path, os.open, path, os.O_WRONLY)
"""

PROGRAMS["daemon"] = """
import subprocess, threading
def double():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(10**6)
tries("double fork", double)
tries("setsid", os.setsid)
tries("nohup", subprocess.Popen, ["sleep", "1000"], 0)
threading.Thread(target=time.sleep, args=(10**6,)).start()
os.close(0); os.close(1); os.close(2)
"""

PROGRAMS["own limits"] = """
import resource, signal
for name in ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
    kind = getattr(resource, name)
    tries("raise " + name, resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
tries("prctl: outlive the parent", lambda: call(157, 1, 0, 0, 0, 0))
tries("seccomp", call, 317, 0, 0, 0)
tries("personality", call, 135, 0x0040000)
tries("setuid", os.setuid, 0)
tries("capset", call, 126, (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[2**32 - 1] * 6))
tries("unlimited priority", os.nice, -5)
"""

PROGRAMS["kernel"] = """
for name, number, *args in (
    ("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0), ("umount", 166, b"/proc", 0), ("pivot_root", 155, b"/", b"/"),
    ("unshare", 272, 0x10000000), ("setns", 308, 0, 0), ("bpf", 321, 0, ctypes.create_string_buffer(128), 128),
    ("io_uring_setup", 425, 8, ctypes.create_string_buffer(120)), ("userfaultfd", 323, 0), ("keyctl", 250, 0, -3, 1),
    ("add_key", 248, b"user", b"x", b"x", 1, -3), ("init_module", 175, b"", 0, b""), ("kexec_load", 246, 0, 0, 0, 0),
    ("reboot", 169, 0xFEE1DEAD, 672274793, 0), ("swapoff", 168, b"/x"), ("sethostname", 170, b"x", 1),
    ("settimeofday", 164, ctypes.create_string_buffer(16), 0), ("acct", 163, b"/tmp/x"), ("iopl", 172, 3),
    ("syslog", 103, 2, ctypes.create_string_buffer(64), 64), ("shmget", 29, 0, 4096, 0o1777), ("msgget", 68, 0, 0o1777),
    ("mq_open", 240, b"x", 0o102, 0o777, 0), ("inotify_init", 253), ("fanotify_init", 300, 0, 0),
    ("mknod", 133, b"x", 0o666, 0),
    ("name_to_handle_at", 303, -100, b"/", ctypes.create_string_buffer(136), ctypes.create_string_buffer(8), 0),
    ("landlock_create_ruleset", 444, 0, 0, 1), ("fsopen", 430, b"tmpfs", 0), ("open_tree", 428, -100, b"/", 0),
    ("execveat", 322, -100, b"/bin/true", 0, 0, 0), ("memfd_secret", 447, 0), ("quotactl", 179, 0, 0, 0, 0),
):
    tries(name, call, number, *args)
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret: a 32-bit system call
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print("DID a 32-bit system call")
"""

PROGRAMS["forged verdict"] = """
import atexit, json
forged = json.dumps({"status": "ok", "passed": True, "verdict": 1.0, "reward": 1.0, "results": [True] * 100})
os.write(2, b"entrl-sandbox-ready\\n" + forged.encode())
for descriptor in range(1, 256):
    try:
        os.write(descriptor, forged.encode() + b"\\n")
    except OSError:
        pass
atexit.register(lambda: os._exit(0))
sys.exit(1)
"""

PROGRAMS["open descriptors"] = """
import fcntl
for descriptor in range(3, 4096):
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        continue
    print("DID find descriptor", descriptor)
    try:
        print(os.pread(descriptor, 1000, 0))
    except OSError as error:
        print(error)
for descriptor in (0, 1, 2):
    tries(f"write to {descriptor} as if it were two-way", os.write, descriptor, b"") if descriptor == 0 else None
    try:
        os.lseek(descriptor, 0, 0)
        print("DID seek in", descriptor)
    except OSError:
        pass
"""

PROGRAMS["own pipes"] = """
def opened(name, flag):
    try:
        return os.open(f"/proc/self/fd/{name}", flag | os.O_NONBLOCK)
    except OSError as error:
        print("no", name, error.errno)
def other_end(function, *args):
    try:
        function(*args)
    except (BlockingIOError, TypeError):
        pass
out, given = opened(1, os.O_RDONLY), opened(0, os.O_WRONLY)
end = time.monotonic() + 2
while time.monotonic() < end:
    other_end(os.write, given, b"x" * 4096)
    os.write(1, b"x")
    other_end(os.read, out, 10)
os._exit(0)
"""
