"""PEAR: rewards, tag search and group advantages, against numbers computed from the paper's equations."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from entrl.maths.phases import locate_close
from entrl.maths.signals import pad_rows
from entrl_lab.conformance.comparison import Case, Comparison

PEAR_FUNCTIONS = "entrl_rewards.pear"  # by name, because the library does not depend on the rewards


def _phase_rewards(members: Sequence[Case], options: Case, *, floor: float | None) -> Any:
    pear = importlib.import_module(PEAR_FUNCTIONS)
    entropy_BT, mask_BT = pad_rows([torch.tensor(m["entropies"], dtype=torch.float64) for m in members])
    return pear.phase_rewards(
        entropy_BT,
        mask_BT,
        close_index=[m["close_index"] for m in members],
        correct_B=torch.tensor([m["correct"] for m in members]),
        alpha=options["alpha"],
        s=options["s"],
        r_fmt=options["r_fmt"],
        floor=floor,
    )


def pear_case(case: Case, check: Comparison) -> str:
    got = _phase_rewards([case], case, floor=case["floor"])
    for name, want in case["expect"].items():
        check.close(name, getattr(got, name)[0], want)
    return ""


def locate_case(case: Case, check: Comparison) -> str:
    want = case["expect"]
    for which in ("first", "last"):
        index = locate_close(case["ids"], case["tag_ids"], which=which)
        check.same(which, None if index is None else index + 1, want[which])  # the file counts from 1
    check.same("span_len", len(case["tag_ids"]), want["span_len"])
    return ""


def group_case(case: Case, check: Comparison) -> str:
    pear = importlib.import_module(PEAR_FUNCTIONS)
    got = _phase_rewards(case["members"], case, floor=None)
    correct_B = torch.tensor([m["correct"] for m in case["members"]])
    tenfold_B = pear.gated_reward(10 * got.penalty, correct_B, s=case["s"], r_fmt=case["r_fmt"], floor=None)
    centred_B, std = got.reward - got.reward.mean(), got.reward.std()
    computed = {
        "reward": got.reward,
        "advantage_mean_only": centred_B,
        "advantage_eps1e6": centred_B / (std + 1e-6),
        "advantage_eps1e4": centred_B / (std + 1e-4),
        "advantage_eps1e6_penalty_x10": (tenfold_B - tenfold_B.mean()) / (tenfold_B.std() + 1e-6),
    }
    for name, want in case["expect"].items():
        check.close(name, computed[name], want)
    return ""
