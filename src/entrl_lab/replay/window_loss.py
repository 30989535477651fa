"""The loss of one logged window under any controllers, as the trainer computes it.

    loss = sum over micro-batches of  aggregate(-min(r A w, clip(r) A w) u) + aggregate(penalty u)

w is the controllers' weight, u what TRL multiplies the policy term with after the ratio, aggregate the reduction of the
loss type (`entrl.trainers.shared.loss`). The hooks are called as the trainer calls them: `select` once over the window,
then `on_loss` per micro-batch. Prediction differentiates this loss with respect to logged log-probs, a real step with
respect to parameters; it is the same function, so the two differ in nothing else.

Source:  TRL 1.16 `GRPOTrainer._compute_loss` for the policy term
Differs: no reference KL, no entropy bonus and no MoE term: `unmodelled` names what a recipe has of these
Needs:   a window of one rank (`entrl.trainers.grpo.window_log.joined`)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from entrl.controllers.hooks import TOKEN_RATIO_LOSSES, Controller, Rows
from entrl.trainers.grpo.window_log import LoggedWindow


@dataclass(frozen=True, kw_only=True)
class WindowLoss:
    """loss: scalar, with the graph of the log-probs; sums: what the controllers reported, over the window."""

    loss: Tensor
    sums: dict[str, float] = field(default_factory=dict)


def select(window: LoggedWindow, controllers: Sequence[Controller]) -> list[Any]:
    """Every controller's selection over the whole window; None under scope `micro_batch` or without one."""
    return [c.select(window.window(scope=c.scope)) if c.scope in ("step", "exact") else None for c in controllers]


def micro_batches(window: LoggedWindow) -> list[slice]:
    """The rows of each micro-batch, in order."""
    rows, parts = len(window.log_probs_BT), window.options.accumulation
    if rows % parts:
        raise ValueError(
            f"step {window.step} logged {rows} rows for {parts} micro-batches, which is no whole number of rows each; "
            "the file was put together from different runs"
        )
    size = rows // parts
    return [slice(i, i + size) for i in range(0, rows, size)]


def part_of(rows: Rows, part: slice) -> Rows:
    return Rows(
        advantages_BT=rows.advantages_BT[part],
        mask_BT=rows.mask_BT[part],
        row_id_B=rows.row_id_B[part],
        informative_B=rows.informative_B[part],
    )


def micro_batch_loss(
    window: LoggedWindow,
    controllers: Sequence[Controller],
    selections: Sequence[Any],
    part: slice,
    *,
    log_probs_BT: Tensor,
    entropies_BT: Tensor,
) -> WindowLoss:
    """One micro-batch's share of the window's loss; tensors are of its rows alone.

    log_probs_BT: with graph, under the policy before the step; entropies_BT: of the same pass.
    """
    from entrl.trainers.shared.loss import LossPass, aggregate  # brings TRL with it, which takes seconds

    options, dtype = window.options, log_probs_BT.dtype
    rows = part_of(window.rows, part)
    weight_BT = None if window.policy_weight_BT is None else window.policy_weight_BT[part].to(dtype)
    eps_low, eps_high = ratio_range(window, controllers)
    current = LossPass(
        rows=rows,
        old_log_probs_BT=window.old_log_probs_BT[part].to(dtype),
        ref_log_probs_BT=None,
        controllers=controllers,
        selections=selections,
        eps_low=eps_low,
        eps_high=eps_high,
        fresh=options.fresh,
        policy_weight_BT=weight_BT,
    )
    token_weight_BT = current.run(log_probs_BT, entropies_BT)
    advantages_BT = rows.advantages_BT.to(dtype)
    if token_weight_BT is not None:
        advantages_BT = advantages_BT * token_weight_BT
    per_token_BT = policy_term(
        log_probs_BT,
        window.old_log_probs_BT[part].to(dtype),
        advantages_BT,
        rows.mask_BT,
        eps_low=eps_low,
        eps_high=eps_high,
    )
    if weight_BT is not None:
        per_token_BT = per_token_BT * torch.where(rows.mask_BT, weight_BT, 0.0)
    total = torch.zeros((), dtype=dtype, device=log_probs_BT.device)
    for term_BT in (per_token_BT, current.weighted_penalty()):
        if term_BT is not None:
            total = total + aggregate(
                term_BT,
                rows.mask_BT,
                loss_type=options.loss_type,
                accumulation=options.accumulation,
                steps_per_generation=options.steps_per_generation,
                world_size=1,
                max_completion_length=options.max_completion_length,
                num_items=torch.tensor(float(options.num_items)),
            )
    return WindowLoss(loss=total, sums={k: float(v) for k, v in current.sums.items()})


