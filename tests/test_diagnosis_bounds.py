"""Bounds of what rewards, controllers, curricula are given: each number has one, is refused, or free for a reason."""

import dataclasses
import importlib
import math
import pkgutil
import re
from typing import Any

import entrl_rewards
import pytest
from entrl_rewards.hierarchical_entropy import HierarchicalEntropy
from entrl_rewards.hierarchical_options import HierarchicalExpert
from entrl_rewards.information_gain import InformationGain
from entrl_rewards.length import L1Max, SoftOverlong
from entrl_rewards.pear import Pear

import entrl.controllers
import entrl.curriculum
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.guard import Guard
from entrl.controllers.kl_cov import KLCov
from entrl.diagnosis.bounds import ARGUMENTS, STEPS, TOKENS, unusual_arguments

SIZES = {TOKENS: 4096, STEPS: 200}
LARGE = 1000  # times the default, or 1000 where that is 0 or null

INNER = {  # what recipes do not name
    "Calls", "Constants", "Count", "Facts", "Group", "LaserState", "LossSettings", "LossTerms", "LossView", "PassRates",
    "PearState", "Prompts", "RemoteState", "Rows", "Rules", "Standing", "State", "StepFeedback", "Terms", "Tried",
    "Window", "_Item", "HierarchicalOptions", "Asking", "EntropyChange", "Dialogue",
}  # fmt: skip
FREE = {
    "seed": "any number",
    "shuffle_seed": "any number",
    "timeout_s": "bounded beside it (BEYOND)",
    "max_length": "held against the limit of completions (values)",
    "floor": "of a spread (BEYOND), or of PEAR, where it is at most s",
    "max_cases": "more cases cost time and are no other task",
    "cache": "at most max_length",
    "partial_credit": "a switch",
    "topk_k": "what the engine was asked for; held against it",
    "exclude_ids": "token ids",
    "close_ids": "token ids",
    "length_scale": "a large one makes the term vanish, as its weight does",
    "max_answer_tokens": "a large one is off",
    "shift": "cancels within a group",
    "lowest": "the judge is told the scale",
    "highest": "the judge is told the scale, and values are brought to 0 to 1",
    "fraction": "a share; large ones are asked for by name (allow_large_fraction)",
    "upper": "a large one is off",
    "clip_low": "a large one is off",
    "clip_high": "a large one is off",
    "max_log_ratio": "a large one is off",
    "window_factor": "read below",
    "error_clip": "a large one is off",
    "minimum": "at most maximum",
    "collapse_share": "at most the band's lower edge",
    "k_p": "right answers to collect: time, and no other rule",
    "k_u": "right answers to collect: time, and no other rule",
    "max_trials": "time, and no other rule",
    "give_up": "a large one is off",
    "correct": "answers to collect: time, and no other rule",
    "pilot": "answers to collect: time, and no other rule",
    "per_round": "answers to collect: time, and no other rule",
    "benchmark": "scores, of which ranks are taken",
    "grid_step": "at most max_length",
}


def options() -> list[type]:
    packages = (entrl_rewards, entrl.controllers, entrl.curriculum)
    modules = [
        importlib.import_module(f"{p.__name__}.{m.name}") for p in packages for m in pkgutil.iter_modules(p.__path__)
    ]
    made = {
        c
        for module in modules
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__
    }
    return sorted(
        (c for c in made if dataclasses.is_dataclass(c) and c.__name__ not in INNER), key=lambda c: c.__name__
    )


def bounded(made: type) -> set[str]:
    return {name for one in made.__mro__ for name in ARGUMENTS.get(one.__name__, {})}


def refused(made: type, name: str, value: float) -> bool:
    """By the class, or by the one that it is read by."""
    extra: dict[str, Any] = {"controller": KLCov(), "knob": "coef"} if made is Guard else {}
    try:
        one: Any = made(**extra | {name: value})
        if made is HierarchicalExpert:
            HierarchicalEntropy(expert=one)
    except ValueError:
        return True
    return False


