"""Answers drawn until each problem has enough right ones, kept as they come so that a cold start goes on.

The file holds JSON lines: first what the answers depend on, then every answer with the round it was drawn in. What is
drawn depends on the seed, the problem and the round; problems are asked in the same batches again, and of a problem all
answers of a round count or none, so a start that was interrupted ends with the answers it would have had.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrl.curriculum.rejection import Asking, RejectionSpec, first_right
from entrl.runs.folder import append_lines, write_text
from entrl.teach.answer_files import Row
from entrl.teach.cold_start.policy_answers import Answering, Policy, whole
from entrl.teach.cold_start.spec import SampleSpec

ROUND = 2**32  # between the seeds of two rounds


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The file, and what its answers depend on: another value, and they are drawn anew."""

    path: Path
    of: str

    def read(self, spec: RejectionSpec) -> list[Row]:
        """The answers that are there, of each problem and round all or none.

        Where a kill cut off a line or a batch, the rest of it is taken out of the file.
        """
        rows, left = self._lines()
        counts = Counter((row["problem"], row["round"]) for row in rows)
        kept = [row for row in rows if counts[row["problem"], row["round"]] == spec.samples(row["round"])]
        if left or len(kept) < len(rows):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [self._head, *kept]))
        return kept

    @property
    def _head(self) -> Row:
        return {"of": self.of}

    def _lines(self) -> tuple[list[Row], bool]:
        """Answers, and whether there is more in the file, or less, than they and the first line."""
        if not self.path.is_file():
            return [], True
        whole, _, tail = self.path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        lines = [self._line(n, line) for n, line in enumerate(whole.split("\n"), 1)] if whole else []
        return (lines[1:], bool(tail)) if lines and lines[0] == self._head else ([], True)

    def _line(self, number: int, line: str) -> Row:
        try:
            return json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{self.path}:{number} is not JSON ({error}); take the line out, and its answers are drawn again"
            ) from None


def rejection_rows(
    spec: SampleSpec, problems: Any, student: Policy, *, kept: Kept, say: Callable[[str], None]
) -> list[Row]:
    """The first right answers to each problem, up to its target, with the pass rate of all that were drawn."""
    assert spec.rejection is not None
    found = _by_problem(kept.read(spec.rejection))
    answering, asking = Answering.of(spec, problems, student), Asking.of(spec.rejection, len(problems))
    while indices := asking.open():
        turn, samples = asking.rounds, asking.samples
        size = answering.together(samples)
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            if all(turn in found.get(i, {}) for i in batch):
                continue
            drawn = answering.answers(batch, samples=samples, seed=spec.seed + turn * ROUND)
            new = {
                i: [{"problem": i, "round": turn, **row} for row in rows] for i, rows in zip(batch, drawn, strict=True)
            }
            new = {i: lines for i, lines in new.items() if turn not in found.get(i, {})}
            append_lines(kept.path, [line for lines in new.values() for line in lines])
            for i, lines in new.items():
                found.setdefault(i, {})[turn] = lines
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
    found = _by_problem(kept.read(spec))
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
