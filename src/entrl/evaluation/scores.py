"""The scores of an evaluation: accuracies, pass@k (here and nowhere else), lengths; means over problems.

    pass@k = 1 - C(n - c, k) / C(n, k)      n verified samples of a problem, c of them right

Source:  Chen et al. 2021 (arXiv 2107.03374), section 2.1. Interval: Wilson 1927
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from entrl.stats.intervals import bootstrap_interval, wilson_interval


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold one of the c right ones."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def summary(problems: Sequence[Mapping[str, Any]], *, k: Sequence[int], seed: int) -> dict[str, Any]:
    """The aggregates of a list of problems; None where no problem is verified, or none was asked greedily."""
    greedy = [p["greedy_correct"] for p in problems if p["greedy_correct"] is not None]
    lengths = [p["greedy_length"] for p in problems if p["greedy_length"] is not None]
    shares = [p["n_correct"] / p["n_samples"] for p in problems if p["n_samples"]]
    counts = [(p["n_samples"], p["n_correct"]) for p in problems if p["n_samples"]]
    reach = {str(j): [pass_at_k(n, c, j) for n, c in counts if n >= j] for j in k}
    return {
        "greedy_accuracy": fmean(greedy) if greedy else None,
        "greedy_accuracy_ci": list(wilson_interval(sum(greedy), len(greedy))) if greedy else None,
        "sampled_accuracy": fmean(shares) if shares else None,
        "sampled_accuracy_ci": list(bootstrap_interval(np.array(shares), seed=seed)) if shares else None,
        "pass_at_k": {j: fmean(values) if values else None for j, values in reach.items()},
        "mean_length_greedy": fmean(lengths) if lengths else None,
        "mean_length_sampled": fmean(p["mean_length"] for p in problems),
    }