def numbers(made: type) -> list[dataclasses.Field]:
    plain = [f for f in dataclasses.fields(made) if f.init and not f.name.startswith("_")]
    return [f for f in plain if "bool" not in str(f.type) and any(word in str(f.type) for word in ("int", "float"))]


def large(field: dataclasses.Field) -> float:
    default = field.default
    if isinstance(default, int | float) and default:
        return default * LARGE
    return LARGE


def test_the_table_names_what_there_is():
    known = {made.__name__: {f.name for f in dataclasses.fields(made)} for made in options()}
    known |= {base.__name__: {f.name for f in dataclasses.fields(base)} for made in options() for base in made.__mro__
              if dataclasses.is_dataclass(base)}  # fmt: skip
    for name, usual in ARGUMENTS.items():
        assert set(usual) <= known[name], name


@pytest.mark.parametrize("made", options(), ids=lambda made: made.__name__)
def test_every_number_has_a_bound_or_is_refused_or_free(made: type):
    texts = ("correctness",)
    for field in numbers(made):
        if field.name in bounded(made) or field.name in FREE or field.name in texts:
            continue
        assert refused(made, field.name, large(field)), f"{made.__name__}.{field.name}"


@pytest.mark.parametrize("made", options(), ids=lambda made: made.__name__)
def test_defaults_are_within_their_bounds(made: type):
    if made is Guard:
        value: Any = Guard(controller=KLCov(), knob="coef")
    else:
        try:
            value = made()
        except TypeError:  # what cannot be left out
            return
    assert unusual_arguments(value, "args", "it", SIZES) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (KLCov(coef=1e6), r"args\.coef of it is 1e\+06: the paper has 1"),
        (Pear(alpha=100), r"args\.alpha of it is 100: it is 1; far above PEAR takes nothing"),
        (Pear(alpha=-1), r"args\.alpha of it is -1: .* below 0 it fines the entropy of answers"),
        (Pear(s=1000.0), r"args\.s of it is 1000"),
        (
            Pear(min_think_tokens=5000),
            r"args\.min_think_tokens of it is 5000 beside trainer.max_completion_length of 4,096",
        ),
        (L1Max(target=10**6), r"args\.target of it is 1e\+06 beside trainer.max_completion_length"),
        (L1Max(a=0.3), r"args\.a of it is 0.3"),
        (InformationGain(question_cost=200.0), r"args\.question_cost of it is 200"),
        (
            Guard(controller=KLCov(coef=1000.0), knob="coef", start_steps=20000),
            r"args\.controller\.args\.coef of it is 1000",
        ),
    ],
)
def test_senseless_magnitudes_are_named(value: Any, text: str):
    found = unusual_arguments(value, "args", "it", SIZES)
    assert any(re.match(text, one) for one in found), found


def test_ten_times_the_published_value_is_nobodys_business():
    values = (KLCov(coef=10.0), Pear(alpha=2.0, weight=5.0), L1Max(a=3e-3, target=1000), SoftOverlong())
    assert [unusual_arguments(value, "args", "it", SIZES) for value in values] == [[], [], [], []]


def test_infinite_is_off_and_unknown_sizes_are_not_held_against():
    assert unusual_arguments(CWGRPO(width=math.inf), "args", "it", SIZES) == []
    assert unusual_arguments(L1Max(target=10**6), "args", "it", {}) == []
    slow = Guard(controller=KLCov(), knob="coef", start_steps=10**6)
    assert len(unusual_arguments(slow, "args", "it", SIZES)) == 1
    assert unusual_arguments(slow, "args", "it", {TOKENS: 4096, STEPS: -1}) == []


def test_a_reward_of_the_users_has_no_bounds():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Pear:
        alpha: float = 1e6

    assert unusual_arguments(Pear(), "args", "it", SIZES) == []
