"""The child process of `entrl.verify.pool`: reads batches, answers item by item. Imports nothing heavy by itself.

One JSON object a line, both ways.
In:   {"target", "imports", "timeout_s", "items": [[argument, ...], ...]}
Out:  {"loaded": true} once the target can be called, or {"load_error": text}; then {"value"} or {"error"} an item.
"""

import importlib
import json
import logging
import math
import os
import resource
import sys
from typing import Any


def main() -> None:
    """Serve until stdin closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a scorer prints must not land in the answers
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeout is off
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        _serve(json.loads(line), answers)


def _serve(batch: dict[str, Any], answers: Any) -> None:
    try:
        for name in batch["imports"]:
            importlib.import_module(name)
        module, _, attribute = batch["target"].partition(":")
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        _say(answers, {"load_error": f"{type(error).__name__}: {error}"})
        return
    _say(answers, {"loaded": True})
    for item in batch["items"]:
        _limit_cpu(batch["timeout_s"])
        try:
            reply = {"value": function(*item)}
        except Exception as error:  # whatever it is, the parent counts and logs it as this item's crash
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        _say(answers, reply)


def _say(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _limit_cpu(timeout_s: float) -> None:
    """A parent that was killed cannot kill us: past this CPU time the kernel does."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + 2 * timeout_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
