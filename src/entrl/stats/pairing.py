"""Two arms paired: over problems (bootstrap), over seeds (Student's t), over both (two-way clusters).

    over problems   d_i = metric_b(i) - metric_a(i) on the problems both evaluations share; diff = mean(d)
                    interval: percentile bootstrap, problems drawn with replacement, fixed seed
    over seeds      d_s = value_b(s) - value_a(s);  mean(d) -+ t_{0.975, n-1} * sd(d) / sqrt(n)
    over both       d_sp = metric_b(s, p) - metric_a(s, p);  mean(d) -+ t_{0.975, m-1} * sqrt(V)
                    V = V_seeds + V_problems - V_cells, never below the larger of the first two, m = min(S, P)
                    V_g = c_g / (c_g - 1) * sum_g (sum of e in group g)^2 / N^2,  e = d - mean(d), c_g groups

The sign is always b - a, so "b is better by" for anything where more is better.

Source:  percentile bootstrap and the paired t interval are textbook methods. Two-way clusters: Cameron, Gelbach and
         Miller, Robust Inference With Multiway Clustering, 2011, section 2. Several comparisons: Holm 1979.
Differs: a problem one side could not verify (None) is left out of both sides and counted, never read as wrong.
         Bootstrap over problems says nothing about training noise; that is what the seeds are for.
         The floor under V is ours: with few seeds the difference of the three terms can fall below each of them.
Needs:   evaluation results as `entrl.evaluation.answers` writes them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from entrl.stats.intervals import (
    CONFIDENCE,
    RESAMPLES,
    MeanInterval,
    bootstrap_interval,
    mean_interval,
    student_interval,
)

SAME_FIELDS = ("task", "split", "seed", "max_new_tokens")  # differ in one of these, and the questions differ
SAMPLING_FIELDS = ("temperature", "top_p", "samples")  # these must agree as well where completions were sampled


class PairedDifference(NamedTuple):
    """Mean of b - a with its 95 % interval; `unverified` problems were left out of `n`."""

    diff: float
    lo: float
    hi: float
    n: int
    unverified: int = 0


class ClusteredDifference(NamedTuple):
    """Mean of b - a over seeds x problems; `p` tests that it is 0, two-sided. `cells` were measured on both sides."""

    mean: float
    lo: float
    hi: float
    p: float
    standard_error: float
    seeds: int
    problems: int
    cells: int


def problem_value(problem: Mapping[str, Any], metric: str) -> float | None:
    """One problem's score, or None where it was not verified; `sampled_accuracy` is n_correct / n_samples."""
    if metric == "sampled_accuracy":
        n_correct, n_samples = problem.get("n_correct"), problem.get("n_samples")
        return None if n_correct is None or not n_samples else n_correct / n_samples
    value = problem.get(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def paired_difference(
    eval_a: Mapping[str, Any],
    eval_b: Mapping[str, Any],
    metric: str = "greedy_correct",
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """b - a over the problems of two evaluations of the same task.

    metric: a number that problems hold, or `sampled_accuracy`. What is not called `greedy_...` comes from samples, so
    the evaluations must have sampled alike.
    """
    problems_a, problems_b = _paired_problems(eval_a, eval_b, sampled=not metric.startswith("greedy_"))
    known = {key: None for p in problems_a.values() for key, value in p.items() if not isinstance(value, str)}
    if metric not in (*known, "sampled_accuracy"):
        raise ValueError(f"metric must be one of sampled_accuracy, {', '.join(known)}, got {metric!r}")
    values_a = [problem_value(problem, metric) for problem in problems_a.values()]
    values_b = [problem_value(problems_b[key], metric) for key in problems_a]
    d_N = np.array(
        [b - a for a, b in zip(values_a, values_b, strict=True) if a is not None and b is not None], dtype=np.float64
    )
    if not len(d_N):
        raise ValueError(
            f"no problem has {metric} on both sides ({len(values_a)} problems, all unverified); "
            "evaluate again with a verifier that answers, or choose another metric"
        )
    lo, hi = bootstrap_interval(d_N, seed=seed, resamples=resamples)
    return PairedDifference(float(d_N.mean()), lo, hi, len(d_N), len(values_a) - len(d_N))


def _paired_problems(
    eval_a: Mapping[str, Any], eval_b: Mapping[str, Any], *, sampled: bool
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Both evaluations' problems by id, or the reason why they cannot be paired."""
    for field in SAME_FIELDS + (SAMPLING_FIELDS if sampled else ()):
        if eval_a.get(field) != eval_b.get(field):
            raise ValueError(
                f"evaluations with different {field} cannot be paired: {eval_a.get(field)!r} and "
                f"{eval_b.get(field)!r}; evaluate both with the same {field}"
            )
    problems_a, problems_b = _by_id(eval_a, "first"), _by_id(eval_b, "second")
    only_a, only_b = sorted(map(str, problems_a.keys() - problems_b)), sorted(map(str, problems_b.keys() - problems_a))
    if only_a or only_b:
        raise ValueError(
            f"evaluations of different problems cannot be paired: {len(only_a)} only in the first "
            f"{only_a[:3]}, {len(only_b)} only in the second {only_b[:3]}; use the same task, size and seed"
        )
    for key, problem in problems_a.items():
        if problem.get("prompt") != problems_b[key].get("prompt"):
            raise ValueError(
                f"problem {key!r} has two different prompts, so the ids do not name the same question; "
                "evaluate both with the same task and prompt template"
            )
    return problems_a, problems_b


def _by_id(evaluation: Mapping[str, Any], which: str) -> dict[Any, Any]:
    problems = evaluation.get("problems") or []
    if not problems:
        raise ValueError(f"the {which} evaluation lists no problems; write it with `entrl eval`")
    by_id = {problem["id"]: problem for problem in problems}
    if len(by_id) != len(problems):
        raise ValueError(
            f"the {which} evaluation repeats a problem id ({len(problems)} problems, {len(by_id)} ids); "
            "problem_id must be unique for pairing"
        )
    return by_id


def seed_differences(
    values_a: Sequence[float], values_b: Sequence[float], *, confidence: float = CONFIDENCE
) -> MeanInterval:
    """b - a paired over seeds, with Student's t interval; value s of both lists must share its seed."""
    if len(values_a) != len(values_b):
        raise ValueError(
            f"seeds are paired one to one, got {len(values_a)} and {len(values_b)} values; drop the unmatched seeds"
        )
    d_N = np.asarray(values_b, dtype=np.float64) - np.asarray(values_a, dtype=np.float64)
    return mean_interval(d_N, confidence=confidence)


def seed_ratio(values_a: Sequence[float], values_b: Sequence[float]) -> MeanInterval:
    """b / a paired in the same way: the geometric mean, with the interval of the mean logarithm."""
    return MeanInterval(*np.exp(seed_differences(np.log(values_a).tolist(), np.log(values_b).tolist())).tolist())


def paired_p(values_a: Sequence[float], values_b: Sequence[float]) -> float:
    """Two-sided p of the paired t test that the mean of b - a over seeds is 0; the interval is `seed_differences`.

    Differences without spread give 0, or 1 where they are all 0.
    """
    seed_differences(values_a, values_b)  # its checks
    d_N = np.asarray(values_b, dtype=np.float64) - np.asarray(values_a, dtype=np.float64)
    return _two_sided(float(d_N.mean()), float(d_N.std(ddof=1)) / math.sqrt(len(d_N)), len(d_N) - 1)


def _two_sided(mean: float, standard_error: float, df: int) -> float:
    if standard_error <= abs(mean) * 1e-14:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(scipy.stats.t.sf(abs(mean) / standard_error, df))


def clustered_difference(
    values_a_SP: np.ndarray, values_b_SP: np.ndarray, *, confidence: float = CONFIDENCE
) -> ClusteredDifference:
    """b - a over S seeds x P problems, clustered by seed and by problem at once.

    values_a_SP, values_b_SP: (S, P), NaN where a problem was not verified; row s of both shares its seed, column p its
    problem. Seeds share a policy and problems a difficulty, so neither rows nor columns are independent.
    """
    a_SP, b_SP = np.asarray(values_a_SP, dtype=np.float64), np.asarray(values_b_SP, dtype=np.float64)
    if a_SP.shape != b_SP.shape or a_SP.ndim != 2:
        raise ValueError(f"both arms need one (seeds, problems) table each, got {a_SP.shape} and {b_SP.shape}")
    d_SP = b_SP - a_SP
    kept_SP = np.isfinite(d_SP)
    d_SP = d_SP[np.ix_(kept_SP.any(1), kept_SP.any(0))]
    kept_SP = np.isfinite(d_SP)
    seeds, problems = d_SP.shape
    if seeds < 2 or problems < 2:
        raise ValueError(
            f"two-way clusters need at least 2 seeds and 2 problems verified on both sides, got {seeds} and {problems}"
        )
    cells = int(kept_SP.sum())
    mean = float(d_SP[kept_SP].mean())
    error_SP = np.where(kept_SP, d_SP - mean, 0.0)
    by_seed, by_problem, by_cell = (
        groups / (groups - 1) * float((sums**2).sum()) / cells**2
        for groups, sums in ((seeds, error_SP.sum(1)), (problems, error_SP.sum(0)), (cells, error_SP))
    )
    standard_error = math.sqrt(max(by_seed + by_problem - by_cell, by_seed, by_problem))
    df = min(seeds, problems) - 1
    ends = student_interval(mean, standard_error, df, confidence=confidence)
    return ClusteredDifference(*ends, _two_sided(mean, standard_error, df), standard_error, seeds, problems, cells)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of every comparison (Holm's step-down): reject where it is below alpha, and at most a share alpha of
    such families has any false rejection. Order of keys kept."""
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p of {name!r} must be in [0, 1], got {p}; leave out comparisons that were not measured")
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def non_inferior(diff: float, lo: float, margin: float) -> bool:
    """True where b is worse than a by less than `margin`, at the interval's confidence: lo > -margin."""
    if margin < 0:
        raise ValueError(f"margin must be >= 0, got {margin}; it is the loss you would accept, as a positive number")
    if lo > diff:
        raise ValueError(f"lo must be <= diff, got lo={lo}, diff={diff}; pass the lower end of the interval")
    return lo > -margin


def verdict(mean: float, lo: float, adjusted_p: float, margin: float | None = None) -> str:
    """'higher' or 'lower' where the Holm-adjusted p says so; otherwise 'non-inferior' where lo > -margin (for what is
    better when higher), else 'not distinguishable'. The margin is held against the interval of the one comparison."""
    if adjusted_p < 1 - CONFIDENCE:
        return "higher" if mean > 0 else "lower"
    return "non-inferior" if margin is not None and non_inferior(mean, lo, margin) else "not distinguishable"
