"""ARES: the KL and its controllers, the policy loss, group advantages, against the authors' functions and the paper.

The controllers' rules are those of `entrl.controllers.dynamic_kl`; losses that only the published loop has are in
`entrl_lab.conformance.published_ares`.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from entrl.controllers.dynamic_kl import KLState, kappa_step, kl_beta_step, token_factors
from entrl.maths.difficulty import BUCKETS
from entrl.maths.signals import masked_mean
from entrl_lab.conformance import published_ares
from entrl_lab.conformance.ares import in_order
from entrl_lab.conformance.comparison import Case, Comparison

PUBLISHED_TARGET, PUBLISHED_INTERVAL = 0.01, 100  # nats; micro-batches between two moves of a beta
KL_PARAMETERS = {  # ours: the file's
    "decay": "ema_decay",
    "log_rate": "log_lr",
    "error_clip": "err_clip",
    "dead_zone": "deadzone",
    "minimum": "beta_min",
    "maximum": "beta_max",
}


def kl_beta_case(case: Case, check: Comparison) -> str:
    """One controller's calls in a row: each is a micro-batch, and every `update_interval`-th may move the betas."""
    return _constant_kl(case, check) if case.get("defaults") else _called(case, check)


def _called(case: Case, check: Comparison) -> str:
    p = case["params"]
    targets = dict(zip(BUCKETS, p["targets"], strict=True))
    states = {level: KLState(multiplier=p["beta_init"]) for level in BUCKETS}
    rule = {ours: p[theirs] for ours, theirs in KL_PARAMETERS.items()}
    for i, call in enumerate(case["calls"]):
        for level in BUCKETS:
            rows = zip(call["difficulty"], call["seq_mean_kl"], strict=True)
            mine = [kl for difficulty, kl in rows if difficulty == level]
            move = (i + 1) % p["update_interval"] == 0
            if mine:
                states[level] = kl_beta_step(states[level], fmean(mine), target=targets[level], move=move, **rule)
        got = {level: state.kl for level, state in states.items()}
        seen = [level for level in BUCKETS if got[level] is not None]
        check.same(f"seen [{i}]", seen, [level for level in BUCKETS if call["kl_ema_after"][level] is not None])
        check.close(f"kl_ema [{i}]", [got[d] for d in seen], [call["kl_ema_after"][d] for d in seen])
        for name, field in (("e_ema", "error"), ("beta", "multiplier")):
            ours = {level: getattr(state, field) for level, state in states.items()}
            check.close(f"{name} [{i}]", in_order(ours), in_order(call[f"{name}_after"]))
    return f"{len(case['calls'])} micro-batches in a row"


def _constant_kl(case: Case, check: Comparison) -> str:
    """Our defaults are the published ones; the target is 0.01 for every difficulty there."""
    states = dict.fromkeys(BUCKETS, KLState())
    points = {point["after_calls"]: point["beta"] for point in case["trace"]}
    for call in range(1, max(points) + 1):
        for level, kl in case["constant_kl"].items():
            move = call % PUBLISHED_INTERVAL == 0
            states[level] = kl_beta_step(states[level], kl, target=PUBLISHED_TARGET, move=move)
        if call in points:
            betas = {level: state.multiplier for level, state in states.items()}
            check.close(f"beta after {call}", in_order(betas), in_order(points[call]))
    return f"{max(points)} micro-batches in a row"


def _batch(case: Case, names: Sequence[str]) -> tuple[list[Tensor], Tensor]:
    """Float32, in which the official functions ran."""
    return [torch.tensor(case[name], dtype=torch.float32) for name in names], torch.tensor(case["mask"]).bool()


def kl_loss_case(case: Case, check: Comparison) -> str:
    (log_p_BT, ref_BT), mask_BT = _batch(case, ("logp", "ref_logp"))
    k3_BT, want = published_ares.token_kl(log_p_BT, ref_BT), case["expect"]
    beta_B = torch.tensor([case["beta"][level] for level in case["difficulty"]])
    check.close("k3", k3_BT, want["k3"])
    check.close("seq_mean_kl", masked_mean(k3_BT, mask_BT), want["seq_mean_kl"])
    weighted_BT = beta_B[:, None] * k3_BT
    by_token = published_ares.average(weighted_BT, mask_BT, over="tokens")
    by_sequence = published_ares.average(weighted_BT, mask_BT, over="sequences")
    check.close("kl_loss_token_mean", by_token, want["kl_loss_token_mean"])
    check.close("kl_loss_seq_mean", by_sequence, want["kl_loss_seq_mean"])
    return ""


def policy_loss_case(case: Case, check: Comparison) -> str:
    (old_BT, log_p_BT, advantage_B), mask_BT = _batch(case, ("old_logp", "logp", "advantage"))
    clip = {name: case[name] for name in ("clip_low", "clip_high", "clip_dual")}
    got = published_ares.policy_loss(log_p_BT, old_BT, advantage_B, mask_BT, **clip)
    by_sequence = published_ares.policy_loss(log_p_BT, old_BT, advantage_B, mask_BT, **clip, over="sequences")
    computed = {
        "loss_token": got.loss,
        "loss_seq": by_sequence.loss,
        "ppo_kl": got.kl,
        "entropy_loss": by_sequence.surprisal,  # the file has it from the second of the two calls
        "pg_clipfrac_higher": got.clipped_high,
        "pg_clipfrac_lower": got.clipped_low,
    }
    for name, want in case["expect"].items():
        check.close(name, computed[name], want)
    return ""


def advantage_case(case: Case, check: Comparison) -> str:
    got = published_ares.group_advantages(case["scores"], case["group"], eps=case["eps"])
    check.close("advantage", got, case["expect"]["advantage"])
    return ""


def filter_case(case: Case, check: Comparison) -> str:
    got = published_ares.kept_groups(case["groups"], low=case["low"], high=case["high"])
    check.same("kept", got, case["expect"]["kept"])
    return ""


def paper_kappa_case(case: Case, check: Comparison) -> str:
    got = kappa_step(
        case["kappa"],
        case["kl_ctrl"],
        target=case["delta"],
        rate=case["alpha_kappa"],
        minimum=case["kappa_min"],
        maximum=case["kappa_max"],
    )
    check.close("kappa_next", got, case["expect"]["kappa_next"])
    return ""


def paper_beta_case(case: Case, check: Comparison) -> str:
    beta_1 = torch.tensor([case["beta_d"]], dtype=torch.float64)
    in_window_1T = torch.tensor([case["in_window"]]).bool()
    check.close("beta", token_factors(beta_1, in_window_1T, case["rho"])[0], case["expect"]["beta"])
    return ""
