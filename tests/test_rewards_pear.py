"""entrl_rewards.pear: the paper's vectors, a slow twin, every option, guard and error, and the face TRL sees."""

import dataclasses
import json
import math
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from entrl_rewards import pear
from entrl_rewards.groups import group_mean, shuffle_within
from entrl_rewards.pear import Pear, phase_rewards, read_phases
from entrl_rewards.pear_options import PearExpert
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from entrl.maths.phases import ThinkTags

VECTORS = json.loads((Path(__file__).parent / "vectors" / "pear.json").read_text())
TOLERANCE = VECTORS["meta"]["tolerance"]
TAGS = ThinkTags(open_ids=(1,), close_ids=(2,))
NAN = float("nan")


EXPERT = {f.name for f in dataclasses.fields(PearExpert)}


def formula(rows, close_index, correct, *, tag=(2,), missing_close="paper", **options):
    """Phase means and rewards from what the vectors give: 1-based index of the tag's first token, None = no tag."""
    ids = [[5] * len(row) for row in rows]
    for row, k in zip(ids, close_index, strict=True):
        if k is not None:
            row[k - 1 : k - 1 + len(tag)] = tag
    entropies = [torch.tensor(row, dtype=torch.float64) for row in rows]
    tags = ThinkTags(open_ids=(1,), close_ids=tag)
    phases = read_phases(entropies, ids, tags, drop_last_unclosed=missing_close == "paper")
    paid = phase_rewards(phases.h_think, phases.h_answer, torch.tensor(correct), **options)
    return SimpleNamespace(**phases._asdict(), **paid._asdict())


def slow_pear(entropies, k, *, alpha, s, r_fmt, correct, floor=None):
    """The card's E6-E8 and edge-case rules, in Python floats; k counts from 1."""
    k = len(entropies) if k is None else k
    think, answer = entropies[: max(0, k - 1)], entropies[k:]
    h_think = sum(think) / len(think) if think else 0.0
    h_answer = sum(answer) / len(answer) if answer else 0.0
    if not correct:
        return r_fmt
    r = min(1.0, s - max(0.0, h_think - alpha * h_answer))
    return r if floor is None else max(r, floor)


def call(reward, rows, *, ok=None, mask=None, log=None, **signals):
    """`rows`: (ids, entropies) per completion; everything TRL passes, and a keyword nobody knows."""
    n = len(rows)
    return reward(
        prompts=["p"] * n,
        completions=["text"] * n,
        completion_ids=[ids for ids, _ in rows],
        token_entropies=[torch.tensor(h, dtype=torch.float32) for _, h in rows],
        token_mask=mask or [torch.ones(len(ids), dtype=torch.bool) for ids, _ in rows],
        think_tags=signals.pop("think_tags", TAGS),
        truncated=signals.pop("truncated", [False] * n),
        trainer_state=SimpleNamespace(global_step=signals.pop("step", 0)),
        log_metric=None if log is None else log.__setitem__,
        log_extra=lambda *a: None,
        ok=[1.0] * n if ok is None else ok,
        something_new=[0] * n,
        **signals,
    )


def make(**options):
    """Options by name, whichever of them are expert ones."""
    expert = {name: options.pop(name) for name in list(options) if name in EXPERT}
    return Pear(**{"correctness": "column:ok", **options}, expert=PearExpert(**expert))


# thinking .6 .4 (mean .5), tag, answer .1 .3 (mean .2): P = .3
ROW = ([5, 5, 2, 6, 6], [0.6, 0.4, 9.0, 0.1, 0.3])


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: c["name"])
def test_vectors(case):
    options = {k: case[k] for k in ("alpha", "s", "r_fmt", "floor")}
    found = formula([case["entropies"]], [case["close_index"]], [case["correct"]], **options)
    for name, value in case["expect"].items():
        assert abs(getattr(found, name).item() - value) <= TOLERANCE, name
    if "alt" in case:
        whole = formula([case["entropies"]], [None], [True], missing_close="all_tokens")
        assert abs(whole.h_think.item() - case["alt"]["h_think_all_tokens"]) <= TOLERANCE
        assert abs(whole.reward.item() - case["alt"]["reward_all_tokens"]) <= TOLERANCE


