"""Every arm against the reference: accuracy, pass@k, entropy, length, diversity.

Accuracies are compared problem by problem, clustered by seed and by problem; what has one number a run, paired over
seeds with Student's t. Within a metric p is adjusted by Holm over the arms. The margin is held against the interval of
the single comparison.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entrl.evaluation.scores import pass_at_k
from entrl.report.metrics import Number, named, numbers_of
from entrl.stats.pairing import clustered_difference, holm, paired_p, problem_value, seed_differences, verdict
from entrl_lab.replicate.folders import LATE, NotMeasured, TaskRuns, evaluation, late_mean

TITLE = "Arms against the reference"
PAPER = (
    "Clip-Cov and KL-Cov beat GRPO by 1.8 and 2.0 points on average at 7B, 4.5 and 6.4 at 32B, with higher entropy and "
    "longer answers; clip-higher gains less, an entropy bonus hardly acts or explodes (Table 2, sections 4.1, 4.3; "
    "single runs)."
)
TOLD = ("sampled_accuracy", "greedy_accuracy", "entropy/all", "mean_length_sampled")  # in the verdict, in this order
TRAINING = {  # name -> training metric, mean over the last quarter
    "training entropy": "policy_entropy/token_mean",
    "distinct-2": "diversity/distinct_2",
    "edit distance": "diversity/edit_distance",
}


def analyse(runs: TaskRuns, *, arms: list[str] | None = None) -> dict[str, Any]:
    """arms: None = every arm of the task that shares two seeds with the reference."""
    names = [a for a in (arms or runs.folders) if a != runs.reference and a in runs.folders]
    if not names:
        raise NotMeasured("no arm beside the reference")
    table = {name: {"n_seeds": len(runs.common_seeds([runs.reference, name]))} for name in names}
    metrics: dict[str, dict[str, Any]] = {}
    first = evaluation(next(iter(runs.arm(runs.reference).values())))
    for number in (n for n in numbers_of([first]) if n.main):
        margin = runs.margin if number.more_is_better else None
        found = {name: _difference(runs, name, number) for name in names}
        metrics[number.name] = judged(found, margin, number.unit)
    for metric, logged in TRAINING.items():
        found = {name: by_seed_difference(runs, name, lambda f, m=logged: _late(f, m)) for name in names}
        metrics[metric] = judged(found, None, "nats" if "entropy" in metric else "")
    metrics = {name: block for name, block in metrics.items() if block["arms"]}
    return {
        "reference": runs.reference,
        "margin": runs.margin,
        "seeds": table,
        "metrics": metrics,
        "saw": _saw(metrics, names),
        "verdict": _verdict(metrics, names),
    }


def _difference(runs: TaskRuns, arm: str, number: Number) -> dict[str, Any] | None:
    by_problem = number.problem or number.name.startswith("pass_at_k/")
    if number.more_is_better and by_problem:
        return by_problem_difference(runs, arm, score_of(number))
    return by_seed_difference(runs, arm, lambda folder: number.read(evaluation(folder)))


def score_of(number: Number) -> Callable[[Mapping[str, Any]], float]:
    """What one problem has of a number; NaN where it was not verified."""
    group, _, key = number.name.partition("/")
    if group == "pass_at_k":
        return lambda problem: pass_at(problem, int(key))

    def score(problem: Mapping[str, Any]) -> float:
        value = problem_value(problem, number.problem)
        return math.nan if value is None else value

    return score


def pass_at(problem: Mapping[str, Any], k: int) -> float:
    """pass@k of a problem; NaN where unverified, or with fewer than k verified samples."""
    n, c = problem.get("n_samples"), problem.get("n_correct")
    return math.nan if c is None or not n or n < k else pass_at_k(n, c, k)


def _late(folder: Path, metric: str) -> float | None:
    try:
        return late_mean(folder, metric, LATE)
    except NotMeasured:
        return None


def by_problem_difference(
    runs: TaskRuns, arm: str, score: Callable[[Mapping[str, Any]], float]
) -> dict[str, Any] | None:
    """The arm against the reference, problem by problem; None where fewer than two seeds or problems have a score."""
    seeds = runs.common_seeds([runs.reference, arm])
    tables = [_table([runs.arm(name)[s] for s in seeds], score) for name in (runs.reference, arm)]
    ids = [i for i in tables[0][0] if all(i in own for table in tables for own in table)]
    a_SP, b_SP = (np.array([[own[i] for i in ids] for own in table]) for table in tables)
    if np.isfinite(b_SP - a_SP).any(1).sum() < 2 or np.isfinite(b_SP - a_SP).any(0).sum() < 2:
        return None
    return clustered_entry(a_SP, b_SP)


def judged(found: Mapping[str, dict[str, Any] | None], margin: float | None, unit: str) -> dict[str, Any]:
    """A metric of several arms: p adjusted by Holm over them, and a verdict for each that was measured."""
    made = {name: one for name, one in found.items() if one is not None}
    add_verdicts(made, "diff", margin)
    reference = next(iter(made.values()))["reference"] if made else None
    return {"reference": reference, "unit": unit, "arms": made}


def add_verdicts(made: Mapping[str, dict[str, Any]], difference: str, margin: float | None = None) -> None:
    """The adjusted p and the verdict, written into each entry of a family of comparisons."""
    adjusted = holm({name: one["p"] for name, one in made.items()})
    for name, one in made.items():
        one |= {"p_holm": adjusted[name], "verdict": verdict(one[difference], one["lo"], adjusted[name], margin)}


def clustered_entry(a_SP: np.ndarray, b_SP: np.ndarray) -> dict[str, Any]:
    """Means of both (seeds, problems) tables and `clustered_difference` of them, as an arm's entry of a metric."""
    found = clustered_difference(a_SP, b_SP)
    return {
        "reference": float(np.nanmean(a_SP)),
        "value": float(np.nanmean(b_SP)),
        "diff": found.mean,
        **{k: getattr(found, k) for k in ("lo", "hi", "p", "seeds", "problems")},
    }


