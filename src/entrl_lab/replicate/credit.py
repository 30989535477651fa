"""What the control arms of a study say: a method that gains no more than one of them earns no credit.

Source:  the rule and its words are `entrl.report.control`'s; here the interval is that of the difference paired over
         seeds (Student's t), in sampled accuracy, or greedy where nothing was sampled
Needs:   an arm whose rewards are `entrl_rewards.controls`, other than `truth`
"""

from collections.abc import Mapping

from entrl.report.control import control_of, credit
from entrl.report.metrics import named
from entrl.stats.pairing import seed_differences
from entrl_lab.replicate.study import Run, Study, Task

METRICS = ("sampled_accuracy", "greedy_accuracy")  # the first that both arms have decides
Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # arm -> seed -> the numbers of a run


def credits_of(study: Study, task: Task, values: Values) -> list[str]:
    """A sentence for each method and control arm that share two finished seeds; [] for a study without a control."""
    kinds: dict[str, str | None] = {}  # of the arms that learn from a reward: the start, evaluated, is no method
    starts = {}
    for arm in study.arms_of(task):
        recipe = study.recipe_of(Run(task=task, arm=arm, seed=study.seeds_of(arm)[0], setting=0 if arm.tune else None))
        if recipe.trainer.get("learning_rate") != 0:
            kinds[arm.name] = control_of(vars(reward) for reward in recipe.rewards)
            starts[arm.name] = recipe.model.path, arm.offline
    said = []
    for control in (name for name, kind in kinds.items() if kind is not None):
        for method in (name for name, kind in kinds.items() if kind is None):
            apart = "" if starts[method] == starts[control] else " (they did not start alike: compare gains instead)"
            if sentence := _verdict(values, method, control, str(kinds[control])):
                said.append(sentence + apart)
    return said


def _verdict(values: Values, method: str, control: str, kind: str) -> str:
    own, base = values.get(method, {}), values.get(control, {})
    seeds = [seed for seed in base if seed in own]
    metric = next((m for m in METRICS if seeds and all(m in row[s] for row in (own, base) for s in seeds)), None)
    if metric is None or len(seeds) < 2:
        return ""
    found = seed_differences([base[s][metric] for s in seeds], [own[s][metric] for s in seeds])
    return credit(method, f"{kind} control {control!r}", named(metric), found.mean, found.lo, found.hi)
