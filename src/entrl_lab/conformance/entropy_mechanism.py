"""Clip-Cov, KL-Cov and the plain PPO clip: losses, selections under different splits, entropies.

Source: vectors made with the functions of PRIME-RL/Entropy-Mechanism-of-RL and volcengine/verl (meta.commits).
"""

from typing import Any, Literal

import torch
from torch import Tensor

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.covariance import ppo_clipped, token_covariance
from entrl.controllers.hooks import LossTerms, LossView, Rows, Window
from entrl.controllers.kl_cov import KLCov
from entrl.maths.signals import entropy_from_logits, masked_mean, masked_token_mean
from entrl_lab.conformance.comparison import Case, Comparison
from entrl_lab.conformance.policy_loss import aggregate, token_losses

FLOAT32_COV = (1e-5, 1e-5)  # rtol, atol: covariances are ours in float32, the vectors' in float64


def tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Float64, as the vectors were made; the log-probs are a leaf so that a gradient can be asked for."""
    out = {k: torch.tensor(v, dtype=torch.float64) for k, v in inputs.items()}
    out["log_prob"].requires_grad_(True)
    return out


def rows_of(inputs: dict[str, Tensor], start: int = 0, stop: int | None = None) -> Rows:
    mask_BT = inputs["response_mask"].bool()
    part = slice(start, stop)
    return Rows(
        advantages_BT=inputs["advantages"][part],
        mask_BT=mask_BT[part],
        row_id_B=torch.arange(len(mask_BT))[part],
        informative_B=torch.ones(len(mask_BT), dtype=torch.bool)[part],
    )


def _controller(case: Case, *, scope: Literal["exact", "micro_batch"]) -> ClipCov | KLCov:
    p = case["params"]
    shared = {"scope": scope, "allow_large_fraction": True, "skip_zero_std_groups": False, "log_shares": False}
    if "kl_cov" in case["function"]:
        fraction = p["k_percent"] / 100 if "k_percent" in p else p["kl_cov_ratio"]
        return KLCov(fraction=fraction, coef=p["kl_coef"], **shared)
    return ClipCov(
        fraction=p["clip_cov_ratio"],
        lower=p["clip_cov_lb"],
        upper=p["clip_cov_ub"],
        clip_low=p["clip_low"],
        clip_high=p["clip_high"],
        **shared,
    )


def _apply(
    controller: ClipCov | KLCov, inputs: dict[str, Tensor], selection: Any, start: int = 0, stop: int | None = None
) -> LossTerms:
    eps_low, eps_high = controller.clip_range
    part = slice(start, stop)
    log_probs_BT = inputs["log_prob"][part]
    return controller.on_loss(
        rows_of(inputs, start, stop),
        selection,
        LossView(
            log_probs_BT=log_probs_BT,
            old_log_probs_BT=inputs["old_log_prob"][part],
            entropies_BT=torch.zeros_like(log_probs_BT),
            eps_low=eps_low,
            eps_high=eps_high,
        ),
    )


def _positions(chosen_BT: Tensor, first_row: int = 0) -> list[list[int]]:
    return [[row + first_row, column] for row, column in chosen_BT.nonzero().tolist()]


def _window(inputs: dict[str, Tensor]) -> Window:
    return Window(
        rows=rows_of(inputs),
        log_probs_BT=inputs["log_prob"].detach(),
        old_log_probs_BT=inputs["old_log_prob"],
        step=0,
    )


def _chosen(
    controller: ClipCov | KLCov, inputs: dict[str, Tensor], selection: Any, start: int = 0, stop: int | None = None
) -> list[list[int]]:
    """What the loss pass takes: the tokens of weight 0, or for KL-Cov, whose penalty may be 0, its members."""
    if isinstance(controller, ClipCov):
        weight_BT = _apply(controller, inputs, selection, start, stop).weight_BT
        assert weight_BT is not None
        return _positions(weight_BT == 0, start)
    rows, log_probs_BT = rows_of(inputs, start, stop), inputs["log_prob"].detach()[start:stop]
    if selection is None:
        old_log_probs_BT = inputs["old_log_prob"][start:stop]
        selection = controller.select(
            Window(rows=rows, log_probs_BT=log_probs_BT, old_log_probs_BT=old_log_probs_BT, step=0)
        )
    return _positions(controller.members(rows, selection, log_probs_BT=log_probs_BT), start)


def _check_loss(check: Comparison, case: Case, inputs: dict[str, Tensor], terms: LossTerms) -> None:
    want, mask_BT = case["outputs"], inputs["response_mask"].bool()
    kl = "kl_cov" in case["function"]
    eps_low, eps_high = (torch.inf, torch.inf) if kl else (case["params"]["clip_low"], case["params"]["clip_high"])
    loss_BT = token_losses(inputs, terms, eps_low=eps_low, eps_high=eps_high, ratio_is_clipped=not kl)
    count_empty_rows = case["function"].startswith("prime.")
    loss = aggregate(loss_BT, mask_BT, "token-mean", count_empty_rows=count_empty_rows)
    (grad_BT,) = torch.autograd.grad(loss, inputs["log_prob"], retain_graph=True)
    check.close("loss", loss, want["loss"])
    check.close("grad_log_prob", grad_BT, want["grad_log_prob"])
    for mode, value in want.get("loss_other_aggregations", {}).items():
        check.close(mode, aggregate(loss_BT, mask_BT, mode, count_empty_rows=count_empty_rows), value)


def _check_metrics(check: Comparison, case: Case, metrics: dict[str, float]) -> None:
    """The published metrics ours have a counterpart of; `selected_fraction` is what they call pg_clipfrac."""
    counterpart = {
        "verl.kl_cov": {"actor/ppo_kl": "abs_log_ratio"},
        "prime.kl_cov": {"third_output": "abs_log_ratio"},
        "verl.clip_cov": {"actor/pg_clipfrac": "selected_fraction"},
        "prime.clip_cov": {"second_output": "selected_fraction"},
    }[case["function"]]
    for theirs, ours in counterpart.items():
        check.close(ours, metrics[ours], case["outputs"]["metrics"][theirs])


def _check_derived(check: Comparison, case: Case, controller: ClipCov | KLCov, inputs: dict[str, Tensor]) -> None:
    derived, rows, window = case["derived"], rows_of(inputs), _window(inputs)
    selection = controller.select(window)
    cov_BT = token_covariance(window.log_probs_BT, rows, rows.mask_BT, selection.stats)
    known_BT = torch.tensor([[c is not None for c in row] for row in derived["cov"]])
    want_BT = torch.tensor([[0.0 if c is None else c for c in row] for row in derived["cov"]], dtype=torch.float64)
    check.same("valid_tokens", int(selection.stats.n), derived["valid_tokens"])
    check.same("cov_positions", bool((known_BT == rows.mask_BT).all()), True)
    rtol, atol = FLOAT32_COV
    check.close("cov", cov_BT, want_BT, rtol=rtol, atol=atol)
    if "candidates" in derived and isinstance(controller, ClipCov):
        clipped_BT = ppo_clipped(
            window.log_probs_BT,
            window.old_log_probs_BT,
            rows.advantages_BT,
            rows.mask_BT,
            eps_low=controller.clip_low,
            eps_high=controller.clip_high,
        )
        candidate_BT = controller.candidates(rows, cov_BT, clipped_BT, selection.spread)
        check.same("candidates", _positions(candidate_BT), derived["candidates"])


def loss_case(case: Case, check: Comparison) -> str:
    inputs = tensors(case["inputs"])
    if case["function"] == "prime.ppo_clip":
        return _plain_case(case, check, inputs)
    controller = _controller(case, scope="micro_batch")
    terms = _apply(controller, inputs, None)
    chosen = _chosen(_controller(case, scope="micro_batch"), inputs, None)
    want = case["outputs"]["selected"]
    _check_derived(check, case, controller, inputs)
    _check_metrics(check, case, controller.summarise({k: float(v) for k, v in terms.sums.items()}))
    if case["deterministic_selection"]:
        check.same("selected", chosen, want)
        _check_loss(check, case, inputs, terms)
        return ""
    candidates = case["derived"]["candidates"]
    check.same("selected_count", len(chosen), min(case["derived"]["clip_num"], len(candidates)))
    check.same("selected_are_candidates", all(c in candidates for c in chosen), True)
    check.same("recorded_are_candidates", all(c in candidates for c in want), True)
    weight_BT = torch.ones_like(inputs["advantages"])
    for row, column in want:
        weight_BT[row, column] = 0.0
    _check_loss(check, case, inputs, LossTerms(weight_BT=weight_BT))
    return "random choice: size and membership of ours, loss and gradient of the recorded one"


def _plain_case(case: Case, check: Comparison, inputs: dict[str, Tensor]) -> str:
    _check_loss(check, case, inputs, LossTerms())
    p, mask_BT = case["params"], inputs["response_mask"].bool()
    clipped_BT = ppo_clipped(
        inputs["log_prob"],
        inputs["old_log_prob"],
        inputs["advantages"],
        mask_BT,
        eps_low=p["clip_low"],
        eps_high=p["clip_high"],
    )
    share = clipped_BT.sum() / mask_BT.sum().double()
    check.close("ppo_clipped", share, case["outputs"]["metrics"]["second_output"])
    return "no controller"


def partition_case(case: Case, check: Comparison) -> str:
    inputs = tensors(case["inputs"])
    size = len(inputs["log_prob"])
    whole = _controller(case, scope="exact")
    selection = whole.select(_window(inputs))
    for rows, want in case["selected_by_micro_batch_rows"].items():
        starts = range(0, size, int(rows))
        split = [c for i in starts for c in _chosen(whole, inputs, selection, i, i + int(rows))]
        check.same(f"selected_whole_in_slices_of_{rows}", split, case["selected_whole_batch"])
        if want is not None:
            slices = _controller(case, scope="micro_batch")
            alone = [c for i in starts for c in _chosen(slices, inputs, None, i, i + int(rows))]
            check.same(f"selected_per_slice_of_{rows}", alone, want)
    outputs = {"loss": case["loss_whole_batch"], "grad_log_prob": case["grad_whole_batch"]}
    _check_loss(check, {**case, "outputs": outputs}, inputs, _apply(whole, inputs, selection))
    return ""


def entropy_case(case: Case, check: Comparison) -> str:
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    mask_BT = torch.tensor(case["inputs"]["response_mask"]).bool()
    entropy_BT, want = entropy_from_logits(logits), case["outputs"]
    per_response_B = masked_mean(entropy_BT, mask_BT)
    check.close("token_entropy", entropy_BT, want["token_entropy"])
    check.close("per_response_mean", per_response_B, want["per_response_mean"])
    check.close("mean_of_response_means", per_response_B.mean(), want["mean_of_response_means"])
    check.close("token_mean", masked_token_mean(entropy_BT, mask_BT), want["token_mean"])
    return ""
