"""What a program may use, and what became of it."""

from dataclasses import dataclass
from typing import Literal

Tier = Literal["bubblewrap", "landlock", "unsafe"]
Status = Literal["ok", "error", "timeout", "output"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one program. ValueError for anything that is not above 0."""

    wall_s: float = 10.0  # seconds from the program's first line to its end
    cpu_s: int = 10  # seconds of processor time, interpreter start included (the kernel counts whole ones)
    memory_mib: int = 512  # address space
    output_kib: int = 1024  # standard output; the parent reads no more. Of standard error a sixteenth
    file_kib: int = 1024  # one written file; only bubblewrap has a place to write to, eight times as large in all
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value!r}")
            if name != "wall_s" and not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one program.

    status: ok: it ended with exit code 0. error: with another one, or by a signal (`exit_code` below 0). timeout: it
    was stopped at `wall_s`, or by the kernel at `cpu_s`. output: it was stopped for writing more than `output_kib`.
    """

    status: Status
    stdout: bytes  # cut at the limit
    stderr: bytes  # cut at its limit
    exit_code: int
    seconds: float  # wall clock of the program, without the interpreter's start
