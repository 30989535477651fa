"""Which tiers work here, found out by running a program in each that tries to do what it must not.

A kernel may have a feature and a container forbid it, so nothing is concluded from versions. The result is kept for the
life of the process and no longer: a stored one could speak of another kernel, and it costs a tenth of a second.
"""

import functools
import json
import os
import tempfile
from dataclasses import dataclass

from entrl.errors import SandboxError
from entrl.sandbox.limits import Limits, Tier
from entrl.sandbox.processes import run_program

TIERS: tuple[Tier, ...] = ("bubblewrap", "landlock")  # the stronger first
LIMITS = Limits(wall_s=20.0)
# Says which of these it could do. {parent} and {file} are filled in.
PROGRAM = """
import json, os, socket
def fork():
    if os.fork() == 0:
        os._exit(0)
TRIALS = {{
    "start a process": fork,
    "start a program": lambda: os.execv("/bin/true", ["true"]),
    "open a socket": socket.socket,
    "read a file": lambda: open({file!r}).close(),
    "write a file": lambda: open({file!r}, "r+").close(),
    "read the environment of the parent": lambda: open("/proc/{parent}/environ").close(),
    "signal the parent": lambda: os.kill({parent}, 0),
}}
done = []
for name, trial in TRIALS.items():
    try:
        trial()
    except OSError:
        continue
    done.append(name)
print(json.dumps(done))
"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a tier's trial came to; `why` is empty where it works."""

    tier: Tier
    why: str

    @property
    def works(self) -> bool:
        return not self.why


@functools.cache
def probe() -> tuple[Found, ...]:
    """One line per tier, the stronger first."""
    return tuple(Found(tier=tier, why=_trial(tier)) for tier in TIERS)


def _trial(tier: Tier) -> str:
    with tempfile.NamedTemporaryFile(prefix="entrl-sandbox-") as file:
        os.chmod(file.name, 0o666)  # what keeps the program out must be the tier, not the file
        program = PROGRAM.format(file=file.name, parent=os.getpid())
        try:
            outcome = run_program(program, b"", tier=tier, limits=LIMITS)
        except (SandboxError, OSError) as error:
            return str(error)
    if outcome.status != "ok":
        return f"a trial program ended with {outcome.status} ({outcome.stderr.decode(errors='replace').strip()[-200:]})"
    try:
        done = json.loads(outcome.stdout)
    except ValueError:
        return f"a trial program said {outcome.stdout[:80]!r}"
    return f"a trial program could {', '.join(done)}" if done else ""
