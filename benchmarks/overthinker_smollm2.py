"""What SmolLM2 is like once it was taught to overthink, before any method runs on it: conditions of the small twins.

    entrl fetch smollm2-135m-instruct
    python benchmarks/overthinker_smollm2.py --out recipes/overthinker/smollm2-conditions.json

Completions at temperature 1 for the test problems that the study evaluates on, in groups of eight, judged and measured
as `entrl nursery --conditions` does for the shipped models: (a) right, (b) slope on re-checks, (e) ends, (f) rank
correlation of length and PEAR's penalty, (g) entropy of the answers. None of them has a bound here: which twin is a
pretrained model like?
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from entrl.models.load import load_policy
from entrl.runs.recipe import load_recipe
from entrl.settings.provenance import built_from
from entrl.tasks import load_task
from entrl_lab.nursery import conditions as measured

ROOT = Path(__file__).resolve().parents[1]
STUDIED = ROOT / "recipes" / "overthinker" / "smollm2-grpo.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=measured.GROUP, help="of each problem, a multiple of 8")
    parser.add_argument("--problems", type=int, default=measured.TEST_PROBLEMS)
    options = parser.parse_args()
    recipe = load_recipe(STUDIED)
    assert recipe.eval is not None
    assert recipe.model.path is not None
    model, tokenizer = load_policy(recipe.model.path, dtype="bfloat16")  # as the arms sample
    task = {"task": "additions", **(recipe.eval.args or {})}
    problems = [dict(row) for row in load_task(task, split="test", size=options.problems)]
    limit = recipe.eval.max_new_tokens
    rows, greedy = measured.sample(model, tokenizer, problems, samples=options.samples, max_new_tokens=limit)
    right = [row for row in rows if row.right]
    found = {
        "a": measured.accuracy_condition(rows),
        "b": measured.slope_condition(rows),
        "c": {"tokens": fmean(row.tokens for row in rows), "rechecks": fmean(row.rechecks for row in rows)},
        "e": measured.end_condition(rows, greedy),
        "f": measured.correlation_condition(rows, (-1.0, 1.0)),
        "penalty by re-checks": penalty_by_rechecks(rows),
        "g": measured.answer_condition(rows),
    }
    for entry in found.values():
        entry.pop("holds", None)
        entry.pop("bounds", None)
    own = str(Path(__file__).relative_to(ROOT))
    made = {
        "commit": built_from(ROOT, "src", own, "recipes/overthinker/smollm2-base"),
        "temperature": 1.0,
        "right": len(right),
    }
    options.out.write_text(json.dumps({**made, "measured": found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


def penalty_by_rechecks(rows: list[measured.Sampled]) -> dict[str, float]:
    """Mean penalty of right rows by their number of re-checks: what PEAR would charge for one more."""
    by: dict[int, list[float]] = {}
    for row in rows:
        if row.right:
            by.setdefault(row.rechecks, []).append(row.penalty)
    return {str(count): fmean(by[count]) for count in sorted(by)}


if __name__ == "__main__":
    raise SystemExit(main())