def policy_term(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    eps_low: float,
    eps_high: float,
) -> Tensor:
    """(B, T) -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), 0 where masked; infinite eps is no clip."""
    x_BT = torch.where(mask_BT, log_probs_BT, 0.0) - torch.where(mask_BT, old_log_probs_BT, 0.0)
    ratio_BT = x_BT.exp()
    clipped_BT = ratio_BT.clamp(1 - eps_low, 1 + eps_high)
    gain_BT = torch.where(mask_BT, advantages_BT, 0.0)
    return -torch.min(ratio_BT * gain_BT, clipped_BT * gain_BT)


def ratio_range(window: LoggedWindow, controllers: Sequence[Controller]) -> tuple[float, float]:
    """(eps_low, eps_high): the controllers' own where one asks for it, otherwise the trainer's."""
    for controller in controllers:
        if controller.clip_range is not None:
            return controller.clip_range
    return window.options.eps_low, window.options.eps_high


def window_loss(window: LoggedWindow, controllers: Sequence[Controller], log_probs_BT: Tensor) -> WindowLoss:
    """The whole window's loss as a function of its log-probs, entropies as logged."""
    selections = select(window, controllers)
    total, sums = torch.zeros((), dtype=log_probs_BT.dtype), {}
    for part in micro_batches(window):
        found = micro_batch_loss(
            window,
            controllers,
            selections,
            part,
            log_probs_BT=log_probs_BT[part],
            entropies_BT=window.entropies_BT[part],
        )
        total = total + found.loss
        sums = {k: sums.get(k, 0.0) + v for k, v in found.sums.items()}
    return WindowLoss(loss=total, sums=sums)


def check_window(window: LoggedWindow, controllers: Sequence[Controller] = ()) -> None:
    """ValueError for what would make a replay of this window mean nothing."""
    mask_BT, kind = window.rows.mask_BT, window.options.loss_type
    if kind not in TOKEN_RATIO_LOSSES:
        raise ValueError(
            f"step {window.step} was trained with loss_type={kind!r}, which has no ratio per token to differentiate; "
            f"log windows of a run with one of {', '.join(sorted(TOKEN_RATIO_LOSSES))}"
        )
    for controller in controllers:
        if kind not in controller.supported_losses:
            raise ValueError(
                f"{controller.name} is not defined for loss_type={kind!r} of step {window.step}; "
                f"it takes {', '.join(sorted(controller.supported_losses))}"
            )
    if not bool(mask_BT.any()):
        raise ValueError(f"step {window.step} logged no loss token (every row is masked); leave it out with --steps")
    scored = {
        "log_probs_BT": window.log_probs_BT,
        "old_log_probs_BT": window.old_log_probs_BT,
        "entropies_BT": window.entropies_BT,
        "advantages_BT": window.rows.advantages_BT,
    }
    for name, values_BT in scored.items():
        bad = int((~values_BT[mask_BT].isfinite()).sum())
        if bad:
            raise ValueError(
                f"step {window.step} has {bad} of {int(mask_BT.sum())} loss tokens with NaN or infinite {name}; the "
                "run had diverged there, so leave the step out with --steps"
            )
    if not window.options.temperature > 0:
        raise ValueError(f"step {window.step} was sampled at temperature {window.options.temperature}; it must be > 0")


def unmodelled(args: Any, windows: Sequence[LoggedWindow]) -> list[str]:
    """What these training arguments switch on in TRL's loss and a replay of these windows leaves out."""
    unweighted = any(w.policy_weight_BT is None for w in windows)
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    found = {
        f"beta={args.beta} (the KL to the reference)": args.beta != 0.0,
        f"entropy_coef={args.entropy_coef} (the entropy bonus)": args.entropy_coef != 0.0 or args.use_adaptive_entropy,
        f"delta={args.delta} (the two-sided clip)": args.delta is not None,
        f"importance_sampling_level={args.importance_sampling_level}": args.importance_sampling_level != "token",
        f"top_entropy_quantile={args.top_entropy_quantile}": args.top_entropy_quantile < 1.0 and unweighted,
        f"off_policy_mask_threshold={args.off_policy_mask_threshold}": args.off_policy_mask_threshold is not None
        and unweighted,
        "vLLM's importance-sampling weights": corrected and unweighted,
    }
    return [what for what, on in found.items() if on]
