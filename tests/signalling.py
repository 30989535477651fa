"""A reward that does what the variable DO says, once, in its call number CALL on rank ONLY (default: every rank).

DO: the name of a signal, sent to this process; two of them with `+` and seconds between (SIGINT+1.5+SIGINT);
`raise`; or a number of seconds to sleep after the signal (SIGTERM+3).
"""

import os
import signal
import time

_calls = 0


def reward(completions, training=True, **_):
    global _calls
    _calls += 1
    here = os.environ.get("ONLY", os.environ.get("RANK", "0")) == os.environ.get("RANK", "0")
    when = os.environ.get("WHEN", "training") == ("training" if training else "evaluation")
    if os.environ.get("DO") and here and when and _calls == int(os.environ["CALL"]):
        for part in os.environ["DO"].split("+"):
            if part == "raise":
                raise RuntimeError("boom on purpose")
            if part.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, part))
            else:
                time.sleep(float(part))
    return [float(len(completion) % 3) for completion in completions]
