"""The law R = -a e^H + b: least squares on all points, and on the early ones with the rest predicted."""

import math

import numpy as np

from entrl.stats.law import fit_law
from entrl_lab.conformance.comparison import Case, Comparison


def law_case(case: Case, check: Comparison) -> str:
    """Arithmetic only, so no fit is refused: what `fit_law` thinks of too few or too noisy points is for its tests."""
    entropy, performance = case["inputs"]["entropy"], np.array(case["inputs"]["performance"])
    early = case["inputs"]["early_points"]
    whole = fit_law(entropy, performance, refuse=False)
    for name, want in case["fit_all"].items():
        check.close(f"fit_all/{name}", getattr(whole, name), want)
    part = fit_law(entropy[:early], performance[:early], refuse=False)
    error_M = part.predict(np.array(entropy[early:])) - performance[early:]
    computed = {
        "a": part.a,
        "b": part.b,
        "ceiling": part.ceiling,
        "prediction_rmse": math.sqrt(float(np.mean(error_M**2))),
        "final_abs_error": abs(float(error_M[-1])),
    }
    for name, want in case["fit_early"].items():
        check.close(f"fit_early/{name}", computed[name], want)
    return ""
