"""How a run asked its model: tags and template arguments out of the recipe beside a model in a run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entrl.settings.yaml import parse_yaml

KEYS = ("think_open", "think_close", "chat_template_kwargs")
GROUPS = (
    "trainer",
    "data",
)  # of a recipe that may hold them; an offline run keeps its template arguments with its data
RECIPE = "recipe.yaml"


def asked_by(model: str | Path) -> tuple[dict[str, Any], Path | None]:
    """(those of `KEYS` that the run set, its recipe); ({}, None) for a model that lies in no run folder.

    model: RUN/model, RUN/checkpoints/checkpoint-N, or RUN itself.
    """
    path = Path(model).expanduser()
    folders = [path, path.parent, path.parent.parent] if path.is_dir() else []
    recipe = next((f / RECIPE for f in folders if (f / RECIPE).is_file() and (f / "manifest.json").is_file()), None)
    if recipe is None:
        return {}, None
    content = parse_yaml(recipe.read_text(encoding="utf-8"), name=str(recipe))
    groups = [content.get(name) for name in GROUPS] if isinstance(content, Mapping) else []
    held = [group for group in groups if isinstance(group, Mapping)]
    return {key: group[key] for group in reversed(held) for key in KEYS if group.get(key)}, recipe


def template_kwargs(text: str | None) -> dict[str, Any] | None:
    """`{enable_thinking: false}`, the same as JSON, or `enable_thinking=false,other=1`; None where nothing is given."""
    if text is None:
        return None
    found = parse_yaml(text, name="--chat-template-kwargs")
    if isinstance(found, Mapping):
        return {str(key): value for key, value in found.items()}
    pairs = [word.partition("=") for word in text.split(",")]
    if not all(key.strip() and equals for key, equals, _ in pairs):
        raise ValueError(
            f"--chat-template-kwargs takes a mapping such as '{{enable_thinking: false}}' or enable_thinking=false, "
            f"got {text!r}"
        )
    return {key.strip(): parse_yaml(value, name="--chat-template-kwargs") for key, _, value in pairs}


def settled(model: str | Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(keywords of `evaluate`, a line that says what was taken from the run): what is given, the run's own for the
    rest. given: those of `KEYS`, None where not set.
    """
    own, recipe = asked_by(model)
    chosen = {key: value for key, value in given.items() if value is not None}
    taken = {key: value for key, value in own.items() if key not in chosen}
    line = None if not taken else f"{', '.join(f'{k}={v!r}' for k, v in taken.items())}: as in {recipe}"
    return {**taken, **chosen}, line
