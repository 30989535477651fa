"""Models shipped with the package, by bare name: `tiny-reasoner`, `tiny-inquirer`, `tiny-specifier` lie beside this."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path


def shipped_models() -> list[str]:
    """Names of the shipped model folders."""
    root = Path(str(resources.files(__name__)))
    return sorted(path.parent.name for path in root.glob("*/config.json"))


def model_path(name_or_path: str) -> str:
    """Where a model is: a shipped asset by bare name, else a local folder, else the hub id unchanged.

    The shipped name wins over a folder of that name in the working directory (`recipes/` has one); write
    `./tiny-reasoner` for the folder.
    """
    if name_or_path in shipped_models():
        return str(resources.files(__name__).joinpath(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(
                f"model folder {name_or_path!r} has neither config.json nor adapter_config.json; "
                "name the folder that save_pretrained wrote (in a run folder: model/)"
            )
        return str(path)
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise FileNotFoundError(f"model folder {name_or_path!r} does not exist")
    return name_or_path


@contextmanager
def naming_model(name: str) -> Iterator[None]:
    """Turn a loader's OSError over a model nobody has into one line that names it and what there is."""
    try:
        yield
    except OSError as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"model {name!r} is no shipped model ({', '.join(shipped_models())}) and no folder here, and could not be "
            f"had from the hub: {why}"
        ) from error
