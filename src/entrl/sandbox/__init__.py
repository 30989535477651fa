"""Run Python that a model wrote: a fresh interpreter per program, with nothing in reach but its own input.

    box = open_sandbox(limits=Limits(wall_s=5.0))
    outcome = box.run("print(int(input()) * 2)", stdin=b"21")     # Outcome(status="ok", stdout=b"42\\n", ...)

Tiers, the first that works here is taken (`probe` finds out by really running programs in each):

    bubblewrap   namespaces, no capabilities, read-only Python, a filter of system calls
    landlock     Landlock and the filter: containers, systems without user namespaces
    (none)       refused, with a command for a container

    limits        what a program may use; what became of it       processes     start, feed, read, cut, end
    tiers         how each tier starts an interpreter             boot          the interpreter's first lines
    system_calls  the filter                                      probing       which tiers work here
    groups        the end of a process and all it started

Knows nobody in the library but `errors`. What was tried against it: docs/reliability.md.
"""

from entrl.sandbox.boxes import Sandbox, open_sandbox, permit_unsafe, unsafe_is_permitted
from entrl.sandbox.limits import Limits, Outcome, Tier
from entrl.sandbox.probing import Found, probe

__all__ = [
    "Found",
    "Limits",
    "Outcome",
    "Sandbox",
    "Tier",
    "open_sandbox",
    "permit_unsafe",
    "probe",
    "unsafe_is_permitted",
]