@pytest.mark.parametrize("group", VECTORS["groups"])
def test_vectors_through_the_face(group):
    tag, members = 2, group["members"]
    ids = [[tag if t + 1 == m["close_index"] else 5 for t in range(len(m["entropies"]))] for m in members]
    rows = list(zip(ids, [m["entropies"] for m in members], strict=True))
    reward = make(alpha=group["alpha"], s=group["s"], r_fmt=group["r_fmt"], floor=None)
    found = call(reward, rows, ok=[m["correct"] for m in members])
    assert found == pytest.approx(group["expect"]["reward"], abs=2e-6)  # token_entropies arrive in float32


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 100_000))
def test_matches_slow_twin(seed):
    rng = random.Random(seed)
    rows = [[rng.expovariate(2) for _ in range(rng.randint(0, 9))] for _ in range(6)]
    ks = [rng.choice([None, *range(1, len(r) + 1)]) for r in rows]
    correct = [rng.random() < 0.5 and bool(r) for r in rows]
    options = {"alpha": rng.uniform(-1, 2), "s": rng.uniform(0.5, 1), "r_fmt": rng.uniform(0, 0.4)}
    floor = rng.choice([None, options["r_fmt"]])
    found = formula(rows, ks, correct, floor=floor, **options).reward
    slow = [slow_pear(r, k, correct=c, floor=floor, **options) for r, k, c in zip(rows, ks, correct, strict=True)]
    assert found.tolist() == pytest.approx(slow, abs=1e-12)
    # the face reads the same from token ids
    faced = [[2 if t + 1 == k else 5 for t in range(len(r))] for r, k in zip(rows, ks, strict=True)]
    reward = make(**options, floor=floor)
    assert call(reward, list(zip(faced, rows, strict=True)), ok=correct) == pytest.approx(slow, abs=1e-5)


def test_reordering_rows_reorders_rewards_and_multi_token_tag():
    rows = [[0.5, 0.1, 0.2, 0.2], [0.1] * 4, [1.0, 2.0, 3.0, 0.0]]
    r = formula(rows, [2, 2, None], [True, False, True], tag=(2, 3))
    swapped = formula(rows[::-1], [None, 2, 2], [True, False, True], tag=(2, 3))
    assert torch.equal(r.reward.flip(0), swapped.reward)
    assert r.h_answer.tolist()[0] == pytest.approx(0.2)  # tokens 2 and 3 are the tag, 4 is the answer


def test_by_hand():
    log = {}
    assert call(make(), [ROW, ROW], ok=[1, 0], log=log) == pytest.approx([0.7, 0.0])  # 1 - (.5 - .2)
    expected = {
        "pear/correct": 0.5,
        "pear/unknown": 0.0,
        "pear/missing_close": 0.0,
        "pear/truncated": 0.0,
        "pear/think_share": 0.4,  # 2 of 5 tokens
        "pear/think_tokens": 2.0,
        "pear/answer_tokens": 2.0,
        "pear/tokens": 5.0,
        "pear/h_think": 0.5,
        "pear/h_answer": 0.2,
        "pear/h_all": 10.4 / 5,
        "pear/penalty": 0.3,
        "pear/penalty_zero": 0.0,
        "pear/floored": 0.0,
        "pear/refused": 0.0,
        "pear/alpha": 1.0,
    }
    assert log == pytest.approx(expected, abs=1e-6)


def test_correlation_of_length_and_penalty_among_the_paid_of_a_group():
    calm, more, most = [0.5, 0.5, 0.0, 0.2, 0.2], [0.9, 0.9, 0.9, 0.0, 0.2], [1.5] * 5 + [0.0, 0.2]
    log = {}
    rows = [calm, more, most, most, calm, most, calm, calm]
    faced = [[2 if h == 0.0 else 5 for h in row] for row in rows]
    groups, right = [0, 0, 0, 0, 1, 1, 2, 2], [1, 1, 1, 0, 1, 1, 1, 1]
    call(make(), list(zip(faced, rows, strict=True)), ok=right, log=log, group_index=groups)
    # group 0: the three right ones, lengths 5, 5, 7 and penalties rising; group 1 rises; group 2 has no spread
    slow = [spearmanr([5, 5, 7], [1, 2, 3]).statistic, 1.0]
    assert log["pear/length_correlation"] == pytest.approx(sum(slow) / 2)
    log.clear()
    call(make(), [ROW, ROW], log=log, group_index=[0, 0])
    assert "pear/length_correlation" not in log


