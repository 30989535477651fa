"""Text files, JSON lines and the numbers in them, read in one way everywhere.

Lines end at line feeds (also CRLF and CR), and nowhere else: `str.splitlines` would cut at U+2028, U+0085 and their
kind as well, which JSON allows inside a string and models write.
"""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

# What a file begins with when it is no UTF-8 text, and the next move. UTF-32 stands before UTF-16, whose mark it holds.
FOREIGN = {
    b"\xff\xfe\x00\x00": ("UTF-32", "convert it: iconv -f UTF-32 -t UTF-8 OLD > NEW"),
    b"\xff\xfe": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    b"\xfe\xff": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    b"PAR1": ("a parquet file", "write parquet:PATH as the task"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it with gunzip"),
    b"(\xb5/\xfd": ("compressed with zstd", "unpack it with unzstd"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
}


def read_text(path: Path, *, errors: str = "strict") -> str:
    """The text of a UTF-8 file, a byte order mark taken off; ValueError says what else the file is and the cure.

    errors: what to do with bytes that are no UTF-8, as in `bytes.decode`.
    """
    data = path.read_bytes()
    for start, (what, cure) in FOREIGN.items():
        if data.startswith(start):
            raise ValueError(f"{path} is {what}, not UTF-8 text; {cure}")
    if b"\0" in data[:4]:
        raise ValueError(f"{path} is UTF-16 without a mark, not UTF-8 text; convert it: iconv -f UTF-16LE -t UTF-8")
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line} is not UTF-8 ({error.reason}, byte {data[error.start]:#04x}); if it is Latin-1, "
            "convert it: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from error


def numbered_lines(path: Path, *, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of every line that is not blank; errors as in `read_text`."""
    for number, line in enumerate(io.StringIO(read_text(path, errors=errors), newline=None), start=1):
        line = line.rstrip("\n").strip("\ufeff")  # files put together keep each other's byte order marks
        if line.strip():
            yield number, line


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of every line that is not blank; ValueError names the line that is no JSON."""
    for number, line in numbered_lines(path):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error}") from error


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def is_number(value: Any) -> TypeGuard[float]:
    """A finite one; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
