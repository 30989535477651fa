"""Entropy change of a tabular softmax policy, against both theorems of arXiv 2505.22617 section 3."""

from typing import Literal

import torch

from entrl.controllers.monitor import tabular_entropy_change
from entrl.maths.signals import entropy_from_logits
from entrl_lab.conformance.comparison import Case, Comparison

# The changes are as small as 1e-7 nats, so the file's atol of 1e-9, which is there for masked means, would let the
# prediction pass for the change. Float64 leaves about 1e-15 in a difference of two entropies.
SMALL_CHANGE = (1e-7, 1e-13)  # rtol, atol
THEOREMS: dict[str, Literal[1, 2]] = {"policy_gradient": 1, "natural_policy_gradient": 2}


def theory_case(case: Case, check: Comparison) -> str:
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    advantage = torch.tensor(case["inputs"]["advantage"], dtype=torch.float64)
    check.close("entropy", entropy_from_logits(logits), case["entropy"])
    rtol, atol = SMALL_CHANGE
    for name, theorem in THEOREMS.items():
        change, minus_eta_cov = tabular_entropy_change(logits, advantage, case["inputs"]["eta"], theorem=theorem)
        check.close(f"{name}/entropy_change", change, case[name]["entropy_change"], rtol=rtol, atol=atol)
        check.close(f"{name}/minus_eta_cov", minus_eta_cov, case[name]["minus_eta_cov"], rtol=rtol, atol=atol)
    return ""
