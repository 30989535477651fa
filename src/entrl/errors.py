"""Errors that must be known before anything heavy is imported."""


class UnsupportedTRL(ImportError):
    """The installed TRL is not one whose private methods the trainer was written against."""
