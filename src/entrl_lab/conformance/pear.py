"""PEAR: rewards, tag search and group advantages, against numbers computed from the paper's equations."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from entrl.maths.phases import ThinkTags, locate_close
from entrl_lab.conformance.comparison import Case, Comparison

PEAR_FUNCTIONS = "entrl_rewards.pear"  # by name, because the library does not depend on the rewards
WORD, TAG = 0, 1
TAGS = ThinkTags(open_ids=(-1,), close_ids=(TAG,))


def _phases(members: Sequence[Case]) -> Any:
    """Phase means of members whose tag is their token number `close_index`, counted from 1."""
    rows = [torch.tensor(m["entropies"], dtype=torch.float64) for m in members]
    ids = [[TAG if t + 1 == m["close_index"] else WORD for t in range(len(m["entropies"]))] for m in members]
    return importlib.import_module(PEAR_FUNCTIONS).read_phases(rows, ids, TAGS)


def _paid(phases: Any, members: Sequence[Case], options: Case, *, floor: float | None, weight: float = 1.0) -> Any:
    numbers = {name: options[name] for name in ("alpha", "s", "r_fmt")}
    return importlib.import_module(PEAR_FUNCTIONS).phase_rewards(
        phases.h_think,
        phases.h_answer,
        torch.tensor([m["correct"] for m in members]),
        **numbers,
        floor=floor,
        weight=weight,
    )


def pear_case(case: Case, check: Comparison) -> str:
    phases = _phases([case])
    got = {**phases._asdict(), **_paid(phases, [case], case, floor=case["floor"])._asdict()}
    for name, want in case["expect"].items():
        check.close(name, got[name][0], want)
    return ""


def locate_case(case: Case, check: Comparison) -> str:
    want = case["expect"]
    for which in ("first", "last"):
        index = locate_close(case["ids"], case["tag_ids"], which=which)
        check.same(which, None if index is None else index + 1, want[which])  # the file counts from 1
    check.same("span_len", len(case["tag_ids"]), want["span_len"])
    return ""


def group_case(case: Case, check: Comparison) -> str:
    phases = _phases(case["members"])
    got = _paid(phases, case["members"], case, floor=None)
    tenfold_B = _paid(phases, case["members"], case, floor=None, weight=10.0).reward
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
