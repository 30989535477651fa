"""What does it cost to take slots for independent? Greedy questions by the factored belief against the exact joint.

Needs no run: the same rows are played by both beliefs at each budget (`entrl.environments.independence`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from entrl.environments.independence import independence_cost
from entrl.replicate.folders import TaskRuns

TITLE = "The cost of independent slots, against the exact joint"
PAPER = (
    "Nous factors its belief over attributes; independence is a limit its reviewers name, and what it costs is not "
    "reported in what we read."
)


def analyse(
    runs: TaskRuns, *, budgets: Sequence[int] = (2, 4, 6), size: int = 100, seed: int = 0, worlds: Mapping[str, Any]
) -> dict[str, Any]:
    """worlds: name -> options of the diagram task, such as {all nine: {}, five: {slots: 5}}."""
    found = {
        name: [independence_cost(budget=budget, size=size, seed=seed, **(options or {})) for budget in budgets]
        for name, options in worlds.items()
    }
    return {
        "worlds": found,
        "saw": "; ".join(f"{name}: {', '.join(map(_saw, costs))}" for name, costs in found.items()),
        "verdict": "; ".join(f"{name}: {_verdict(costs)}" for name, costs in found.items()),
    }


def _saw(cost: Mapping[str, Any]) -> str:
    right, paid = cost["slots right"], cost["overpaid bits"]
    return (
        f"{cost['budget']} questions: slots right {100 * right['factored']:.1f} % factored, joint "
        f"{100 * right['diff']:+.1f} [{100 * right['lo']:+.1f}, {100 * right['hi']:+.1f}] points; overpaid "
        f"{paid['diff']:+.3f} [{paid['lo']:+.3f}, {paid['hi']:+.3f}] bits"
    )


def _verdict(costs: Sequence[Mapping[str, Any]]) -> str:
    better = [str(c["budget"]) for c in costs if c["slots right"]["lo"] > 0]
    worse = [str(c["budget"]) for c in costs if c["slots right"]["hi"] < 0]
    paid = [str(c["budget"]) for c in costs if c["overpaid bits"]["lo"] > 0]
    said = f"the joint gets more slots right at budgets {', '.join(better)}" if better else "no budget where it shows"
    said += f", fewer at {', '.join(worse)}" if worse else ""
    return said + (f"; independent slots overpay at {', '.join(paid)}" if paid else "; no overpayment shown")