@pytest.mark.parametrize(
    ("options", "row", "expected"),
    [
        ({}, ([5, 5, 5], [0.2, 0.4, 0.9]), 0.7),  # no tag: mean of the first two
        ({"missing_close": "all_tokens"}, ([5, 5, 5], [0.2, 0.4, 0.9]), 0.5),
        ({"missing_close": "format", "r_fmt": 0.1}, ([5, 5, 5], [0.2, 0.4, 0.9]), 0.1),
        ({"missing_close": "skip"}, ([5, 5, 5], [0.2, 0.4, 0.9]), 1.0),
        ({"missing_close": "format"}, ROW, 0.7),
        ({"which_close": "last"}, ([5, 2, 5, 2, 6], [0.3, 0.6, 0.0, 9, 0.0]), 0.7),  # (.3+.6+0)/3
        ({"floor": "r_fmt", "r_fmt": 0.1}, ([5, 2], [3.0, 0.0]), 0.1),
        ({"floor": None}, ([5, 2], [3.0, 0.0]), -2.0),
        ({"floor": 0.25}, ([5, 2], [3.0, 0.0]), 0.25),
        ({"min_think_tokens": 2}, ROW, 0.7),
        ({"min_think_tokens": 3}, ROW, 0.0),
        ({"weight": 0.5}, ROW, 0.85),
        ({"alpha": 0.0}, ROW, 0.5),
        ({"answer_baseline": "none"}, ROW, 0.5),
        ({"max_answer_tokens": 1}, ROW, 1 - (1.3 / 3 - 0.1)),  # the second answer token thinks: (.6+.4+.3)/3 - .1
        ({"length_weight": 0.2, "length_scale": 10}, ROW, 0.7 - 0.1),  # 5 tokens of 10
        ({"count_open": False}, ([1, 5, 2], [0.9, 0.4, 0.0]), 0.6),
        ({"exclude_ids": [7]}, ([5, 5, 2, 6, 7], [0.6, 0.4, 9.0, 0.1, 0.3]), 0.6),  # EOS 7 out: H_answer = .1
        ({"close_ids": [4]}, ([5, 5, 4, 6, 6], ROW[1]), 0.7),
        ({"s": 0.9}, ROW, 0.6),
        ({}, ([2, 6], [0.0, 0.5]), 1.0),  # closed at once: H_think = 0
        ({"r_fmt": 0.2}, ([], []), 0.2),  # empty: wrong, whatever the verifier says
    ],
)
def test_options_by_hand(options, row, expected):
    assert call(make(**options), [row]) == pytest.approx([expected], abs=1e-6)


def test_unknown_verdict_is_none():
    log = {}
    assert call(make(), [ROW, ROW], ok=[None, 1], log=log) == [None, pytest.approx(0.7)]
    assert (log["pear/unknown"], log["pear/correct"]) == (0.5, 1.0)


def test_metrics_without_anybody_are_absent():
    log = {}
    assert call(make(), [([], [])], ok=[None], log=log) == [None]
    assert {"pear/h_think", "pear/correct", "pear/penalty", "pear/think_share"}.isdisjoint(log)
    assert all(math.isfinite(v) for v in log.values())


def test_floored_refused_and_truncated_are_logged():
    log = {}
    rows = [([5, 2], [3.0, 0.0]), ([2, 6], [0.0, 0.1])]
    call(make(min_think_tokens=1), rows, log=log, truncated=[True, False])
    assert (log["pear/floored"], log["pear/refused"], log["pear/truncated"]) == (1.0, 0.5, 0.5)


def test_tool_tokens_are_in_no_phase():
    with_tool = ([5, 9, 5, 2, 6, 6], [0.6, NAN, 0.4, 9.0, 0.1, 0.3])
    mask = [torch.tensor([1, 0, 1, 1, 1, 1]).bool()]
    assert call(make(), [with_tool], mask=mask) == pytest.approx(call(make(), [ROW]), abs=1e-6)


