"""What the settings of cold starts and offline runs are alike: they make a folder with a model in it."""

import hashlib
from pathlib import Path
from typing import Any

from entrl.runs.contents import contents
from entrl.settings.groups import SettingsFile, content_hash, flat
from entrl.settings.secrets import mask


class MadeModel(SettingsFile):
    """`out` is the folder that is written, `threads` are torch's (another count may give other weights)."""

    out: str
    threads: int | None

    @property
    def folder(self) -> Path:
        return Path(self.out)

    @property
    def model_dir(self) -> Path:
        """What a recipe names as model.path."""
        return self.folder / "model"

    def own_files(self) -> dict[str, Path]:
        """Files of the user's own that decide the weights."""
        return {}

    def names_files(self, key: str) -> bool:
        """Whether files that a setting names decide the weights as well (`entrl.runs.contents`)."""
        return False

    def config_hash(self) -> str:
        """Of everything that decides the weights, the contents of files included; not of `out`.

        Settings that are null do not count: an option that did not exist when a folder was made leaves it valid.
        """
        content: dict[str, Any] = {k: v for k, v in flat(mask(self.resolved())).items() if k != "out" and v is not None}
        content |= {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in self.own_files().items()}
        return content_hash(content | contents(flat(self.resolved()), self.base, only=self.names_files))
