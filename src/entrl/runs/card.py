"""The model card beside a trained model: TRL's draft with what it cannot know, README.md in the model's folder.

The draft says how to load the model, which trainer made it and what to cite. Between two comments it gets what was
done: base and licence, recipe, rewards, controllers, data, evaluations with intervals, the settings. Secrets are masked
as in the run folder it is taken from, and of paths of this machine only the last name is kept.

Needs:   huggingface_hub's ModelCard; a folder with manifest.json and recipe.yaml, whose secrets are masked
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from entrl.models import shipped
from entrl.models.load import base_of
from entrl.models.shipped import shipped_models
from entrl.report.read import read_run
from entrl.report.summary import TableRow, before_after, run_facts
from entrl.runs.folder import read_json, write_text
from entrl.settings.secrets import mask
from entrl.settings.yaml import dump_yaml, parse_yaml
from entrl.trainers.shared.completeness import CARD

SHIPPED, SHIPPED_LICENCE = Path(shipped.__file__ or "").parent, "apache-2.0"  # of this package
BEGIN, END = "<!-- entrl -->", "<!-- /entrl -->"
OURS = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.S)
NO_BASE = re.compile(r"fine-tuned version of \[None\]\([^)]*\)")
# absolute, or from here or home; neither a closing tag, nor a fraction, nor what follows a host
WORD = r"[^\s/'\",;:<>]"
PATH = re.compile(rf"(?<![\w./<])(?:~|\.{{1,2}})?/(?:(?:{WORD}+/)+|(?!\d))({WORD}+)/?")


def draft_card(trainer: Any, model: Path, *, name: str) -> None:
    """TRL's own card, which it writes into its output folder, into the model's; rank 0 writes."""
    output, trainer.args.output_dir = trainer.args.output_dir, str(model)
    try:
        trainer.create_model_card(model_name=name)
    finally:
        trainer.args.output_dir = output


def finish_run_card(run_dir: Path) -> None:
    """Bring the card of a run's model up to date with its manifest and its evaluations."""
    record = read_run(run_dir)
    finish_card(run_dir, facts=run_facts(record), table=before_after([record]))


def finish_card(folder: Path, *, facts: Mapping[str, str], table: Sequence[TableRow] = (), notes: str = "") -> None:
    """Write what was done in `folder` into the card of its `model`; one that is not there stays away.

    facts: label -> text; table: evaluations before and after; notes: Markdown to stand under it
    """
    file = folder / "model" / CARD
    if not file.is_file():
        return
    manifest = read_json(folder / "manifest.json") or {}
    settings = parse_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), name="recipe.yaml")
    base, licence = name_and_licence(settings["model"]["path"])
    card = ModelCard.load(file)
    data: Any = card.data
    data.__dict__.pop("licence", None)  # TRL's placeholder
    if licence is not None:
        data.license = licence
    if "/" in base:
        data.base_model = base
    data.tags = sorted({*(data.tags or []), "entrl"})
    made = {"Base model": base, "Licence of the base": licence or "not known here: look at the base", **facts}
    made["Data"] = str((settings.get("data") or {}).get("task") or "see the settings")
    made["entrl"] = f"{manifest.get('entrl')}, commit {(manifest.get('git') or {}).get('commit') or 'unknown'}"
    parts = [f"{BEGIN}\n## What was done", _table(("", ""), made.items()), *_evaluations(table), without_paths(notes)]
    parts.append(f"<details><summary>Settings</summary>\n\n```yaml\n{_settings(settings)}```\n\n</details>\n{END}\n")
    text = NO_BASE.sub(f"fine-tuned version of {base}", OURS.sub("", card.text))
    text = text.replace('model="None"', 'model="path/of/this/folder"')
    head, heading, rest = text.partition("## Quick start")
    ours = "\n\n".join(part for part in parts if part)
    card.text = f"{head}{ours}\n{heading}{rest}" if heading else f"{text}\n\n{ours}"
    write_text(file, str(card))


def name_and_licence(path: str) -> tuple[str, str | None]:
    """Of the whole model that a recipe's `model.path` is or sits on: a hub id or a folder's last name, and its licence.

    A folder tells its licence in the front matter of its card or, made by us, in its manifest.
    """
    where, _ = base_of(path)
    folder = Path(where)
    if not folder.is_dir():
        return where, None
    licence = SHIPPED_LICENCE if folder.name in shipped_models() and folder.parent == SHIPPED else None
    if licence is None:
        licence = (read_json(folder / "manifest.json") or {}).get("licence")
    if licence is None and (folder / CARD).is_file():
        licence = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.get("license")
    return folder.name, licence.lower() if isinstance(licence, str) else None  # as the hub writes it


def _evaluations(table: Sequence[TableRow]) -> list[str]:
    if not table:
        return []
    rows = [(row.label, row.cells[0].before, row.cells[0].after, row.cells[0].change) for row in table]
    said = "Evaluation of the same problems before and after, with 95 % intervals; of the changes, paired by problem:"
    return [said, _table(("", "before", "after", "change"), rows)]


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return without_paths(str(value)).replace("|", "\\|")


def _settings(settings: Mapping[str, Any]) -> str:
    kept = {k: v for k, v in settings.items() if k != "out"}
    if isinstance(kept.get("trainer"), Mapping):
        kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k != "output_dir"}
    return without_paths(dump_yaml(mask(kept)))


def without_paths(text: str) -> str:
    """A path becomes its last part: where things lay on somebody's machine tells a reader nothing."""
    return PATH.sub(lambda found: found[1], text)
