"""Answers drawn until each problem has enough right ones, kept as they come so that a cold start goes on.

The file holds JSON lines: first what the answers depend on, then every answer with the round it was drawn in. What is
drawn depends on the seed, the problem and the round; problems are asked in the same batches again, and a batch is
written as a whole, so a start that was interrupted ends with the answers it would have had.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrl.curriculum.rejection import Asking, RejectionSpec, first_right
from entrl.runs.folder import append_lines
from entrl.settings.json_lines import json_lines
from entrl.teach.answer_files import Row
from entrl.teach.cold_start.policy_answers import Answering, Policy, whole
from entrl.teach.cold_start.spec import SampleSpec

ROUND = 2**32  # between the seeds of two rounds


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The file, and what its answers depend on: another value, and they are drawn anew."""

    path: Path
    of: str

    def read(self) -> list[Row]:
        """The answers that are there; a last line that a kill cut off is taken away."""
        if self.path.is_file():
            content = self.path.read_bytes()
            os.truncate(self.path, content.rfind(b"\n") + 1)
            lines = [row for _, row in json_lines(self.path)]
            if lines and lines[0] == {"of": self.of}:
                return lines[1:]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"of": self.of}) + "\n", encoding="utf-8")
        return []


def rejection_rows(
    spec: SampleSpec, problems: Any, student: Policy, *, kept: Kept, say: Callable[[str], None]
) -> list[Row]:
    """The first right answers to each problem, up to its target, with the pass rate of all that were drawn."""
    assert spec.rejection is not None
    found = _by_problem(kept.read())
    answering, asking = Answering.of(spec, problems, student), Asking.of(spec.rejection, len(problems))
    while indices := asking.open():
        turn, samples = asking.rounds, asking.samples
        size = answering.together(samples)
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            if all(turn in found.get(i, {}) for i in batch):
                continue
            drawn = answering.answers(batch, samples=samples, seed=spec.seed + turn * ROUND)
            lines = [{"problem": i, "round": turn, **row} for i, rows in zip(batch, drawn, strict=True) for row in rows]
            append_lines(kept.path, lines)
            for i in batch:
                found.setdefault(i, {})[turn] = [line for line in lines if line["problem"] == i]
        asking.add({i: [_right(row) for row in found[i][turn]] for i in indices})
        say(f"round {turn + 1}: {len(indices)} problems x {samples} answers, {len(asking.open())} problems open")
    rows, report = _chosen(spec.rejection, asking, found)
    say(
        f"rejection sampling: {report['rows']} answers to {report['covered']} of {report['problems']} problems out of "
        f"{report['trials']} drawn"
    )
    return rows


def rejection_report(kept: Kept, spec: RejectionSpec) -> dict[str, Any]:
    """Coverage, trials and why problems closed, of a file whose rounds are over."""
    found = _by_problem(kept.read())
    asking = Asking.of(spec, len(found))  # the pilot asks every problem
    while indices := asking.open():
        asking.add({i: [_right(row) for row in found[i][asking.rounds]] for i in indices})
    return _chosen(spec, asking, found)[1]


def _by_problem(lines: list[Row]) -> dict[int, dict[int, list[Row]]]:
    """Problem -> round -> its answers."""
    found: dict[int, dict[int, list[Row]]] = {}
    for line in lines:
        found.setdefault(line["problem"], {}).setdefault(line["round"], []).append(line)
    return found


def _right(row: Mapping[str, Any]) -> bool:
    """Whether an answer may be taught: right, and ended."""
    return row["correct"] == 1 and not row["truncated"]


def _chosen(
    spec: RejectionSpec, asking: Asking, found: Mapping[int, Mapping[int, list[Row]]]
) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    covered = 0
    for problem in range(len(asking.trials_P)):
        drawn = [row for turn in sorted(found[problem]) for row in found[problem][turn]]
        right, target = [_right(row) for row in drawn], int(asking.target_P[problem])
        kept = first_right([r["completion"] for r in drawn], right, target=target, duplicates=spec.duplicates)
        rate = sum(row["correct"] == 1 for row in drawn) / len(drawn)
        rows += [{**_plain(drawn[i]), "pass_rate": rate} for i in kept]
        covered += bool(kept)
    stops = [asking.stop(problem) for problem in range(len(asking.trials_P))]
    report = {
        "problems": len(asking.trials_P),
        "covered": covered,
        "trials": int(asking.trials_P.sum()),
        "rounds": asking.rounds,
        "rows": len(rows),
        "stopped": {str(reason): stops.count(reason) for reason in sorted(set(map(str, stops)))},
    }
    return rows, report


def _plain(line: Row) -> Row:
    return {key: value for key, value in whole(line).items() if key not in ("problem", "round")}
