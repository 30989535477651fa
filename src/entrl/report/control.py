"""What a comparison with a control run says: a method that gains no more than a control earns no credit.

A run is a control where every reward it is paid by is an arm of `entrl_rewards.controls` other than `truth`: its reward
says nothing, or the wrong thing, about the answer.

Source:  hkust-nlp/model-task-align-rl: rewards without information train well where model and task are aligned; the
         rule that a gain must exceed the control's, by the paired interval, is ours
Needs:   recipes of both runs, and evaluations after training on the same problems
"""

from collections.abc import Mapping
from typing import Any

from entrl.report.metrics import of_problem
from entrl.report.read import RunRecord

REWARDS = "entrl_rewards.controls"
ARMS = {"formatted": "format"}  # instance -> arm, where they are called differently
METRICS = ("sampled_accuracy", "greedy_correct")  # the first that was compared decides


def control_arm(run: RunRecord) -> str | None:
    """Which control a run is (`random`, `format`, `incorrect`, ...); None for a method."""
    rewards = run.recipe.get("rewards") or []
    entries = [{"use": entry} if isinstance(entry, str) else entry for entry in rewards]
    paid = [_arm(entry) for entry in entries if entry.get("weight", 1.0)]
    return (
        " + ".join(dict.fromkeys(map(str, paid))) if paid and all(arm not in (None, "truth") for arm in paid) else None
    )


def _arm(entry: Mapping[str, Any]) -> str | None:
    module, _, instance = str(entry.get("use", "")).partition(":")
    if module not in ("controls", REWARDS):
        return None
    given = (entry.get("args") or {}).get("arm")
    return given or ARMS.get(instance, "random" if instance in ("", "reward") else instance)


def control_words(a: RunRecord, b: RunRecord, evaluation: Mapping[str, Any]) -> list[str]:
    """One sentence for each task, where one of the two is a control and the other is not; evaluation: b - a, paired."""
    arms = control_arm(a), control_arm(b)
    if (arms[0] is None) == (arms[1] is None):
        return []
    method, arm, sign = (b, arms[0], 1) if arms[1] is None else (a, arms[1], -1)
    said = []
    for task in dict.fromkeys(key.rpartition(": ")[0] for key in evaluation["metrics"]):
        prefix = f"{task}: " if task else ""
        metric = next((m for m in METRICS if "diff" in evaluation["metrics"].get(prefix + m, {})), None)
        if metric is None:
            continue
        found, number = evaluation["metrics"][prefix + metric], of_problem(metric)
        ends = sorted(sign * found[end] for end in ("lo", "hi"))
        shown = [number.text(value, sign=True) for value in (sign * found["diff"], *ends)]
        amount = f"{number.label} {shown[0]} [{shown[1]}, {shown[2]}] over it"
        verdict = (
            f"{method.name} gains more than the {arm} control: {amount}"
            if ends[0] > 0
            else f"{method.name} gains no more than the {arm} control: {amount}; its reward earns no credit"
        )
        said.append(prefix + verdict + _apart(a, b))
    return said or ["nothing says whether the method gains more than the control: no accuracy was compared"]


def _apart(a: RunRecord, b: RunRecord) -> str:
    """A warning where the two did not start from the same accuracy."""
    starts = [(run.eval_before or {}).get("sampled_accuracy") for run in (a, b)]
    return "" if None in starts or starts[0] == starts[1] else " (they did not start alike: compare gains instead)"
