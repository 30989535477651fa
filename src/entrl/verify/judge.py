"""One check of one answer, by its kind; the kinds that can hang run in a child process of `entrl.verify.pool`."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from entrl.verify.choices import chosen_letter
from entrl.verify.gym import reasoning_gym_score
from entrl.verify.mathematics import math_score

Kind = Literal["math", "reasoning_gym", "exact", "choice"]
INLINE = ("exact", "choice")  # cannot hang: no process needed
KINDS = ("math", "reasoning_gym", *INLINE)
IMPORTS = {"math": "math_verify", "reasoning_gym": "reasoning_gym"}  # loaded before an item's clock starts
CHECK = "entrl.verify.judge:check"  # what a child process is told to call


def check(kind: str, text: str, gold: str, spec: Mapping[str, Any]) -> float:
    """Graded score of one answer part."""
    if kind == "math":
        return math_score(text, gold)
    if kind == "reasoning_gym":
        return reasoning_gym_score(text, spec)
    if kind == "choice":
        return float(chosen_letter(text, spec.get("letters", "ABCD")) == gold.strip().upper())
    return float(" ".join(text.split()) == " ".join(gold.split()))


def read_verifier(column: Any, row: int, *, default: str = "auto") -> tuple[str, dict[str, Any]]:
    """(kind, options) of a row's `verifier` column; `default` other than auto overrules the column's kind."""
    spec = json.loads(column) if isinstance(column, str) else dict(column or {})
    kind = default if default != "auto" else spec.get("kind", "math")
    if kind not in KINDS:
        raise ValueError(f"row {row}: verifier kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "reasoning_gym" and not ("dataset" in spec and ("entry" in spec or "index" in spec)):
        raise TypeError(
            f"row {row}: kind 'reasoning_gym' needs the dataset column 'verifier' with the keys "
            f"'dataset' and 'entry', got {sorted(spec) or 'none'}; entrl.tasks.load_task writes it"
        )
    return kind, spec
