"""Errors that must be known before anything heavy is imported."""


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
