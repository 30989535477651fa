"""First lines of every sandboxed interpreter: `python -c` this text. Never imported; knows only the standard library.

Standard input is the length of a dictionary in marshal's form (8 bytes, big endian), the dictionary, then what the
program reads itself. Both ends are the same interpreter; json, base64, types and signal would double its start.
Everything the object asks for is taken before the marker is written to standard error; the parent starts the clock
there, and takes an end without a marker for a fault of the sandbox, not of the program. The order is forced: setting a
user id loses the signal of the parent's death, Landlock and the filter need no_new_privs, and after the filter nothing
else can be set.

    program   Python source               rlimits  [[name, soft, hard], ...]
    filter    BPF, empty for none         read     paths that may be read, None for no Landlock
    list      folders of which the names alone may be read
    uid       user and group id to take, None to stay      keep_read   whether Python can only be read as root
    users     whether to enter a user namespace            marker      what says ready
"""

import ctypes
import marshal
import os
import resource
import stat
import sys

SET_PDEATHSIG, SET_KEEPCAPS, SET_SECCOMP, SET_NO_NEW_PRIVS = 1, 8, 22, 38  # prctl
FILTER_MODE = 2
SIGKILL = 9
NEW_USER = 0x10000000  # CLONE_NEWUSER
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's calls, the same on every architecture
PATH_BENEATH = 1
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
# ABI -> how many rights over files there are from it on.
RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def main():
    order = marshal.loads(_exactly(int.from_bytes(_exactly(8), "big")))
    parent = os.getppid()
    for name, soft, hard in order["rlimits"]:
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        most = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (min(soft, most), most))
    if order["uid"] is not None:
        _become(order["uid"], keep_read=order["keep_read"])
    if order["users"]:
        _checked(libc.unshare(NEW_USER), "unshare")
        _keep_capabilities(0)  # a new namespace comes with all of its own
    _prctl(SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")
    _prctl(SET_NO_NEW_PRIVS, 1)
    if order["read"] is not None:
        _landlock(order["read"], order["list"])
    if order["filter"]:
        _filter(order["filter"])
    source, marker = order["program"], order["marker"]
    order.clear()
    main_module = type(sys)("__main__")
    sys.modules["__main__"], sys.argv = main_module, ["program.py"]
    os.write(2, marker)
    exec(compile(source, "program.py", "exec", dont_inherit=True), main_module.__dict__)


def _exactly(count):
    found = b""
    while len(found) < count:
        more = os.read(0, count - len(found))
        if not more:
            raise SystemExit("standard input ended early")
        found += more
    return found


def _checked(result, what):
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _prctl(option, value):
    _checked(libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), option)


def _become(uid, *, keep_read):
    """An unused user instead of root, without capabilities, or with the one to look through folders that are root's."""
    if keep_read:
        _prctl(SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if keep_read:
        _keep_capabilities(1 << CAP_DAC_READ_SEARCH)


def _keep_capabilities(bits):
    head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _checked(libc.capset(head, (ctypes.c_uint32 * 6)(bits, bits, 0, 0, 0, 0)), "capset")


def _landlock(paths, folders):
    abi = _checked(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1), "Landlock")
    handled = (1 << RIGHTS[max(known for known in RIGHTS if known <= abi)]) - 1
    attributes = [handled, *([3] if abi >= 4 else []), *([3] if abi >= 6 else [])]  # files, network, scopes
    words = (ctypes.c_uint64 * len(attributes))(*attributes)
    ruleset = _checked(libc.syscall(CREATE_RULESET, words, ctypes.c_size_t(ctypes.sizeof(words)), 0), "Landlock")
    for path in paths:
        _allow(ruleset, path, READ_FILE | READ_DIR)
    for path in folders:
        _allow(ruleset, path, READ_DIR)
    _checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _allow(ruleset, path, rights):
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= ~READ_DIR
    rights |= WRITE_FILE if path == os.devnull else 0
    rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
    _checked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0), f"Landlock, {path}")
    os.close(place)


def _filter(program):
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    built = Program(len(program) // 8, program)
    _checked(libc.prctl(SET_SECCOMP, ctypes.c_ulong(FILTER_MODE), ctypes.byref(built), 0, 0), "seccomp")


main()