def test_several_turns_are_pooled():
    # turn 1 thinks .6, answers .1; turn 2 thinks .2 .4, answers .5: H_think = 1.2/3, H_answer = .3
    ids, h = [5, 2, 6, 9, 5, 5, 2, 6], [0.6, 9, 0.1, 9, 0.2, 0.4, 9, 0.5]
    mask = [torch.tensor([1, 1, 1, 0, 1, 1, 1, 1]).bool()]
    assert call(make(), [(ids, h)], mask=mask) == pytest.approx([1 - (0.4 - 0.3)], abs=1e-6)


def test_unclosed_last_turn_gets_no_relief_from_earlier_answers():
    ids, h = [5, 2, 6, 9, 1, 5], [0.6, 9, 0.5, 9, 0.2, 0.9]
    mask = [torch.tensor([1, 1, 1, 0, 1, 1]).bool()]
    assert call(make(), [(ids, h)], mask=mask) == pytest.approx([1 - 0.4], abs=1e-6)  # (.6+.2)/2, last token dropped


def test_answer_baseline_group():
    # H_answer .2 and .4 in the group: both are measured against .3; the one without an answer against 0
    rows = [ROW, ([5, 5, 2, 6], [0.6, 0.4, 9.0, 0.4]), ([5, 5, 2], [0.6, 0.4, 9.0])]
    reward = make(answer_baseline="group")
    assert reward.needs_whole_groups
    assert "group_index" in reward.needs
    assert call(reward, rows, group_index=[7, 7, 7]) == pytest.approx([0.8, 0.8, 0.5], abs=1e-6)
    assert call(reward, rows, group_index=[0, 1, 1]) == pytest.approx([0.7, 0.9, 0.5], abs=1e-6)


def test_answer_baseline_ema():
    reward = make(answer_baseline="ema", ema_decay=0.5)
    hot = ([5, 5, 2, 6], [0.6, 0.4, 9.0, 0.4])
    assert call(reward, [ROW]) == pytest.approx([0.7], abs=1e-6)  # first batch: its own mean, .2
    assert call(reward, [hot]) == pytest.approx([0.7], abs=1e-6)  # still .2; then .5 * .2 + .5 * .4 = .3
    saved = reward.state_dict()
    assert saved == pytest.approx({"ema": 0.3}, abs=1e-6)
    assert call(reward, [hot], training=False) == pytest.approx([0.8], abs=1e-6)
    assert reward.state_dict() == saved  # evaluation does not move it
    resumed = make(answer_baseline="ema", ema_decay=0.5)
    resumed.load_state_dict(saved)
    assert call(resumed, [ROW]) == call(reward, [ROW])
    assert reward == resumed  # state is not an option


def test_ema_is_the_same_on_one_and_two_ranks():
    hot = ([5, 5, 2, 6], [0.6, 0.4, 9.0, 0.4])
    one = make(answer_baseline="ema")
    together = call(one, [ROW, hot])
    halves = []
    for row, other in ((ROW, 0.4), (hot, 0.2)):
        rank = make(answer_baseline="ema")
        halves += call(rank, [row], gather=lambda xs, other=other: [*xs, torch.tensor(other).item()])
        assert rank.state_dict() == pytest.approx(one.state_dict())
    assert halves == pytest.approx(together)


def test_gather_gets_one_float_per_completion():
    sent = []
    rows = [ROW, ([5, 2], [0.4, 0.0]), ([], [])]  # two of them have no answer: still the same length on every rank
    call(make(answer_baseline="ema"), rows, gather=lambda xs: sent.append(xs) or xs)
    assert [len(xs) for xs in sent] == [3]


def test_ema_without_any_answer():
    reward = make(answer_baseline="ema")
    assert call(reward, [([5, 2], [0.4, 0.0])]) == pytest.approx([0.6], abs=1e-6)
    assert reward.state_dict() == {}


def test_alpha_schedule():
    reward = make(alpha_start=3.0, alpha_steps=10)
    assert [reward.alpha_at(s) for s in (0, 5, 10, 99)] == [3.0, 2.0, 1.0, 1.0]
    assert call(reward, [ROW], step=0) == pytest.approx([1.0], abs=1e-6)  # .5 - 3 * .2 < 0
    assert call(reward, [ROW], step=10) == pytest.approx([0.7], abs=1e-6)


