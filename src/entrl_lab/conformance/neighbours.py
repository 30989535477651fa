"""Methods near Clip-Cov and KL-Cov: STEER's token weights and GPPO's loss, each through our controller.

Source: vectors made with the functions of zz-haooo/STEER and suu990901/KlearReasoner (meta.commits).
"""

import torch

from entrl.controllers.ce_gppo import CEGPPO
from entrl.controllers.hooks import LossView
from entrl.controllers.steer import Steer
from entrl_lab.conformance.comparison import Case, Comparison
from entrl_lab.conformance.entropy_mechanism import rows_of, tensors
from entrl_lab.conformance.policy_loss import aggregate, token_losses

FLOAT32_WEIGHTS = (1e-4, 1e-5)  # rtol, atol of the vector's note: the official code runs in float32 only


def steer_case(case: Case, check: Comparison) -> str:
    """Per micro-batch, as published. The file has weight 0 at padding where ours is 1; neither reaches a loss."""
    inputs, p = tensors(case["inputs"]), case["params"]
    rows = rows_of(inputs)
    controller = Steer(
        w_min=p["weight_min"],
        w_max=p["weight_max"],
        mapping="linear" if p["linear"] else "exp",
        scope="micro_batch",
    )
    terms = controller.on_loss(
        rows,
        None,
        LossView(
            log_probs_BT=inputs["log_prob"],
            old_log_probs_BT=inputs["old_log_prob"],
            entropies_BT=inputs["entropy"],
            eps_low=0.2,  # of no effect on the weights
            eps_high=0.2,
        ),
    )
    assert terms.weight_BT is not None
    want_BT = torch.tensor(case["outputs"]["weights"])
    rtol, atol = FLOAT32_WEIGHTS
    check.same("gradient_through_weights", terms.weight_BT.requires_grad, False)
    check.close("weights", torch.where(rows.mask_BT, terms.weight_BT, 0.0), want_BT, rtol=rtol, atol=atol)
    return "float32 tolerance of the file's note"


def gppo_case(case: Case, check: Comparison) -> str:
    """The clipped loss with dual clip, completed by CE-GPPO with both betas 1."""
    inputs, p, want = tensors(case["inputs"]), case["params"], case["outputs"]
    rows = rows_of(inputs)
    clip = {"eps_low": p["clip_low"], "eps_high": p["clip_high"]}
    terms = CEGPPO(beta_low=1.0, beta_high=1.0).on_loss(
        rows,
        None,
        LossView(
            log_probs_BT=inputs["log_prob"],
            old_log_probs_BT=inputs["old_log_prob"],
            entropies_BT=torch.zeros_like(inputs["old_log_prob"]),  # read by a metric only
            **clip,
        ),
    )
    loss_BT = token_losses(inputs, terms, **clip, dual_clip=p["dual_clip"])
    loss = aggregate(loss_BT, rows.mask_BT, "token-mean", count_empty_rows=False)
    (grad_BT,) = torch.autograd.grad(loss, inputs["log_prob"])
    check.close("loss", loss, want["loss"])
    check.close("grad_log_prob", grad_BT, want["grad_log_prob"])
    return f"dual clip {p['dual_clip']:g}, which is TRL's delta"
