"""Does an arm ask less without losing? Success and questions of dialogues, against a reference and against the start.

Problem by problem (a held-out table and its hidden row), clustered by seed and by problem, as in `comparison`. Words of
the answer, from each difference's own 95 % interval, which is not adjusted for the number of arms:

    fewer       the interval of the difference in questions lies below 0        more    above 0
    held        the interval of the difference in success lies above -margin
    share right the share of a submission that is right, where an answer has parts (a diagram's slots)

"Fewer questions at equal success" needs both. In the tables p is adjusted by Holm over the arms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from entrl.report.metrics import named
from entrl_lab.replicate.analyses.comparison import by_problem_difference, clustered_entry, judged, score_of
from entrl_lab.replicate.folders import NotMeasured, TaskRuns, evaluation

TITLE = "Asking: success and questions"
PAPER = (
    "Delta-belief RL asks fewer and less repeated questions than outcome-only RL and succeeds more often (24.8 against "
    "16.5 % at 1.7B, 33.7 against 24.4 % at 4B); information gain as reward beats the count of resolved attributes in "
    "Nous (by its reviews; numbers not read)."
)
Score = Callable[[Mapping[str, Any]], float]
SCORES = {
    "success, greedy": named("greedy_accuracy"),
    "success, sampled": named("sampled_accuracy"),
    "score, greedy": named("score/greedy"),
    "score, sampled": named("score/sampled"),
    "questions, greedy": named("questions/greedy"),
    "questions, sampled": named("questions/sampled"),
}


def scores_of(problems: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """The scores that these problems hold; `score` (share of the answer that is right) only where it is not success."""
    own = {metric: score_of(number) for metric, number in SCORES.items()}
    for way in ("greedy", "sampled"):
        success, share = ([own[f"{kind}, {way}"](p) for p in problems] for kind in ("success", "score"))
        if any(math.isnan(value) for value in share) or success == share:
            del own[f"score, {way}"]
    return own


def analyse(runs: TaskRuns, *, arms: list[str] | None = None, reference: str | None = None) -> dict[str, Any]:
    """arms: None = every arm; against the start the reference as well. reference: None = the study's."""
    runs = replace(runs, reference=reference or runs.reference)
    names = list(arms or runs.folders)
    first = next(iter(runs.arm(runs.reference).values()))
    if "inquiry" not in evaluation(first):
        raise NotMeasured("the evaluation holds no dialogues; use it in a study of recipes with an environment")
    others = [n for n in names if n != runs.reference]
    scores = scores_of(evaluation(first)["problems"])
    against = {
        metric: judged_score(metric, {n: by_problem_difference(runs, n, score) for n in others}, runs)
        for metric, score in scores.items()
    }
    trained = {
        metric: judged_score(metric, {n: _since_start(runs, n, score) for n in names}, runs)
        for metric, score in scores.items()
    }
    saw = "; ".join(f"{n}: {_cells(against, n)}" for n in others)
    return {
        "reference": runs.reference,
        "margin": runs.margin,
        "metrics": against,
        "since_start": trained,
        "saw": f"against {runs.reference}: {saw}; since the start: "
        + "; ".join(f"{n}: {_cells(trained, n)}" for n in names),
        "verdict": f"against {runs.reference}: "
        + "; ".join(f"{n}: {_answer(against, n, runs.margin)}" for n in others)
        + "; since the start: "
        + "; ".join(f"{n}: {_answer(trained, n, runs.margin)}" for n in names),
    }


def _since_start(runs: TaskRuns, arm: str, score: Score) -> dict[str, Any] | None:
    """After training against before, over the seeds of an arm; None for an arm that did not measure its start.

    Before is where the reference began with the seed: an arm that `entrl offline` taught began as something else.
    """
    tables: tuple[list[dict], list[dict]] = ([], [])
    for seed, folder in runs.arm(arm).items():
        start = runs.arm(runs.reference).get(seed, folder)
        if not (start / "eval_before.json").is_file():
            return None
        for table, found in zip(tables, (evaluation(start, "before"), evaluation(folder)), strict=True):
            table.append({p["id"]: score(p) for p in found["problems"]})
    ids = list(tables[0][0])
    a_SP, b_SP = (np.array([[own[i] for i in ids] for own in table]) for table in tables)
    if len(a_SP) < 2:
        return None
    return clustered_entry(a_SP, b_SP)


def judged_score(metric: str, found: Mapping[str, dict[str, Any] | None], runs: TaskRuns) -> dict[str, Any]:
    """`judged`; what is better when higher is held against the margin."""
    number = SCORES[metric]
    return judged(found, runs.margin if number.more_is_better else None, number.unit)


def _cells(metrics: Mapping[str, Any], arm: str) -> str:
    cells = []
    for metric, block in metrics.items():
        if metric.endswith(", greedy"):
            continue  # in `metrics` and the plots; a sentence of everything is not read
        if (d := block["arms"].get(arm)) is not None:
            scale, unit = (100, " points") if block["unit"] == "%" else (1, "")
            cells.append(f"{metric} {scale * d['diff']:+.2f} [{scale * d['lo']:+.2f}, {scale * d['hi']:+.2f}]{unit}")
    return ", ".join(cells) or "not measured"


def _answer(metrics: Mapping[str, Any], arm: str, margin: float) -> str:
    """Of sampled dialogues and of greedy ones; where both say the same, once."""
    words = {way: _words(metrics, arm, margin, way) for way in ("sampled", "greedy")}
    if len(set(words.values())) == 1:
        return words["sampled"]
    return f"sampled {words['sampled']}, greedy {words['greedy']}"


def _words(metrics: Mapping[str, Any], arm: str, margin: float, way: str) -> str:
    success, asked = (metrics[f"{what}, {way}"]["arms"].get(arm) for what in ("success", "questions"))
    if success is None or asked is None:
        return "not measured"
    words = (
        "fewer questions" if asked["hi"] < 0 else "more questions" if asked["lo"] > 0 else "questions not told apart"
    )
    held = "success held" if success["lo"] > -margin else "success not shown to hold"
    more = " and higher" if success["lo"] > 0 else " and lower" if success["hi"] < 0 else ""
    if (share := metrics.get(f"score, {way}", {}).get("arms", {}).get(arm)) is not None:
        told = "higher" if share["lo"] > 0 else "lower" if share["hi"] < 0 else "not told apart"
        more += ", share right " + told
    equal = " (fewer questions at equal success)" if asked["hi"] < 0 and success["lo"] > -margin else ""
    return f"{words} with {held}{more}{equal}"
