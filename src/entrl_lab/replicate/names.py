"""Where the study of a bare name lies: recipes/NAME/study.yaml, or quick.yaml, here or in the package's repository."""

from pathlib import Path

import entrl
from entrl.settings.names import suggest

FULL, QUICK = "study.yaml", "quick.yaml"


def find_study(name: str | Path, *, quick: bool = False, roots: list[Path] | None = None) -> Path:
    """The file of a study given as a path, or by the name of its folder under `recipes`.

    roots: folders that may hold `recipes`; None = the current one, then the repository of an editable install.
    Raises FileNotFoundError saying where it looked and what is there.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if quick:
            raise ValueError(f"--quick goes with the name of a study, got the file {path}; name the quick file itself")
        if not path.is_file():
            raise FileNotFoundError(f"no study {path}; name a YAML file, or a study under recipes/")
        return path
    roots = [Path(), Path(entrl.__file__).parents[2]] if roots is None else roots
    file = QUICK if quick else FULL
    for root in roots:
        found = root / "recipes" / path / file
        if found.is_file():
            return found
    known = sorted({p.parent.name for root in roots for p in (root / "recipes").glob(f"*/{file}")})
    looked = ", ".join(str(root / "recipes" / path / file) for root in roots)
    there = f"there are {', '.join(known)}" if known else f"no recipes folder there holds a {file}"
    raise FileNotFoundError(f"no study {str(name)!r}: looked for {looked}.{suggest(str(path), known)} {there}")