def test_difficulty_gate():
    reward = make(gate_solve_rate=0.6)
    found = call(reward, [ROW] * 4, ok=[1, 0, 1, 1], group_index=[0, 0, 1, 1])
    assert found == pytest.approx([1.0, 0.0, 0.7, 0.7], abs=1e-6)  # half solved: no penalty; all solved: penalty
    # an unknown verdict counts neither for nor against
    found = call(reward, [ROW] * 2, ok=[1, None], group_index=[0, 0])
    assert found == [pytest.approx(0.7, abs=1e-6), None]


def test_shuffled_control_keeps_the_rewards_and_cuts_the_link():
    rng = random.Random(0)
    rows = [([5, 2], [rng.random(), 0.0]) for _ in range(24)]
    groups, ok = [0] * 12 + [1] * 12, [float(i % 3 > 0) for i in range(24)]
    plain = call(make(), rows, ok=ok)
    control = make(shuffle_entropies_in_group=True)
    found = call(control, rows, ok=ok, group_index=groups)
    assert found != plain
    for g in (0, 12):
        assert sorted(found[g : g + 12]) == pytest.approx(sorted(plain[g : g + 12]), abs=1e-6)
    assert [r == 0 for r in found] == [not c for c in ok]  # correctness is not shuffled
    assert call(control, rows, ok=ok, group_index=groups) == found  # seeded
    assert call(control, rows, ok=ok, group_index=groups, step=1) != found
    assert call(make(shuffle_entropies_in_group=True, shuffle_seed=1), rows, ok=ok, group_index=groups) != found
    # a group's shuffle does not depend on what shares its batch
    alone = call(control, rows[12:], ok=ok[12:], group_index=groups[12:])
    assert alone == found[12:]


def test_group_mean_and_shuffle_by_hand():
    x = torch.tensor([1.0, 3.0, NAN, 5.0])
    groups, mask = torch.tensor([4, 4, 4, 9]), torch.tensor([True, True, False, False])
    assert group_mean(x, groups, mask).tolist() == [2.0, 2.0, 2.0, 0.0]
    source = shuffle_within(torch.tensor([[0], [1], [0], [1]]), seeds=(3,))
    assert sorted(source[[0, 2]].tolist()) == [0, 2]
    assert sorted(source[[1, 3]].tolist()) == [1, 3]


def test_sampled_source():
    ids, h = ROW
    reward = make(entropy_source="sampled")
    assert "token_logprobs" in reward.needs
    assert "token_entropies" not in reward.needs
    found = call(reward, [(ids, [0.0] * 5)], token_logprobs=[-torch.tensor(h)])
    assert found == pytest.approx([0.7], abs=1e-6)


def test_topk_source():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1], [1.0, 0.0]])  # entropies ln 2, 0, tag, 0
    reward = make(entropy_source="topk", vocab_size=10, topk_k=2)
    found = call(reward, [([5, 5, 2, 6], [0.0] * 4)], token_topk_logprobs=[p.log()])
    assert found == pytest.approx([1 - math.log(2) / 2], abs=1e-6)
    assert call(reward, [([], [])], token_topk_logprobs=[torch.zeros(0, 2)]) == [0.0]
    assert "token_entropies" not in reward.needs


def test_correctness_as_callable_and_by_name():
    def verifier(*, completions, ok, **_):
        return [1.0 if o else 0.0 for o in ok]

    assert call(make(correctness=verifier), [ROW]) == pytest.approx([0.7], abs=1e-6)
    with pytest.raises(ValueError, match=r"'nowhere\.module:x' cannot be loaded"):
        call(make(correctness="nowhere.module:x"), [ROW])
    with pytest.raises(TypeError, match="not a ready reward function"):
        call(make(correctness="entrl_rewards.pear:Pear"), [ROW])