def _table(folders: Sequence[Path], score: Callable[[Mapping[str, Any]], float]) -> list[dict[str, float]]:
    """Problem id -> score, one dict a seed."""
    return [{p["id"]: score(p) for p in evaluation(f)["problems"]} for f in folders]


def by_seed_difference(runs: TaskRuns, arm: str, read: Callable[[Path], float | None]) -> dict[str, Any] | None:
    """The same for what has one number a run, paired over seeds; None where a run did not measure it."""
    seeds = runs.common_seeds([runs.reference, arm])
    a, b = ([read(runs.arm(name)[s]) for s in seeds] for name in (runs.reference, arm))
    if None in a or None in b:
        return None
    found = seed_differences(a, b)  # pyright: ignore[reportArgumentType]
    return {
        "reference": float(np.mean(np.array(a))),
        "value": float(np.mean(np.array(b))),
        "diff": found.mean,
        "lo": found.lo,
        "hi": found.hi,
        "p": paired_p(a, b),  # pyright: ignore[reportArgumentType]
        "seeds": len(seeds),
    }


def _of(metrics: Mapping[str, Any], metric: str, names: Sequence[str], word: str) -> list[str]:
    arms = metrics.get(metric, {}).get("arms", {})
    return [n for n in names if n in arms and arms[n]["verdict"] == word]


def _saw(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        cells = [
            f"{metric.replace('_', ' ')} {100 * d['diff']:+.1f} [{100 * d['lo']:+.1f}, {100 * d['hi']:+.1f}]"
            for metric in ("greedy_accuracy", "sampled_accuracy")
            if (d := metrics.get(metric, {}).get("arms", {}).get(name))
        ]
        entropy = metrics.get("entropy/all", {}).get("arms", {}).get(name)
        if entropy and entropy["reference"]:
            cells.append(f"entropy {entropy['diff'] / entropy['reference']:+.0%}")
        parts.append(f"{name}: {', '.join(cells)}")
    return "; ".join(parts)


def _verdict(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = []
    for metric in TOLD:
        title = named(metric).title.partition(",")[0].lower()
        for word in ("higher", "lower", "non-inferior"):
            if found := _of(metrics, metric, names, word):
                parts.append(f"{title} {word}: {', '.join(found)}")
    return "; ".join(parts) or "no arm can be told from the reference"
