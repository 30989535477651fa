"""Trained models beside policies that compute: the same held-out rows, played without any training.

    guess, random, fixed, greedy    `entrl.environments.policies`
    start, and each arm             eval_before.json and eval_after.json of the runs, greedy and sampled

The policies hold the exact belief, so their bits are the joint's; an arm's bits are those of its own environment's
belief, factored in the diagram game unless it says otherwise. Players have means with 95 % intervals: over rows for the
policies (which have no seed, or one), over seeds for the arms. `metrics` compares each arm's sampled dialogues with the
greedy exact policy, row by row, clustered by seed and by row.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from entrl.environments.diagram import DiagramShort
from entrl.environments.loader import load_environment
from entrl.environments.play import play, score
from entrl.environments.policies import PLAIN
from entrl.runs.recipe import Recipe, load_recipe
from entrl.stats.intervals import mean_interval
from entrl_lab.replicate.analyses.asking import SCORES, judged_score
from entrl_lab.replicate.analyses.comparison import clustered_entry, score_of
from entrl_lab.replicate.folders import NotMeasured, TaskRuns, evaluation

TITLE = "Trained models beside random, fixed-order and greedy exact questions"
PAPER = (
    "What we read of these papers compares trained models with prompted ones, not with policies that compute their "
    "questions; these four are the method card's baselines (section 10.1)."
)
METRICS = ("success", "score", "questions", "gain_per_question", "normalised_gain", "entropy_area", "repeat_rate")
BEST = "greedy"
COMPARED = {"success, sampled": "correct", "questions, sampled": "questions"}  # of `asking` -> field of an episode


def analyse(runs: TaskRuns, *, policies: Sequence[str] = tuple(PLAIN), seed: int = 0) -> dict[str, Any]:
    """policies: names that `entrl play` knows, without options; `greedy` is always among them. seed: of `random`."""
    if unknown := sorted(set(policies) - set(PLAIN)):
        raise ValueError(f"no policy {unknown[0]!r}; there are {', '.join(PLAIN)}")
    first = next(iter(runs.arm(runs.reference).values()))
    if "inquiry" not in evaluation(first):
        raise NotMeasured("the evaluation holds no dialogues; use it in a study of recipes with an environment")
    recipe = load_recipe(first / "recipe.yaml")
    factory = exact_environment(recipe)
    rows = list(recipe.load_eval_data())
    names = list(dict.fromkeys([*policies, BEST]))
    played = {name: play(factory, rows, PLAIN[name](name=name, seed=seed)) for name in names}
    ids = [row["problem_id"] for row in rows]
    players = {f"policy: {name}": score(episodes, seed=seed) for name, episodes in played.items()}
    for way in ("greedy", "sampled"):
        before = _over_seeds([_before(f) for f in runs.arm(runs.reference).values()], way)
        players |= {f"start, {way}": before} if before else {}
    for arm in runs.folders:
        for way in ("greedy", "sampled"):
            players[f"{arm}, {way}"] = _over_seeds([evaluation(f) for f in runs.arm(arm).values()], way)
    metrics = {
        metric: _against(runs, metric, {e.problem_id: float(getattr(e, field)) for e in played[BEST]}, ids)
        for metric, field in COMPARED.items()
    }
    return {
        "reference": "greedy exact",
        "margin": runs.margin,
        "rows": len(rows),
        "players": {name: {m: found[m] for m in METRICS if m in found} for name, found in players.items()},
        "metrics": metrics,
        "saw": "; ".join(  # the arms stand in the table
            f"{name}: {_cell(found)}" for name, found in players.items() if name.startswith(("policy", "start"))
        ),
        "verdict": "against greedy exact: "
        + "; ".join(f"{arm}: {_words(metrics, arm)}" for arm in metrics["questions, sampled"]["arms"]),
    }


def exact_environment(recipe: Recipe) -> Callable[[], Any]:
    """The recipe's environment, with the exact joint as belief where its own is factored."""
    spec, factory = recipe.environment, recipe.build_environment()
    assert spec is not None, "dialogues were evaluated, so the recipe has an environment"
    assert factory is not None
    if not isinstance(factory(), DiagramShort):
        return factory
    return load_environment(spec.use, {**spec.args, "belief": "exact"}, base=recipe.base)


def _before(folder: Path) -> Mapping[str, Any] | None:
    return evaluation(folder, "before") if (folder / "eval_before.json").is_file() else None


def _over_seeds(found: Sequence[Mapping[str, Any] | None], way: str) -> dict[str, dict[str, Any]]:
    """Metric -> mean over runs with a t interval; {} where a run lacks the evaluation."""
    blocks = [f["inquiry"][way] for f in found if f is not None and "inquiry" in f]
    if len(blocks) < max(len(found), 1):
        return {}
    means = {}
    for name in METRICS:
        values = [b[name]["mean"] for b in blocks if b.get(name, {}).get("mean") is not None]
        if len(values) < len(blocks):
            continue
        lo = hi = values[0]
        if len(values) > 1:
            _, lo, hi = mean_interval(values)
        means[name] = {"mean": fmean(values), "lo": lo, "hi": hi, "n": len(values)}
    return means


def _against(runs: TaskRuns, metric: str, best: Mapping[Any, float], ids: Sequence[Any]) -> dict[str, Any]:
    """Every arm less the greedy exact policy on the same rows."""
    arms: dict[str, dict[str, Any] | None] = {}
    reached = score_of(SCORES[metric])
    base_P = np.array([best[i] for i in ids])
    for arm, folders in runs.folders.items():
        tables = [{p["id"]: reached(p) for p in evaluation(f)["problems"]} for f in folders.values()]
        if len(tables) < 2 or any(set(t) != set(ids) for t in tables):
            continue
        arm_SP = np.array([[t[i] for i in ids] for t in tables])
        arms[arm] = clustered_entry(np.tile(base_P, (len(tables), 1)), arm_SP)
    return judged_score(metric, arms, runs) | {"reference": float(base_P.mean())}


def _cell(found: Mapping[str, Any]) -> str:
    shown = (("success", "right"), ("questions", "questions"), ("gain_per_question", "bits a question"))
    cells = [
        f"{found[k]['mean']:.3g} [{found[k]['lo']:.3g}, {found[k]['hi']:.3g}] {word}"
        for k, word in shown
        if found.get(k, {}).get("mean") is not None
    ]
    return ", ".join(cells) or "not measured"


def _words(metrics: Mapping[str, Any], arm: str) -> str:
    asked, right = (metrics[m]["arms"][arm] for m in ("questions, sampled", "success, sampled"))
    return (
        f"questions {asked['diff']:+.2f} [{asked['lo']:+.2f}, {asked['hi']:+.2f}], "
        f"success {100 * right['diff']:+.1f} [{100 * right['lo']:+.1f}, {100 * right['hi']:+.1f}] points"
    )
