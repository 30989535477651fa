"""The system calls a program may make, as a filter the kernel runs (seccomp), made by libseccomp.

A list of what is allowed: whatever is not on it fails with EPERM, calls that later kernels bring too. It is what the
interpreter and the standard library need to compute, read files that may be read, and print. Not on it, among others:
fork, vfork, execve, socket and what belongs to it, kill and its kin, ptrace, process_vm_*, pidfd_*, mount, unshare,
setns, bpf, io_uring_*, perf_event_open, userfaultfd, keyctl, memfd_create, open_by_handle_at, and all that changes
files. clone makes threads only; clone3, whose arguments a filter cannot see, answers ENOSYS, so that the C library
falls back to clone.

fcntl is cut to copying descriptors and flags: F_SETOWN with F_SETSIG sends signals to other processes. ioctl is cut to
the question whether a descriptor is a terminal.

libseccomp knows the numbers of the calls on every architecture; its Python bindings in the registry are of 2021, so its
three functions are called through ctypes.
"""

import ctypes
import errno
import functools
import os
from typing import NamedTuple

from entrl.errors import SandboxError

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
EQUAL, MASKED_EQUAL = 4, 7  # libseccomp's comparisons
UNKNOWN = -1  # a name this libseccomp, or this architecture, does not have

THREAD = 0x00010000  # CLONE_THREAD
NAMESPACES = 0x7E020080  # CLONE_NEW* of any kind
TCGETS = 0x5401
FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC

COMPUTE = """
    read readv pread64 preadv write writev pwrite64 close close_range fstat newfstatat stat lstat statx fstatfs lseek
    open openat access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd dup dup2 dup3 pipe pipe2
    poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
    mmap munmap mprotect mremap madvise brk
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending sigaltstack alarm setitimer getitimer pause
    futex set_robust_list set_tid_address rseq arch_prctl sched_yield sched_getaffinity getcpu restart_syscall
    getrandom clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage getrlimit
    getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getgroups uname sysinfo
    exit exit_group
"""
# In a place of its own to write to, which only bubblewrap makes.
WRITE = """
    mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat truncate ftruncate
    chdir fchdir fsync fdatasync umask utimensat copy_file_range sendfile flock
"""


class Comparison(NamedTuple):
    argument: int
    how: int
    value: int
    second: int = 0


# Calls that are allowed with certain arguments only; each line is a rule of its own.
BOUNDED: list[tuple[str, Comparison]] = [
    ("clone", Comparison(0, MASKED_EQUAL, THREAD | NAMESPACES, THREAD)),
    ("prlimit64", Comparison(0, EQUAL, 0)),  # of itself
    ("ioctl", Comparison(1, EQUAL, TCGETS)),
    *(("fcntl", Comparison(1, EQUAL, command)) for command in FCNTL),
]


class _Compared(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint), ("how", ctypes.c_int), ("value", ctypes.c_uint64), ("second", ctypes.c_uint64),
    )  # fmt: skip


@functools.cache
def system_call_filter(*, writes: bool) -> bytes:
    """The filter as the kernel takes it (an array of 8-byte BPF instructions); SandboxError without libseccomp.

    writes: also calls that change files.
    """
    library = _library()
    context = library.seccomp_init(ERRNO | errno.EPERM)
    if not context:
        raise SandboxError("libseccomp cannot make a filter (seccomp_init failed)")
    try:
        for name in (COMPUTE + (WRITE if writes else "")).split():
            _allow(library, context, name, ())
        for name, comparison in BOUNDED:
            _allow(library, context, name, (comparison,))
        _rule(library, context, ERRNO | errno.ENOSYS, "clone3", ())
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise SandboxError(
            "the sandbox needs libseccomp.so.2, which is not installed; apt-get install libseccomp2"
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compared),
    ]  # fmt: skip
    return library


def _allow(library: ctypes.CDLL, context: int, name: str, compared: tuple[Comparison, ...]) -> None:
    _rule(library, context, ALLOW, name, compared)


def _rule(library: ctypes.CDLL, context: int, action: int, name: str, compared: tuple[Comparison, ...]) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == UNKNOWN:
        return
    array = (_Compared * len(compared))(*(_Compared(*comparison) for comparison in compared))
    code = library.seccomp_rule_add_array(context, action, number, len(compared), array)
    # A call that this architecture has not (EDOM, EINVAL): the default refuses it, or it cannot be made at all.
    if code not in (0, -errno.EDOM, -errno.EINVAL):
        raise SandboxError(f"libseccomp refuses a rule for {name}: {os.strerror(-code)}")


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    reading, writing = os.pipe()
    try:
        os.set_blocking(reading, False)  # the filter is a few KiB, which a pipe holds
        if code := library.seccomp_export_bpf(context, writing):
            raise SandboxError(f"libseccomp cannot write the filter: {os.strerror(-code)}")
        return os.read(reading, 1 << 16)
    finally:
        os.close(reading)
        os.close(writing)
