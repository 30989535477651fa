"""Top-H: both of our rules on the logits of a vector, the paper's in float64 and the reference's in float32.

Source: the vectors hold the paper's Algorithm 1 computed on its own in float64, and what the authors' repository and
transformers' TopHLogitsWarper kept, run as they are in float32 (meta.origin).
"""

import torch

from entrl.maths.truncation import entropy_and_kept_mass, top_h_keep
from entrl_lab.conformance.comparison import Case, Comparison


def top_h_case(case: Case, check: Comparison) -> str:
    """Kept tokens under both rules; entropy before and after the cut and the kept mass under the paper's.

    Where logits are equal at the edge of the kept set, which of the equal tokens stay is an accident of a sort, and
    how many may hang on the last bit of a sum: the reference rule then has to keep the logits of one of the two codes.
    """
    z_1V = torch.tensor([case["logits"]], dtype=torch.float64) / case["temperature"]
    paper_1V = top_h_keep(z_1V, case["alpha"], rule="paper")
    entropy_1, mass_1 = entropy_and_kept_mass(z_1V, paper_1V)
    kept_entropy_1, _ = entropy_and_kept_mass(z_1V.masked_fill(~paper_1V, -torch.inf))
    check.same("paper_keep", _ids(paper_1V), case["paper_keep"])
    check.close("paper_H_p_nats", entropy_1[0], case["paper_H_p_nats"])
    check.close("paper_H_q_nats", kept_entropy_1[0], case["paper_H_q_nats"])
    check.close("paper_mass", mass_1[0], case["paper_mass"])

    z_1V = torch.tensor([case["logits"]], dtype=torch.float32) / case["temperature"]
    got = _ids(top_h_keep(z_1V, case["alpha"], rule="reference", top_n=case["top_n"]))
    published = [keep for keep in (case["hf_keep"], case["repo_keep"]) if keep is not None]
    logits = case["logits"]
    same_ids = [keep for keep in published if keep == got]
    same_logits = [keep for keep in published if sorted(logits[i] for i in keep) == sorted(logits[i] for i in got)]
    check.same("reference_keep", got, got if same_ids or same_logits else published[0])
    notes = [] if same_ids or not same_logits else ["equal logits, other ids"]
    if case.get("repo_error"):
        notes.append(f"the repository's code fails here ({case['repo_error']})")
    elif len(case["repo_keep"]) != len(case["hf_keep"]):
        notes.append(f"repository keeps {len(case['repo_keep'])}, transformers {len(case['hf_keep'])}, ours {len(got)}")
    return "; ".join(notes)


def _ids(keep_1V: torch.Tensor) -> list[int]:
    return keep_1V[0].nonzero().flatten().tolist()
