"""What cold starts and offline runs are alike: settings that a folder with a model in it is made from."""

import hashlib
import os
from pathlib import Path
from typing import Any

from entrl.runs.contents import contents
from entrl.runs.folder import read_json
from entrl.settings.groups import SettingsFile, content_hash, flat
from entrl.settings.secrets import mask
from entrl.settings.yaml import parse_yaml


def one_process(what: str) -> None:
    """ValueError where a launcher started several: each would make the same folder."""
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"{what} is one process and {processes} were started; run it without a launcher")


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


def made_from(folder: Path) -> str | None:
    """The hash of the settings a finished folder was made from; None for one that is missing or not finished."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None or manifest.get("status") != "finished":
        return None
    return manifest.get("config_hash")


def is_made(start: MadeModel) -> bool:
    """True when the folder is finished and was made from these settings.

    ValueError when it is finished and was made from others, or from another cold start than now lies where it was
    taken from: runs that start from the old weights are not comparable with runs that start from new ones.
    """
    found = made_from(start.folder)
    if found is None:
        return False
    anew = "overwrite=true makes it anew, or set another `out`. Runs from the old one do not compare with new ones"
    if found != start.config_hash():
        changed = ", ".join(changed_settings(start.folder, start.resolved())) or "the content of a file"
        raise ValueError(f"{start.folder} was made with other settings ({changed}); {anew}")
    manifest = read_json(start.folder / "manifest.json")
    for model, was in manifest.get("made_with", {}).items():
        if made_from(Path(model).parent) not in (None, was):
            raise ValueError(f"{start.folder} was made with {model}, which has been made anew since; {anew}")
    return True


def changed_settings(folder: Path, settings: dict[str, Any]) -> list[str]:
    """Keys in which the settings that a folder was made with differ from these; where it is written does not count."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return []
    was, is_now = flat(parse_yaml(file.read_text(encoding="utf-8"), name=str(file))), flat(mask(settings))
    return sorted(k for k in was.keys() | is_now.keys() if was.get(k) != is_now.get(k) and k != "out")
