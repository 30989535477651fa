"""DART-Math: how many right answers a problem should get, when to stop asking for them, and the same as weights.

    target_i = max(1, ceil(k_p f_i))                     Prop2Diff, f_i the fail rate
    target_i = max(1, ceil(k_p f_i / max_j f_j))         the same, the hardest problem getting k_p (`divide_by_max`)
    target_i = k_u                                       Uniform
    stop     when trials >= max_trials > 0, else when correct > min_correct > 0

Expected raw samples of a problem: target / (1 - f).

As a rule for prompts:

    w_i = target_i                                       prop2diff
    w_i = min(k_u / (1 - f_i), max_trials)               uniform: the trials that equally many right answers take

Source:  DART-Math, arXiv 2407.13690, and hkust-nlp/dart-math at 219b32467b: dart_math/gen.py is_dp_dars_finished (the
         stop rule), README (Uniform, Prop2Diff; k_u 40, k_p 192; at most 2048 trials)
Differs: the repository leaves Prop2Diff to the user's arithmetic; dividing by the largest fail rate is a reading of
         "the hardest query gets k_p". The weights are ours: there answers are stored, here prompts are drawn. `give_up`
         is ours as well: a problem with a wrong gold looks like the hardest of all, so after so many trials in a row
         without a pass it weighs as the lightest, until the floor finds it solved once
Needs:   nothing
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from entrl.curriculum.rules import Floats, Ints, Prompts, Rule

Stop = Literal["max_n_trials", "max_n_corrects"]  # the repository's words


def stop_reason(*, max_trials: int, min_correct: int, trials: int, correct: int) -> Stop | None:
    """Why no more answers are asked for, None where they are. A limit of 0 or below is none.

    The second comparison is strict, so one right answer more than `min_correct` is collected; trials count when they
    are asked for, so a batch may overshoot.
    """
    if trials >= max_trials > 0:
        return "max_n_trials"
    return "max_n_corrects" if correct > min_correct > 0 else None


def prop2diff_targets(fail_rate_P: Floats, *, k_p: int, divide_by_max: bool = False) -> Ints:
    """Right answers for each problem, at least 1. Products within round-off of a whole number count as that number."""
    if not ((fail_rate_P >= 0) & (fail_rate_P <= 1)).all():
        raise ValueError(f"fail rates lie in [0, 1], got {fail_rate_P.min()} to {fail_rate_P.max()}")
    hardest = float(fail_rate_P.max(initial=0.0))
    scaled_P = k_p * (fail_rate_P / hardest if divide_by_max and hardest else fail_rate_P)
    nearest_P = np.rint(scaled_P)
    exact_P = np.where(np.isclose(scaled_P, nearest_P, rtol=1e-12, atol=0), nearest_P, np.ceil(scaled_P))
    return np.maximum(exact_P, 1).astype(np.int64)


def expected_trials(target: float, fail_rate: float) -> float:
    """Raw samples until `target` right answers are there; inf where none comes."""
    return target / (1 - fail_rate) if fail_rate < 1 else math.inf


@dataclass(kw_only=True)
class Dart(Rule):
    name: ClassVar[str] = "dart"

    mode: Literal["prop2diff", "uniform"] = "prop2diff"
    k_p: int = 192  # right answers of the hardest problem
    k_u: int = 40  # right answers of every problem
    divide_by_max: bool = False
    max_trials: int = 2048  # of a problem
    give_up: int = 128  # trials in a row without a pass, after which a prompt weighs as the lightest; 0: never

    def __post_init__(self) -> None:
        if self.mode not in ("prop2diff", "uniform"):
            raise ValueError(f"dart: mode must be prop2diff or uniform, got {self.mode!r}")
        for name in ("k_p", "k_u", "max_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"dart: {name} must be at least 1, got {getattr(self, name)}")
        if self.give_up < 0:
            raise ValueError(f"dart: give_up counts trials, 0 for never; got {self.give_up}")

    def weights(self, prompts: Prompts) -> Floats:
        if self.mode == "uniform":
            weight_P = np.minimum(self.k_u / prompts.pass_rate_P, self.max_trials)
        else:
            target_P = prop2diff_targets(prompts.fail_rate_P, k_p=self.k_p, divide_by_max=self.divide_by_max)
            weight_P = target_P.astype(np.float64)
        if self.give_up:
            weight_P = np.where(prompts.failed_P >= self.give_up, weight_P.min(), weight_P)
        return weight_P.astype(np.float64)


rule = Dart()
