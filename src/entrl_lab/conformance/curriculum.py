"""DART-Math's stop rule and allocation, STAT's filter and profile.

Source: meta.origin of the vectors: the stop rule is the authors' code (dart_math/gen.py is_dp_dars_finished), the rest
own arithmetic from README and paper.
"""

import numpy as np

from entrl.curriculum.dart import prop2diff_targets, stop_reason
from entrl.curriculum.skills import draw_questions, is_difficult, skill_counts
from entrl_lab.conformance.comparison import Case, Comparison

DRAWS = 5  # of the vectors' key per_skill_draws_at_5


def stop_case(case: Case, check: Comparison) -> str:
    got = stop_reason(
        max_trials=case["max_n_trials"],
        min_correct=case["min_n_corrects"],
        trials=case["n_trials"],
        correct=case["n_corrects"],
    )
    check.same("stop_reason", got, case["stop_reason"])
    return ""


def allocation_case(case: Case, check: Comparison) -> str:
    got = prop2diff_targets(np.array([case["fail_rate"]]), k_p=case["k_p"])
    check.same("target", int(got[0]), case["target_paper_scaled_by_raw_fail_rate"])
    return ""


def difficulty_case(case: Case, check: Comparison) -> str:
    got = is_difficult(case["step_rewards"], tau1=case["tau1"], tau2=case["tau2"])
    check.same("difficult", got, case["difficult"])
    check.same("R", int(not got), case["R"])
    return ""


def profile_case(case: Case, check: Comparison) -> str:
    """Draws are counted by skill: each skill's questions are named after it, and there are enough of them."""
    profile = case["missing_skill_profile"]
    check.same("skill_counts", skill_counts(profile), case["skill_counts"])
    questions = {skill: [f"{skill}/{i}" for i in range(DRAWS)] for skill in case["skill_counts"]}
    drawn = [question.partition("/")[0] for question in draw_questions(profile, questions, per_skill=DRAWS)]
    check.same("per_skill", {s: drawn.count(s) for s in case["skill_counts"]}, case["per_skill_draws_at_5"])
    check.same("total", len(drawn), case["total_draws_at_5"])
    return ""
