"""Errors as the command line tells them: what the user can mend in one line, with the rank where there are several."""

import sys
import traceback

from entrl.engines.faults import RolloutError
from entrl.errors import CannotWrite, SandboxError, UnsupportedTRL, said
from entrl.runs.together import is_hushed, rank_prefix
from entrl.runs.wording import shown


class BrokenCommand(ImportError):
    """A command of another package that cannot be imported, or is none."""


USER_ERRORS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    ConnectionError,
    CannotWrite,
    UnsupportedTRL,
    SandboxError,
    BrokenCommand,
    RolloutError,
)


def one_line(error: BaseException) -> str:
    return " ".join(shown(said(error)).split())


def print_error(error: BaseException) -> None:
    """In one line, with the rank where there are several; not what another rank says alike."""
    if not is_hushed(error):
        print(f"{rank_prefix()}error: {one_line(error)}{_origin(error)}", file=sys.stderr)
        print("(--traceback shows where)", file=sys.stderr, flush=True)


def _origin(error: BaseException) -> str:
    """Where the cause was raised, for errors of a user's own code that reach us wrapped (a reward that raises)."""
    cause = None if isinstance(error, CannotWrite) else error.__cause__
    frames = traceback.extract_tb(cause.__traceback__) if cause is not None else []
    return f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
