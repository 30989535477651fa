"""What does it cost to take slots for independent? Greedy questions by the factored belief against the exact joint.

Needs no run: the same rows are played by both beliefs at each budget (`entrl_lab.replicate.belief_independence`). One
value per draw of the marginals (the task's `world`); intervals are Student's t over draws.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from entrl.stats.pairing import seed_differences
from entrl_lab.replicate.belief_independence import CHOICE, OVERPAID, independence_cost
from entrl_lab.replicate.folders import NotMeasured, TaskRuns

TITLE = "The cost of independent slots, against the exact joint"
PAPER = (
    "Nous factors its belief over attributes; independence is a limit its reviewers name, and what it costs is not "
    "reported in what we read."
)


def analyse(
    runs: TaskRuns,
    *,
    budgets: Sequence[int] = (3, 6),
    size: int = 20,
    draws: Sequence[int] = tuple(range(8)),
    worlds: Mapping[str, Any],
) -> dict[str, Any]:
    """worlds: name -> options of the diagram task, such as {nine slots: {}, five: {slots: 5}}. size: rows of a draw."""
    if len(draws) < 2:
        raise NotMeasured(f"an interval needs two draws of a world, got {list(draws)}")
    found = {
        name: [_over_draws(budget, size, draws, options or {}) for budget in budgets]
        for name, options in worlds.items()
    }
    return {
        "worlds": found,
        "saw": "; ".join(f"{name}: {', '.join(map(_saw, costs))}" for name, costs in found.items()),
        "verdict": "; ".join(f"{name}: {_verdict(costs)}" for name, costs in found.items()),
    }


def _over_draws(budget: int, size: int, draws: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Means over draws; `diff`, `lo`, `hi` of exact less factored, of overpaid bits the other way round."""
    costs = [independence_cost(budget=budget, size=size, seed=draw, **{**options, "world": draw}) for draw in draws]
    found: dict[str, Any] = {"budget": budget, "rows": size, "draws": list(draws)}
    for name in ("dependence_bits", "other questions"):
        found[name] = fmean(cost[name] for cost in costs)
    for name in (*CHOICE, OVERPAID):
        ends = [[cost[name][which] for cost in costs] for which in ("factored", "exact")]
        first, second = ends if name != OVERPAID else reversed(ends)
        mean, lo, hi = seed_differences(first, second)
        found[name] = {"factored": fmean(ends[0]), "exact": fmean(ends[1]), "diff": mean, "lo": lo, "hi": hi}
    return found


def _saw(cost: Mapping[str, Any]) -> str:
    right, paid = cost["slots right"], cost[OVERPAID]
    return (
        f"{cost['budget']} questions: slots right {100 * right['factored']:.1f} % factored, joint "
        f"{100 * right['diff']:+.1f} [{100 * right['lo']:+.1f}, {100 * right['hi']:+.1f}] points; overpaid "
        f"{paid['diff']:+.3f} [{paid['lo']:+.3f}, {paid['hi']:+.3f}] bits"
    )


def _verdict(costs: Sequence[Mapping[str, Any]]) -> str:
    better = [str(c["budget"]) for c in costs if c["slots right"]["lo"] > 0]
    worse = [str(c["budget"]) for c in costs if c["slots right"]["hi"] < 0]
    paid = [str(c["budget"]) for c in costs if c[OVERPAID]["lo"] > 0]
    said = f"the joint gets more slots right at budgets {', '.join(better)}" if better else "no budget where it shows"
    said += f", fewer at {', '.join(worse)}" if worse else ""
    return said + (f"; independent slots overpay at {', '.join(paid)}" if paid else "; no overpayment shown")
