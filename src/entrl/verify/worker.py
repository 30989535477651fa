"""The child process of `entrl.verify.pool`: reads batches, answers item by item. Imports nothing heavy by itself.

One JSON object a line, both ways.
In:   {"target", "imports", "timeout_s", "items": [[argument, ...], ...], "nonces": [one, and one more for each item]}
Out:  {"loaded": true} once the target can be called, or {"load_error": text}; then {"value"} or {"error"} an item.
      Each with its "nonce", in turn. A scorer is not told them.
"""

import functools
import importlib
import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

OWN = (
    "entrl.verify."  # targets that need no more than to compute; a user's own checker may start or write what it likes
)
# What code does that acts on anything but its own memory: audit events, or the beginnings of their names.
ACTS = (
    "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.kill", "os.startfile", "pty.", "subprocess.",
    "socket.", "shutil.", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
    "os.truncate", "os.chmod", "os.chown", "signal.pthread_kill", "ftplib.", "http.", "urllib.", "smtplib.",
)  # fmt: skip
LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 256}  # bytes of a core file; open descriptors


def main() -> None:
    """Serve until stdin closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.addaudithook(_wall)
    sys.dont_write_bytecode = True
    os.dup2(2, 1)  # whatever a scorer prints must not land in the answers
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeout is off
    for kind, limit in {resource.RLIMIT_AS: int(sys.argv[2]), **LIMITS}.items():
        resource.setrlimit(kind, (limit, limit))
    for line in sys.stdin:
        _serve(json.loads(line), answers)


def _serve(batch: dict[str, Any], answers: Any) -> None:
    nonces = iter(batch.pop("nonces"))
    _wall.up = False  # libraries set variables and look around while they are imported
    try:
        for name in batch["imports"]:
            importlib.import_module(name)
        function = _load(batch["target"])
    except Exception as error:
        _say(answers, {"load_error": f"{type(error).__name__}: {error}", "nonce": next(nonces)})
        return
    _say(answers, {"loaded": True, "nonce": next(nonces)})
    _wall.up = batch["target"].startswith(OWN)
    for item in batch["items"]:
        _limit_cpu(batch["timeout_s"])
        try:
            reply = {"value": function(*item)}
        except Exception as error:  # whatever it is, the parent counts and logs it as this item's crash
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        _say(answers, {**reply, "nonce": next(nonces)})


@functools.cache
def _load(target: str) -> Callable[..., Any]:
    """The function of a target, found once: what happens to its module later changes no verdict."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class _Wall:
    """While it is up, this process computes and does nothing else.

    A second wall: no check of ours runs text. It stops what goes through Python, not machine code.
    """

    up = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.up and (event.startswith(ACTS) or (event == "open" and self._writes(*arguments))):
            raise PermissionError(f"a verifier process may not do {event} {str(arguments)[:200]}")

    @staticmethod
    def _writes(_: Any, mode: str | None, flags: int) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR)) or any(letter in (mode or "") for letter in "wxa+")


_wall = _Wall()


def _say(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _limit_cpu(timeout_s: float) -> None:
    """A parent that was killed cannot kill us: past this CPU time the kernel does."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + 2 * timeout_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
