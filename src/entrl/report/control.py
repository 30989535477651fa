"""What a comparison with a control run says: a method that gains no more than a control earns no credit.

A run is a control where every reward it is paid by is an arm of `entrl_rewards.controls` other than `truth`: its reward
says nothing, or the wrong thing, about the answer.

Source:  hkust-nlp/model-task-align-rl: rewards without information train well where model and task are aligned; the
         rule that a gain must exceed the control's, by the paired interval, is ours
Needs:   recipes of both runs, and evaluations after training on the same problems; of a study its arms' recipes and
         differences paired over seeds
"""

from collections.abc import Iterable, Mapping
from typing import Any

from entrl.report.metrics import Number, of_problem
from entrl.report.read import RunRecord

REWARDS = "entrl_rewards.controls"
ARMS = {"formatted": "format"}  # instance -> arm, where they are called differently
METRICS = ("sampled_accuracy", "greedy_correct")  # the first that was compared decides


def control_arm(run: RunRecord) -> str | None:
    """Which control a run is (`random`, `format`, `incorrect`, ...); None for a method."""
    return control_of(run.recipe.get("rewards") or [])


def control_of(rewards: Iterable[str | Mapping[str, Any]]) -> str | None:
    """The same from the rewards of a recipe."""
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
        found = evaluation["metrics"][prefix + metric]
        lo, hi = sorted(sign * found[end] for end in ("lo", "hi"))
        verdict = credit(method.name, f"{arm} control", of_problem(metric), sign * found["diff"], lo, hi)
        said.append(prefix + verdict + _apart(a, b))
    return said or ["nothing says whether the method gains more than the control: no accuracy was compared"]


def credit(method: str, control: str, number: Number, diff: float, lo: float, hi: float) -> str:
    """The verdict on a method whose number differs from a control's by `diff`, in the 95 % interval [lo, hi]."""
    mean, low, high = (number.text(value, sign=True) for value in (diff, lo, hi))
    amount = f"{number.label} {mean} [{low}, {high}] over it"
    if lo > 0:
        return f"{method} gains more than the {control}: {amount}"
    return f"{method} gains no more than the {control}: {amount}; its reward earns no credit"


def _apart(a: RunRecord, b: RunRecord) -> str:
    """A warning where the two did not start from the same accuracy."""
    starts = [(run.eval_before or {}).get("sampled_accuracy") for run in (a, b)]
    return "" if None in starts or starts[0] == starts[1] else " (they did not start alike: compare gains instead)"
