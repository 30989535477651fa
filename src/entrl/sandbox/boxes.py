"""A place to run programs in: the tier that works here, limits, and several at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from entrl.errors import SandboxError
from entrl.sandbox.limits import Limits, Outcome, Tier
from entrl.sandbox.probing import TIERS, probe
from entrl.sandbox.processes import run_program

CONTAINER = (
    'docker build -t entrl -f launch/Containerfile . && docker run --rm -v "$PWD/runs:/entrl/runs" entrl train RECIPE'
)

_permitted: list[Tier] = []


def permit_unsafe() -> None:
    """From now on, in this process, programs run without isolation: said by a person on the command line only."""
    _permitted.append("unsafe")


def unsafe_is_permitted() -> bool:
    return bool(_permitted)


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """`open_sandbox` makes it."""

    tier: Tier
    limits: Limits
    workers: int

    def run(self, program: str, stdin: bytes = b"") -> Outcome:
        """One program; SandboxError where the sandbox failed, which is no verdict on the program."""
        return run_program(program, stdin, tier=self.tier, limits=self.limits)

    def run_all(self, jobs: Sequence[tuple[str, bytes]]) -> list[Outcome]:
        """(program, standard input) pairs, `workers` at a time, an interpreter each; outcomes in the same order."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox") as threads:
            found = [threads.submit(self.run, program, stdin) for program, stdin in jobs]
            try:
                return [future.result() for future in found]
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise


def open_sandbox(*, limits: Limits | None = None, workers: int = 4, tier: Tier | None = None) -> Sandbox:
    """A sandbox of the strongest tier that works here, or of the one that is named.

    Raises SandboxError where none does, with every tier's reason and a command for a container.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    return Sandbox(tier=_permitted_tier(tier), limits=limits or Limits(), workers=workers)


def _permitted_tier(tier: Tier | None) -> Tier:
    if _permitted and tier in (None, "unsafe"):
        return "unsafe"
    if tier is not None and tier not in TIERS:
        raise ValueError(f"tier must be {' or '.join(TIERS)}, got {tier!r}; unsafe is a word of the command line only")
    found = [f for f in probe() if tier in (None, f.tier)]
    working: Tier | None = next((f.tier for f in found if f.works), None)
    if working is None:
        reasons = "; ".join(f"{f.tier}: {f.why}" for f in found)
        raise SandboxError(
            f"no sandbox works here, so code that a model wrote is not run ({reasons}). "
            f"Run it in a container on Linux: {CONTAINER}"
        )
    return working
