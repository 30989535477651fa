"""Models by bare name: those shipped with the package lie beside this, one folder each, adapters among them.

A packaged model (`entrl.models.packaged`) is named the same way, once it has been fetched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from entrl.models.packaged import PACKAGED, NotFetched, packaged_path

CONFIGS = ("config.json", "adapter_config.json")  # a folder with one of them is a model


def shipped_models() -> list[str]:
    """Names of the shipped model folders."""
    root = Path(str(resources.files(__name__)))
    return sorted({path.parent.name for config in CONFIGS for path in root.glob(f"*/{config}")})


def bare_names() -> list[str]:
    """Every name that means a model of ours, wherever one is."""
    return [*shipped_models(), *PACKAGED]


def model_path(name_or_path: str) -> str:
    """Where a model is: a shipped or packaged one by bare name, else a local folder, else the hub id unchanged.

    The bare name wins over a folder of that name in the working directory (`recipes/` has one); write
    `./tiny-reasoner` for the folder. FileNotFoundError for a folder that holds no model, and (as NotFetched) for a
    packaged model that has not been fetched.
    """
    if name_or_path in shipped_models():
        return str(resources.files(__name__).joinpath(name_or_path))
    if name_or_path in PACKAGED:
        return str(packaged_path(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in CONFIGS):
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
    except NotFetched:
        raise
    except OSError as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"model {name!r} is none of ours ({', '.join(bare_names())}) and no folder here, and could not be had from "
            f"the hub: {why}"
        ) from error
