"""Errors that must be known before anything heavy is imported, and the words of errors that others raised."""

import contextlib
from collections.abc import Iterator

LONGEST = 500  # characters of what a stranger's error says


class UnsupportedTRL(ImportError):
    """The installed TRL is not one whose private methods the trainer was written against."""


class CannotWrite(OSError):
    """A file of a run could not be written; the message says which, why, and what to do."""


class SandboxError(RuntimeError):
    """Model-written code cannot be run safely here, or the sandbox itself failed: no program's fault."""


class RunStopped(KeyboardInterrupt):
    """A run that was asked to end has ended where it can go on; `code` is the exit code, 128 + the signal's number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TimeIsUp(BaseException):
    """Ends code that is tried once its time is over. Not an Exception: that code must not catch it by accident."""


def is_wanted(error: BaseException) -> bool:
    """Whether somebody wants the end (Ctrl-C, a signal, a limit), and not the code that was called.

    Kinds of one's own are the code's, whatever they derive from.
    """
    return type(error) in (KeyboardInterrupt, RunStopped, TimeIsUp)


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Whatever somebody else's code raises in here as a ValueError with its place; what is told as it is passes."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError):
        raise
    except BaseException as error:
        if is_wanted(error):
            raise
        raise ValueError(f"{what} raised {told(error)}; mend it") from error


def brief(text: str) -> str:
    """On one line, at most `LONGEST` characters of it, and such as can be written: a lone surrogate cannot."""
    cut = text[: 8 * LONGEST]  # a message may be of megabytes
    line = _writable(" ".join(cut.split()))
    whole = len(line) <= LONGEST and len(cut) == len(text)
    return line if whole else f"{line[:LONGEST]} ... ({len(text):,} characters)"


def told(error: BaseException) -> str:
    """The kind and the words of an error of somebody else's code, whose `__str__` may fail itself."""
    kind = type(error).__name__
    try:
        words = str(error)
        return brief(f"{kind}: {words}" if words.strip() else kind)
    except BaseException as second:
        if is_wanted(second):
            raise
        return brief(f"{kind}, whose message raised {type(second).__name__}")


def said(error: BaseException) -> str:
    """Its words, whole, for they may be ours, such as can be written; its kind where it has none."""
    try:
        return _writable(str(error)) or type(error).__name__
    except BaseException as second:
        if is_wanted(second):
            raise
        return told(error)


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
