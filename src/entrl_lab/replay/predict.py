"""First-order entropy effect of a controller setting on a logged window, from log-probs alone.

    g_i = -d loss / d log pi(y_i)                 of the loss as the trainer computes it, controllers included
    natural            -lr sum_i g_i (log pi_i + H_i)                  Theorem 2, state-centred
    policy_gradient    -lr sum_i g_i pi_i (log pi_i + H_i)             Theorem 1, the sampled token's own part
    pooled             -lr sum_i (g_i - mean g)(log pi_i - mean log pi)     Eq. 10's covariance, over all tokens at once

The tokens are the window's loss tokens. A value's sign and its size relative to another setting's mean something; its
unit does not (nats per unit of a step size that a shared network does not have) until `calibrate` gives it one.
A prediction is of this gradient alone. Under an optimiser with momentum most of one step belongs to earlier gradients,
which every setting shares, so measured single steps differ by less than predictions do; their order is the claim.

Source:  arXiv 2505.22617, Theorems 1 and 2, Eq. 10; `entrl.controllers.monitor.first_order_change`
Differs: the paper speaks of A, the derivative of the unclipped loss at ratio 1; g is that of the loss in use
Needs:   a window of one rank (`entrl.trainers.grpo.window_log.joined`); no model
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entrl.controllers.hooks import Controller
from entrl.controllers.monitor import first_order_change
from entrl.trainers.grpo.window_log import LoggedWindow
from entrl_lab.estimators import ESTIMATORS, Estimator
from entrl_lab.replay.settings import Setting
from entrl_lab.replay.window_loss import check_window, window_loss

SAME_GAIN = 1e-6  # of the largest plain gain: gradients closer than this are the same up to float32 in the weights


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One setting on one window.

    change: estimator -> first-order change, arbitrary unit (see the module); negative = entropy falls
    changed: tokens whose gradient differs from the plain loss's; changed_negative: of them, those with A < 0
    selected: tokens the controllers say they selected; None where they select none (smooth weights)
    tokens: loss tokens of the window
    """

    step: int
    setting: str
    fresh: bool
    change: dict[Estimator, float]
    changed: int
    changed_negative: int
    selected: int | None
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Gain:
    gain_BT: Tensor  # float64, 0 where masked
    sums: dict[str, float]


def token_gain(window: LoggedWindow, controllers: Sequence[Controller]) -> Gain:
    """-d loss / d log pi of every token, with the loss's own divisor in it."""
    log_probs_BT = torch.where(window.rows.mask_BT, window.log_probs_BT.double(), 0.0).requires_grad_(True)
    found = window_loss(window, controllers, log_probs_BT)
    (slope_BT,) = torch.autograd.grad(found.loss, log_probs_BT)
    return Gain(gain_BT=torch.where(window.rows.mask_BT, -slope_BT, 0.0), sums=found.sums)


def pooled_change(gain_BT: Tensor, log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Scalar -sum (g - mean g)(log pi - mean log pi) over the masked tokens, nats per unit of the step size."""
    gain_N, log_p_N = gain_BT[mask_BT].double(), log_probs_BT[mask_BT].double()
    return -((gain_N - gain_N.mean()) * (log_p_N - log_p_N.mean())).sum()


def predicted_changes(window: LoggedWindow, gain_BT: Tensor) -> dict[Estimator, float]:
    """Every estimator's sum over the window, times its learning rate."""
    mask_BT, log_p_BT, entropy_BT = window.rows.mask_BT, window.log_probs_BT.double(), window.entropies_BT.double()
    sums = {
        "natural": first_order_change(gain_BT, log_p_BT, entropy_BT, mask_BT, theorem=2).sum(),
        "policy_gradient": first_order_change(gain_BT, log_p_BT, entropy_BT, mask_BT, theorem=1).sum(),
        "pooled": pooled_change(gain_BT, log_p_BT, mask_BT),
    }
    return {name: window.options.learning_rate * float(sums[name]) for name in ESTIMATORS}


def predict(window: LoggedWindow, settings: Sequence[Setting]) -> list[Prediction]:
    """Every setting on one window. ValueError where the window or a controller does not allow it."""
    check_window(window)
    plain_BT = token_gain(window, []).gain_BT
    return [_predict_one(window, setting, plain_BT) for setting in settings]


def _predict_one(window: LoggedWindow, setting: Setting, plain_BT: Tensor) -> Prediction:
    check_window(window, setting.controllers)
    found = token_gain(window, setting.fresh_controllers())
    differs_BT = (found.gain_BT - plain_BT).abs() > SAME_GAIN * plain_BT.abs().max()
    reported = [v for k, v in found.sums.items() if k.endswith("/selected")]
    return Prediction(
        step=window.step,
        setting=setting.label,
        fresh=window.options.fresh,
        change=predicted_changes(window, found.gain_BT),
        changed=int(differs_BT.sum()),
        changed_negative=int((differs_BT & (window.rows.advantages_BT < 0)).sum()),
        selected=int(sum(reported)) if reported else None,
        tokens=int(window.rows.mask_BT.sum()),
    )
