"""Finished runs of a study as lines of one file, kept beside the study and committed: a fresh checkout goes on there.

    {"run": "sums/pear-3", "commit": "...", "dirty": false, "finished": "...", "numbers": {...},
     "settings": {group: hash}}

A line is written as soon as its run has finished. A run whose line is there is not run again, whether or not its folder
still lies on the disk; a line of other settings is refused. The hashes are of what decides a run's numbers, group by
group, and of the files that the settings name (data, models, own rewards). Values that say nothing (null, empty, 0,
false) are left out of them, so that a line outlives options that are added later and are off.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from entrl.runs.contents import contents
from entrl.runs.ours import read_manifest
from entrl.settings.groups import content_hash, flat
from entrl.settings.json_lines import finite, json_lines
from entrl.settings.secrets import mask
from entrl_lab.replicate.runner import DECIDES, finished
from entrl_lab.replicate.study import Run, Study
from entrl_lab.replicate.summary import numbers

Row = dict[str, Any]
RECORDS = ("manifest.json", "README.md")  # of a model's folder: what is told of it, not what it is


class Rows:
    """The finished runs of a study: lines of its `rows` file, or read from the run folders where it has none."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.lines: dict[str, Row] = {}
        if study.rows is not None and study.rows.is_file():
            for number, line in json_lines(study.rows):
                self._read(line, f"{study.rows}, line {number}")

    def _read(self, line: Any, where: str) -> None:
        missing = [k for k in ("run", "commit", "settings", "numbers") if not isinstance(line, dict) or k not in line]
        if missing:
            raise ValueError(f"{where} is no finished run: it has no {', '.join(missing)}; take it out, or mend it")
        if line["run"] in self.lines:
            raise ValueError(f"{where} is a second line of {line['run']}; keep one of them")
        self.lines[line["run"]] = line

    def __contains__(self, run: Run) -> bool:
        return run.name in self.lines or finished(self.study.run_dir(run))

    def check(self, runs: Sequence[Run]) -> None:
        """ValueError for a line that was made with other settings than the study now asks for."""
        for run in runs:
            if run.name not in self.lines:
                continue
            was, now = self.lines[run.name]["settings"], hashes(self.study, run)
            if changed := sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)):
                raise ValueError(
                    f"{self.study.rows} has {run.name} with other settings than {self.study.file} now asks for: "
                    f"{', '.join(changed)}; take the settings back, or take its line out to run it again"
                )

    def add(self, run: Run) -> None:
        """Write the line of a run that has just finished, if it has none."""
        if self.study.rows is None or run.name in self.lines:
            return
        row = self.lines[run.name] = {**measured(self.study, run), "settings": hashes(self.study, run)}
        with self.study.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def of(self, run: Run) -> Row:
        return self.lines.get(run.name) or measured(self.study, run)


def measured(study: Study, run: Run) -> Row:
    """What a finished run's folder says."""
    folder = study.run_dir(run)
    manifest = read_manifest(folder)
    assert manifest is not None
    git = manifest["git"]
    made = {"commit": git["commit"], "dirty": git["dirty"], "finished": manifest.get("finished")}
    return {"run": run.name, **made, "numbers": numbers(folder)}


def hashes(study: Study, run: Run) -> dict[str, str]:
    """Group of the recipe -> short hash of what it says, and `contents` of the files it names."""
    recipe = study.recipe_of(run)
    told = {k: v for k, v in flat(mask(recipe.resolved())).items() if v not in (None, [], {}, False, 0, "")}
    groups = {
        group: {k: v for k, v in told.items() if k.split(".")[0] == group and k != "trainer.output_dir"}
        for group in DECIDES
    }
    if run.arm.offline is not None:  # the folder of its own run
        groups["model"].pop("model.path")
    made = run.arm.offline is not None or bool(study.prepare)  # models that are made anew where the study runs
    files = contents(flat(recipe.resolved()), recipe.base, only=lambda key: not (made and key.startswith("model.")))
    groups["contents"] = {k: v for k, v in files.items() if not k.endswith(RECORDS)}
    return {group: content_hash(values)[:12] for group, values in groups.items() if values}


def commits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Commits the runs were made from, each once; a run from a changed tree is marked."""
    return sorted({f"{row['commit']}{' (changed)' if row['dirty'] else ''}" for row in rows})
