"""Errors that must be known before anything heavy is imported, and the words of errors that others raised."""

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
    except (Exception, SystemExit) as second:
        return brief(f"{kind}, whose message raised {type(second).__name__}")


def said(error: BaseException) -> str:
    """Its words, whole, for they may be ours, such as can be written; its kind where it has none."""
    try:
        return _writable(str(error)) or type(error).__name__
    except (Exception, SystemExit):
        return told(error)


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
