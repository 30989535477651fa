"""What a run is made of besides its settings: the contents of the files they name, hashed into the manifest.

A resumed run must equal an uninterrupted one, so none of these may have changed. Hashed are data files, table files,
files and modules of rewards, controllers and environments, files named in `args`, and local folders of models and
tokenizers. Not seen: what such a file imports in turn, data sets and models of the hub (pin model.revision), and the
middle of a model file over 64 MiB, of which the size and both ends are hashed.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from entrl.models.load import find_adapter
from entrl.models.shipped import model_path
from entrl.settings.names import find_file
from entrl.settings.paths import AFTER_COLON, PATH_ENDINGS

WHOLE = 64 * 2**20  # bytes up to which a file is hashed whole
END = 2**20  # bytes hashed at each end of a longer one
MODELS = ("model.path", "model.tokenizer")
IN_ARGS = ("path", "file")  # options that name a file, besides those with PATH_ENDINGS
INSTALLED = ("entrl", "entrl_rewards", "trl")  # the manifest has their versions and our commit


def contents(
    settings: Mapping[str, Any], base: Path, *, only: Callable[[str], bool] = lambda _: True
) -> dict[str, str]:
    """'<setting> <file name>' -> SHA-256 of its content, for every file that these flat settings name.

    A file that is missing has no hash: whoever needs it says so. only: keys that are looked at.
    """
    found = {}
    for key, value in settings.items():
        if isinstance(value, str) and only(key):
            found |= {f"{key} {name}": digest(file) for name, file in _files(key, value, base)}
    return found


def _files(key: str, value: str, base: Path) -> Iterator[tuple[str, Path]]:
    last = key.rpartition(".")[2]
    before, colon, after = value.rpartition(":")
    is_object = last == "use" or key.startswith("eval.counts.")
    if key in MODELS:
        yield from _of_model(value)
    elif is_object and before.endswith(".py"):
        yield from _existing(before, base)
    elif is_object and (file := _module_file(before)) is not None:
        yield file.name, file
    elif last in AFTER_COLON and colon:
        yield from _existing(after, base)
    elif ".args." in key and (last in IN_ARGS or last.endswith(PATH_ENDINGS)):
        yield from _existing(value, base)


def _existing(name: str, base: Path) -> Iterator[tuple[str, Path]]:
    try:
        file = find_file(name, base)
    except FileNotFoundError:
        return  # a name that is no file, such as reasoning_gym:chain_sum
    yield file.name, file


def _of_model(name: str) -> Iterator[tuple[str, Path]]:
    with contextlib.suppress(FileNotFoundError):
        folder = Path(model_path(name))
        if folder.is_dir():
            yield from ((file.name, file) for file in sorted(folder.iterdir()) if file.is_file())
            if (adapter := find_adapter(name)) is not None:
                yield from ((f"base/{part}", file) for part, file in _of_model(adapter.base))


def _module_file(name: str) -> Path | None:
    """Of a module of the user's own that a reward or controller was loaded from."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or name.partition(".")[0] in INSTALLED or "site-packages" in Path(file).parts:
        return None
    return Path(file)


def digest(file: Path) -> str:
    """SHA-256 of a file; of one over 64 MiB, of its size and its first and last MiB."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        ends = hashlib.sha256(f"{size} ".encode() + stream.read(END))
        stream.seek(-END, 2)
        ends.update(stream.read())
    return f"ends:{ends.hexdigest()}"


def refuse_changed(was: Mapping[str, str] | None, now: Mapping[str, str], folder: Path) -> None:
    """ValueError naming the files that are not what they were when the run in `folder` was started."""
    if was is None:
        return  # of a version that kept no hashes
    changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if changed:
        raise ValueError(
            f"{', '.join(changed)}: changed since {folder} was started; a resumed run must equal an uninterrupted one: "
            "take the old content back, or start anew in another trainer.output_dir"
        )