def test_accuracy_is_the_default_verifier():
    common = {"answer": ["12", "12"], "verifier": [{"kind": "exact"}] * 2}
    rows = [ROW, ROW]
    found = Pear()(
        prompts=["p"] * 2,
        completions=["5+7</think>12", "5+7</think>13"],
        completion_ids=[r[0] for r in rows],
        token_entropies=[torch.tensor(r[1]) for r in rows],
        think_tags=TAGS,
        **common,
    )
    assert found == pytest.approx([0.7, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("signals", "error", "message"),
    [
        (
            {"token_entropies": None},
            TypeError,
            "token_entropies, which stock TRL does not pass; use EntropyGRPOTrainer",
        ),
        ({"think_tags": None}, TypeError, "pear got no think_tags; use EntropyGRPOTrainer"),
        ({"token_entropies": [torch.zeros(3)]}, ValueError, "row 0 has 3 values for 5 tokens"),
        ({"token_entropies": [torch.full((5,), NAN)]}, ValueError, r"rows \[0\] are not finite"),
        ({"ok": [0.5]}, ValueError, "answered 0.5; it must be 1, 0 or None"),
        ({"ok": [1, 1]}, ValueError, "gave 2 verdicts for 1 completions"),
    ],
)
def test_bad_signals(signals, error, message):
    everything = {
        "prompts": ["p"],
        "completions": ["c"],
        "completion_ids": [ROW[0]],
        "token_entropies": [torch.tensor(ROW[1])],
        "think_tags": TAGS,
        "ok": [1],
    }
    with pytest.raises(error, match=message):
        make()(**(everything | signals))


def test_missing_column_and_group_index_and_topk():
    with pytest.raises(ValueError, match="names column 'gold', which the dataset lacks"):
        call(make(correctness="column:gold"), [ROW])
    with pytest.raises(TypeError, match=r"use EntropyGRPOTrainer \(group_index\)"):
        call(make(answer_baseline="group"), [ROW])
    with pytest.raises(TypeError, match="no trainer here delivers by itself"):
        call(make(entropy_source="topk", vocab_size=10), [ROW])
    with pytest.raises(TypeError, match="needs token_logprobs"):
        call(make(entropy_source="sampled"), [ROW])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing_close": "drop"}, "missing_close must be one of paper, all_tokens, format, skip, got 'drop'"),
        ({"which_close": "middle"}, "which_close must be first or last, got 'middle'"),
        ({"entropy_source": "guess"}, "entropy_source must be one of"),
        ({"answer_baseline": "mean"}, "answer_baseline must be one of"),
        ({"topk_estimate": "best"}, "topk_estimate must be one of"),
        ({"s": 0.0}, "s must be > 0"),
        ({"r_fmt": 1.0}, r"r_fmt must be in \[0, 1\), got 1.0"),
        ({"s": 0.2, "r_fmt": 0.2}, "s must be above r_fmt"),
        ({"weight": -1.0}, "weight must be >= 0"),
        ({"length_weight": -1.0}, "length_weight must be >= 0"),
        ({"length_scale": 0}, "length_scale must be >= 1"),
        ({"min_think_tokens": -1}, "min_think_tokens must be >= 0"),
        ({"max_answer_tokens": 0}, "max_answer_tokens must be >= 1"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"gate_solve_rate": 1.5}, "gate_solve_rate must be in"),
        ({"close_ids": []}, "close_ids must be one token id or more"),
        ({"topk_k": 0}, "topk_k must be >= 1"),
        ({"floor": "zero"}, "floor must be a number, 'r_fmt' or null, got 'zero'"),
        ({"floor": 2.0}, "floor must be at most s=1.0"),
        ({"alpha_start": 3.0}, "alpha_start and alpha_steps > 0 go together"),
        ({"alpha_steps": 5}, "alpha_start and alpha_steps > 0 go together"),
        ({"entropy_source": "topk"}, "needs vocab_size"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_face():
    ready = pear.reward
    assert (ready.__name__, type(ready)) == ("pear", Pear)
    assert pickle.loads(pickle.dumps(ready)) == ready
    assert not ready.needs_whole_groups
    told = {"token_entropies", "token_mask", "think_tags", "prompt_ids", "truncated", "group_index"}
    assert set(ready.needs) == told
    found = call(make(), [ROW, ROW], ok=[1, 0])
    assert [type(r) for r in found] == [float, float]
    with pytest.raises(TypeError, match="alhpa"):
        Pear(alhpa=1.0)  # type: ignore[call-arg]
