"""entrl_rewards.hierarchical_entropy: the authors' numbers, order, a slow twin, ranks, resume, the face TRL sees."""

import dataclasses
import json
import math
import pickle
import random
import statistics
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from entrl_rewards import hierarchical_entropy
from entrl_rewards.hierarchical_entropy import HierarchicalEntropy
from entrl_rewards.hierarchical_formulas import entropy_term, ordered
from entrl_rewards.hierarchical_options import HierarchicalExpert
from entrl_rewards.hierarchical_state import inversions
from hypothesis import given, settings
from hypothesis import strategies as st

from entrl.maths.difficulty import BUCKETS, bucket_of

VECTORS = json.loads((Path(__file__).parent / "vectors" / "ares.json").read_text())
EASY, MEDIUM, HARD = range(3)
EXPERT = {f.name for f in dataclasses.fields(HierarchicalExpert)}


def make(**options):
    """Options by name, whichever of them are expert ones."""
    expert = {name: options.pop(name) for name in list(options) if name in EXPERT}
    return HierarchicalEntropy(**{"correctness": "column:ok", **options}, expert=HierarchicalExpert(**expert))


def row_with(count):
    """Entropies with exactly `count` windows of one token at or above 0.5 nats: window=1, threshold=0.5."""
    return [0.0, *([1.0] * count), 0.25]


COUNTED = {"window": 1, "threshold": 0.5}


def call(reward, rows, *, ok, groups=None, log=None, step=0, mask=None, ids=None, **signals):
    """rows: entropies per completion; everything the trainer passes, and a keyword nobody knows."""
    n = len(rows)
    return reward(
        prompts=["p"] * n,
        completions=["text"] * n,
        completion_ids=ids or [[7] * len(row) for row in rows],
        token_entropies=[torch.tensor(row, dtype=torch.float32) for row in rows],
        token_mask=mask or [torch.ones(len(row), dtype=torch.bool) for row in rows],
        group_index=[0] * n if groups is None else groups,
        trainer_state=SimpleNamespace(global_step=step),
        log_metric=None if log is None else log.__setitem__,
        log_extra=lambda *a: None,
        ok=ok,
        something_new=[0] * n,
        **signals,
    )


# The authors' numbers


def test_code_matches_every_vector_to_the_bit():
    for case in VECTORS["reward"]:
        reward = make(mode="code", alpha=case["alpha"])
        bucket = BUCKETS.index(case["difficulty"])
        reward._state.targets.values[bucket] = case["target"]
        got = reward.reward_of(bucket, case["correct"], case["n_hwe"])
        assert got == pytest.approx(case["overall"], abs=1e-15)
        assert got - case["correct"] == pytest.approx(case["entropy_score"], abs=1e-15)


def test_the_published_order_of_evaluation_matches_its_vectors_through_the_face():
    """Before any bucket exists every completion is easy with target 0, whatever its group's accuracy."""
    cases = VECTORS["reward_without_bucket_fields"]
    reward = make(mode="code", evaluate_before_buckets=True, **COUNTED)
    got = call(
        reward, [row_with(c["n_hwe"]) for c in cases], ok=[c["correct"] for c in cases], groups=list(range(len(cases)))
    )
    assert got == pytest.approx([c["overall"] for c in cases], abs=1e-12)
    assert set(reward.row_columns["difficulty"]) == {EASY, HARD}, "the KL still gets the buckets"


@pytest.mark.parametrize("chain", range(2))
def test_code_walks_through_the_published_states(chain):
    """Targets and alphas of every step are the file's, and each row is paid by the table under them."""
    steps = VECTORS["difficulty_update"][chain]
    bounds = (steps[0]["alpha_min"], steps[0]["alpha_max"])
    reward = make(mode="code", alpha_rate=steps[0]["lr"], alpha_range=bounds, **COUNTED)
    reward._state.alpha[:] = [steps[0]["state_before"]["alpha"][d] for d in BUCKETS]
    for number, step in enumerate(steps):
        names = sorted(set(step["prompt_ids"]))
        got = call(
            reward,
            [row_with(n) for n in step["n_hwe"]],
            ok=step["correct"],
            groups=[names.index(p) for p in step["prompt_ids"]],
            step=number,
        )
        want = step["expect"]
        assert reward._state.alpha == pytest.approx([want["alpha"][d] for d in BUCKETS], abs=1e-12)
        known = {d: t for d, t in zip(BUCKETS, reward._state.targets.values, strict=True) if t is not None}
        assert known == want["target"]
        levels = [want["difficulty"][p] for p in step["prompt_ids"]]
        assert [BUCKETS[d] for d in reward.row_columns["difficulty"]] == levels
        for paid, level, right, n in zip(got, levels, step["correct"], step["n_hwe"], strict=True):
            term = entropy_term(BUCKETS.index(level), bool(right), n, want["target"][level], want["alpha"][level])
            assert paid == pytest.approx(right + term, abs=1e-12)


def test_what_is_logged_of_the_published_order_is_what_is_in_force():
    logged = {}
    reward = make(mode="code", evaluate_before_buckets=True, **COUNTED)
    for _ in range(2):
        call(reward, [row_with(n) for n in (3, 5)], ok=[1, 0], groups=[0, 0], log=logged)
    assert {logged[f"ares/{name}/target"] for name in ("easy", "medium", "hard")} == {0.0}
    assert {logged[f"ares/{name}/alpha"] for name in ("easy", "medium", "hard")} == {0.5}


def test_the_published_defect_is_shown_and_repaired():
    """The card's table of what the published order pays by count, here on hard prompts, beside what ours pays."""
    counts = [0, 1, 2, 3, 4, 5, 40]
    before, after = make(mode="code", evaluate_before_buckets=True, **COUNTED), make(**COUNTED)
    for reward in (before, after):
        call(reward, [row_with(n) for n in counts], ok=[1, 0, 0, 0, 0, 0, 0])
        assert reward.row_columns["difficulty"] == [HARD] * 7
    rights = [before.reward_of(HARD, True, n) for n in counts]
    assert rights == pytest.approx([1, 1, 0.958333, 0.833333, 0.666667, 0.5, 0.5], abs=1e-6)
    wrongs = [before.reward_of(HARD, False, n) for n in counts]
    assert wrongs == pytest.approx([0.15, 0.15, 0.187, 0.219, 0.245, 0.264, 0.3], abs=5e-4)
    paid = [after.reward_of(HARD, True, n) for n in counts]
    assert paid == sorted(paid), "a right answer to a hard prompt loses nothing by searching longer"
    assert paid[0] < 1 < paid[-1], "less than what hard prompts are used to, and more"
    assert [after.reward_of(HARD, False, n) for n in counts[:-1]] == [0.0] * 6, "a wrong one is paid for a surplus only"


# Order

count_of = st.integers(0, 5000)
target_of = st.floats(0, 3000)
bucket_at = st.integers(0, 2)
shares = st.fixed_dictionaries({name: st.floats(0, 1) for name in BUCKETS})


@settings(max_examples=400)
@given(bucket_at, count_of, count_of, target_of, st.floats(0, 2), shares, st.booleans())
def test_no_wrong_answer_outranks_a_right_one(bucket, right, wrong, target, alpha, bonus, centred):
    """One group: one bucket and target for both. Any counts, any target, any alpha the options allow."""
    reward = make(alpha=alpha, wrong_bonus=bonus, centred=centred)
    reward._state.targets.values[bucket] = target
    paid, unpaid = reward.reward_of(bucket, True, right), reward.reward_of(bucket, False, wrong)
    assert paid > unpaid
    assert paid - unpaid >= 2e-3 - 1e-12


@settings(max_examples=300)
@given(bucket_at, count_of, count_of, target_of)
def test_the_defaults_keep_the_order_without_the_guard(bucket, right, wrong, target):
    reward = make(ordering_guard=False)
    reward._state.targets.values[bucket] = target
    assert reward.reward_of(bucket, True, right) > reward.reward_of(bucket, False, wrong)


@pytest.mark.parametrize(
    ("alpha", "bucket", "best_wrong", "worst_right"),
    [
        *((0.5, EASY, 0.30, 0.50), (0.5, MEDIUM, 0.40, 0.50), (0.5, HARD, 0.60, 0.60)),
        *((0.75, EASY, 0.45, 0.25), (0.75, MEDIUM, 0.60, 0.25), (0.75, HARD, 0.90, 0.40)),
    ],
)
def test_the_published_table_breaks_the_order(alpha, bucket, best_wrong, worst_right):
    """What the guard is for, at target 40: from alpha 0.75 a wrong answer can earn more than a right one."""
    code, guarded = make(mode="code", alpha=alpha), make(mode="code", alpha=alpha, ordering_guard=True)
    for reward in (code, guarded):
        reward._state.targets.values[bucket] = 40.0
    counts = [0, 40, 1000]
    assert max(code.reward_of(bucket, False, n) for n in counts) == pytest.approx(best_wrong)
    assert min(code.reward_of(bucket, True, n) for n in counts) == pytest.approx(worst_right)
    kept = [[guarded.reward_of(bucket, right, n) for n in counts] for right in (False, True)]
    assert max(kept[0]) <= 0.499 < 0.501 <= min(kept[1])


def test_alpha_at_its_end_pays_a_wrong_answer_more_than_two_right_ones():
    reward = make(mode="code", alpha=2.0)
    reward._state.targets.values[HARD] = 40.0
    assert reward.reward_of(HARD, False, 500) == pytest.approx(2.4)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["exact", "shuffled"]))
def test_order_holds_in_whole_batches(seed, kind):
    """Several batches through the face: moving threshold, targets of the object's own, groups of all difficulties."""
    rng = random.Random(seed)
    reward = make(alpha=rng.choice([0.4, 2.0]), shuffle_counts_in_group=kind == "shuffled")
    for step in range(3):
        groups = [g for g in range(4) for _ in range(rng.randint(1, 5))]
        rng.shuffle(groups)
        skill = [rng.random() for _ in range(4)]
        ok = [rng.choice([None, *[float(rng.random() < skill[g])] * 9]) for g in groups]
        rows = [[rng.expovariate(1) for _ in range(rng.randint(0, 40))] for _ in groups]
        log = {}
        got = call(reward, rows, ok=ok, groups=groups, log=log, step=step)
        assert [r is None for r in got] == [v is None for v in ok]
        assert log.get("ares/wrong_above_right", 0.0) == 0.0
        verdicts = [None if v is None else bool(v) for v in ok]
        assert not inversions(groups, verdicts, [r or 0.0 for r in got])


def test_the_guard_by_hand():
    assert ordered(0.2, True) == 0.501
    assert ordered(1.4, True) == 1.4
    assert ordered(0.9, False) == 0.499
    assert ordered(-0.3, False) == -0.3


# Slow twin of the default mode


class Slow:
    """One number at a time, from the docstrings: threshold, counts, buckets, targets, table, guard."""

    MARGIN, KAPPA, TEMPERATURE, SCALE, BONUS = (
        (0.15, 0.25, 0.35),
        (2.0, 3.0, 4.0),
        (2.0, 2.5, 3.0),
        (1.0, 1.0, 1.2),
        (0.0, 0.8, 1.0),
    )

    def __init__(self, *, window, alpha):
        self.window, self.alpha = window, alpha
        self.threshold, self.target = None, [None] * 3

    def means(self, row):
        w = self.window
        return [sum(row[t + 1 : t + 1 + w]) / w for t in range(len(row) - w)]

    def quantile(self, values):
        ordered_values, place = sorted(values), (len(values) - 1) * 0.95
        low = math.floor(place)
        high = min(low + 1, len(values) - 1)
        return ordered_values[low] + (ordered_values[high] - ordered_values[low]) * (place - low)

    def term(self, d, right, n):
        delta, m = n - self.target[d], max(1.0, self.MARGIN[d] * max(self.target[d], 1.0))
        cap, kappa, temperature = self.alpha * self.SCALE[d], self.KAPPA[d], self.TEMPERATURE[d]

        def hub(x):
            return 0.0 if x <= 0 else x * x / (2 * kappa) if x <= kappa else x - kappa / 2

        def sig(x):
            return 1 / (1 + math.exp(-x / temperature))

        if not right:
            return cap * self.BONUS[d] * (2 * sig(max(delta - m, 0.0)) - 1)
        if d == EASY:
            return -min(cap, cap * hub(delta - m) / (m + kappa))
        if d == MEDIUM:
            return -min(cap, cap * hub(abs(delta) - m) / (m + kappa))
        if delta >= -m:
            return cap * sig(delta + m)
        return -min(cap, 0.5 * cap * hub(-delta - m) / (m + kappa))

    def batch(self, rows, ok, groups):
        quantiles = [self.quantile(self.means(row)) for row in rows if self.means(row)]
        if quantiles:
            middle = statistics.median(quantiles)
            self.threshold = middle if self.threshold is None else 0.99 * self.threshold + 0.01 * middle
        counts = [sum(m >= self.threshold for m in self.means(row)) for row in rows]
        bucket = {}
        for g in set(groups):
            known = [v for v, h in zip(ok, groups, strict=True) if h == g and v is not None]
            bucket[g] = bucket_of(int(sum(known)), len(known))
        for d in range(3):
            prompts = [
                statistics.fmean(n for n, h in zip(counts, groups, strict=True) if h == g)
                for g in sorted(bucket)
                if bucket[g] == d
            ]
            if prompts:
                mean = statistics.fmean(prompts)
                self.target[d] = mean if self.target[d] is None else 0.9 * self.target[d] + 0.1 * mean
        paid = []
        for v, g, n in zip(ok, groups, counts, strict=True):
            if v is None:
                paid.append(None)
                continue
            r = v + self.term(bucket[g], v > 0, n)
            paid.append(max(r, 0.501) if v else min(r, 0.499))
        return paid, counts, [bucket[g] for g in groups]


def batches_of(seed, *, batches=3, groups=6, unknown=True):
    rng = random.Random(seed)
    for _ in range(batches):
        index = [g for g in range(groups) for _ in range(4)]
        rng.shuffle(index)
        skill = [rng.random() for _ in range(groups)]
        ok = [None if unknown and rng.random() < 0.1 else float(rng.random() < skill[g]) for g in index]
        # multiples of 1/64 up to 4: sums of four are exact in float32, so no mean can fall on another side
        rows = [[rng.randrange(256) / 64 for _ in range(rng.choice([0, 2, 30, 60]))] for _ in index]
        yield rows, ok, index


@pytest.mark.parametrize("seed", range(12))
def test_matches_the_slow_twin(seed):
    reward, slow = make(window=4, alpha=0.4), Slow(window=4, alpha=0.4)
    for rows, ok, groups in batches_of(seed):
        got = call(reward, rows, ok=ok, groups=groups)
        want, _, buckets = slow.batch(rows, ok, groups)
        assert [r is None for r in got] == [r is None for r in want]
        assert [r for r in got if r is not None] == pytest.approx([r for r in want if r is not None], abs=1e-9)
        assert reward._state.threshold.value == pytest.approx(slow.threshold, abs=1e-6)
        assert reward._state.targets.values == [t if t is None else pytest.approx(t) for t in slow.target]
        assert reward.row_columns["difficulty"] == buckets
        assert reward.row_columns["correct"] == [-1 if v is None else int(v) for v in ok]


def test_a_group_by_hand():
    """Counts 2 and 8 right, 5 wrong: mean 5, accuracy 2/3, so easy with target 5; m = max(1, .75) = 1, cap = .4."""
    reward = make(**COUNTED)
    log = {}
    got = call(reward, [row_with(n) for n in (2, 8, 5)], ok=[1, 1, 0], log=log)
    # 8: delta 3, hub(2) = 4 / 4 = 1, -.4 * 1 / (1 + 2); 2 has no surplus; a wrong easy answer gets nothing
    assert got == pytest.approx([1.0, 1 - 0.4 / 3, 0.0])
    assert (log["ares/easy/target"], log["ares/easy/accuracy"], log["ares/easy/windows"]) == (
        5.0,
        pytest.approx(2 / 3),
        5.0,
    )
    assert (log["ares/easy/prompts"], log["ares/hard/prompts"], log["ares/threshold"]) == (1.0, 0.0, 0.5)
    assert log["ares/easy/length"] == pytest.approx(7.0)
    assert "ares/hard/target" not in log


# Ranks


class Together:
    """Two processes in threads: `gather` hands every rank the floats of both, in the order of ranks."""

    def __init__(self):
        self.barrier, self.brought = threading.Barrier(2, timeout=20), [None, None]

    def gather(self, rank):
        def gather(mine):
            self.brought[rank] = list(mine)
            self.barrier.wait()
            found = [x for part in self.brought for x in part]
            self.barrier.wait()
            return found

        return gather


def on_two_ranks(rewards, parts):
    """parts: the rows of each rank. Their rewards, in threads that meet at every gather."""
    together, out, errors = Together(), [None, None], []

    def run(rank):
        try:
            rows, ok, groups = parts[rank]
            out[rank] = call(rewards[rank], rows, ok=ok, groups=groups, gather=together.gather(rank), log={})
        except BaseException as error:
            errors.append(error)
            together.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return out


@pytest.mark.parametrize("mode", ["fixed", "code", "paper"])
@pytest.mark.parametrize("deal", ["halves", "straddling", "lopsided"])
def test_one_process_equals_two(mode, deal):
    """Not a bit of reward, bucket, target, threshold or alpha depends on which rank holds which rows."""
    alone, ranks = make(mode=mode), [make(mode=mode), make(mode=mode)]
    for number, (rows, ok, groups) in enumerate(batches_of(3, batches=4)):
        log = {}
        want = call(alone, rows, ok=ok, groups=groups, log=log)
        n = len(rows)
        by_group = sorted(range(n), key=lambda i: groups[i])
        chosen = {
            "halves": [by_group[: n // 2], by_group[n // 2 :]],
            "straddling": [list(range(0, n, 2)), list(range(1, n, 2))],
            "lopsided": [list(range(3)), list(range(3, n))],
        }[deal]
        parts = [([rows[i] for i in own], [ok[i] for i in own], [groups[i] for i in own]) for own in chosen]
        got = on_two_ranks(ranks, parts)
        for own, paid, reward in zip(chosen, got, ranks, strict=True):
            assert paid == [want[i] for i in own], number
            assert reward.state_dict() == alone.state_dict()
            assert reward.row_columns["difficulty"] == [alone.row_columns["difficulty"][i] for i in own]
        assert log


# State


@pytest.mark.parametrize("options", [{}, {"mode": "code"}, {"mode": "paper"}], ids=str)
def test_resume_in_the_middle_continues_to_the_bit(options):
    batches = list(batches_of(5, batches=6))
    straight, first = make(**options), make(**options)
    for rows, ok, groups in batches[:3]:
        call(straight, rows, ok=ok, groups=groups)
        call(first, rows, ok=ok, groups=groups)
    second = make(**options)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for rows, ok, groups in batches[3:]:
        assert call(second, rows, ok=ok, groups=groups) == call(straight, rows, ok=ok, groups=groups)
        assert second.state_dict() == straight.state_dict()
        assert second.row_columns["difficulty"] == straight.row_columns["difficulty"]


def test_evaluation_learns_nothing_and_uses_the_threshold_of_training():
    reward = make(window=2)
    (rows, ok, groups), (others, their_ok, their_groups) = batches_of(1, batches=2)
    call(reward, rows, ok=ok, groups=groups)
    state, columns = pickle.loads(pickle.dumps(reward.state_dict())), []
    for _ in range(2):
        columns.append(call(reward, others, ok=their_ok, groups=their_groups, training=False))
        assert reward.state_dict() == state
    assert columns[0] == columns[1]
    loud = [[9.0] * 20] * len(others)
    log = {}
    call(reward, loud, ok=their_ok, groups=their_groups, training=False, log=log)
    assert log["ares/threshold"] == state["threshold"]["value"]
    assert log["ares/hard/windows"] == 18, "in training all windows equal the batch's own quantile; here they exceed it"


def test_no_instance_shares_its_state():
    one, other = make(), make()
    rows, ok, groups = next(batches_of(2))
    call(one, rows, ok=ok, groups=groups)
    assert other.state_dict() == make().state_dict()
    assert hierarchical_entropy.reward.state_dict() == HierarchicalEntropy().state_dict()


# Rows


def test_columns_say_which_tokens_are_inside_counted_windows():
    reward = make(window=2, threshold=1.0)
    mask = [torch.tensor([True, True, False, True, True, True]), torch.zeros(0, dtype=torch.bool)]
    # own tokens 0 2 2 0 0: the window of 0 (2, 2) reaches 1.0 and that of 1 (2, 0) as well; (0, 0) does not
    call(reward, [[0.0, 2.0, 9.0, 2.0, 0.0, 0.0], []], ok=[1, 0], mask=mask)
    inside, empty = reward.row_columns["high_entropy"]
    assert inside.tolist() == [False, True, False, True, True, False], "a tool's token is in no window"
    assert inside.dtype == torch.bool
    assert empty.shape == (0,)


def test_an_empty_completion_has_no_window_and_an_unknown_verdict_no_reward():
    reward = make(**COUNTED)
    log = {}
    got = call(reward, [[], row_with(3), row_with(5)], ok=[1, 0, None], log=log)
    # target (0 + 3 + 5) / 3; accuracy 1/2 of the two known: medium, m = 1: right -.4 hub(5/3) / 4, wrong delta 1/3 < m
    assert got == [pytest.approx(1 - 0.4 * (5 / 3) ** 2 / 6 / 4), 0.0, None]
    assert reward.row_columns["correct"] == [1, 0, -1]
    assert reward.row_columns["difficulty"] == [MEDIUM] * 3


def test_a_group_without_any_verdict_teaches_nothing():
    reward = make(**COUNTED)
    assert call(reward, [row_with(9), row_with(9)], ok=[None, None]) == [None, None]
    assert reward._state.targets.values == [None, None, None]
    assert reward.row_columns["difficulty"] == [-1, -1]


def test_nothing_but_empty_completions():
    reward = make()
    assert call(reward, [[], []], ok=[1, 0]) == [pytest.approx(1.0), 0.0]
    assert reward._state.threshold.value is None
    assert all(math.isfinite(r) for r in call(reward, [[1.0] * 9, []], ok=[1, 0]))


def test_alpha_zero_is_accuracy_with_difficulty_still_published():
    reward = make(alpha=0.0, **COUNTED)
    got = call(reward, [row_with(n) for n in (0, 9, 30)], ok=[1, 1, 0])
    assert got == [1.0, 1.0, 0.0]
    assert reward.row_columns["difficulty"] == [EASY] * 3


def test_shuffled_counts_stay_in_their_group_and_verdict():
    rows = [row_with(n) for n in (1, 4, 9, 16, 2, 3, 5, 8)]
    ok, groups = [1, 1, 1, 1, 0, 0, 0, 0], [0] * 8
    plain = call(make(**COUNTED), rows, ok=ok, groups=groups)
    draws = [
        call(make(shuffle_counts_in_group=True, shuffle_seed=s, **COUNTED), rows, ok=ok, groups=groups)
        for s in range(6)
    ]
    assert len(set(plain[:4])) > 1
    for got in draws:
        assert sorted(got[:4]) == sorted(plain[:4])
        assert sorted(got[4:]) == sorted(plain[4:])
    assert any(got != plain for got in draws)
    again = make(shuffle_counts_in_group=True, shuffle_seed=3, **COUNTED)
    assert call(again, rows, ok=ok, groups=groups) == draws[3]
    steps = [call(make(shuffle_counts_in_group=True, **COUNTED), rows, ok=ok, groups=groups, step=t) for t in range(6)]
    assert len({tuple(s) for s in steps}) > 1, "each step shuffles anew"


# Triggers and entropy sources


class Tokenizer:
    words = ("x", "Ġwait", " Wait", "y")

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).replace("Ġ", " ")


def test_only_windows_behind_trigger_words_count():
    reward = make(triggers=["wait"], **COUNTED)
    rows, ids = [[1.0] * 6, [1.0] * 6], [[1, 0, 2, 0, 0, 1], [0, 0, 0, 3, 3, 3]]
    log = {}
    call(reward, rows, ok=[1, 0], ids=ids, log=log, tokenizer=Tokenizer())
    assert log["ares/medium/windows"] == pytest.approx((2 + 0) / 2), "the last token is a trigger without a window"
    assert reward.row_columns["high_entropy"][0].tolist() == [False, True, False, True, False, False]
    assert "tokenizer" in reward.needs
    assert "tokenizer" not in make().needs


def test_the_most_likely_token_may_be_the_trigger():
    options = {"triggers": ["wait"], "argmax_trigger": True, **COUNTED}
    likely = [torch.tensor([[1, 0], [0, 1], [0, 1]]), torch.tensor([[0, 1], [0, 1], [0, 1]])]
    log = {}
    args = {"ok": [1, 0], "ids": [[0, 0, 0], [1, 1, 1]], "log": log, "tokenizer": Tokenizer()}
    call(make(**options), [[1.0] * 3, [1.0] * 3], token_topk_ids=likely, **args)
    assert log["ares/medium/windows"] == 0.5
    with pytest.raises(TypeError, match="argmax_trigger needs token_topk_ids"):
        call(make(**options), [[1.0] * 3, [1.0] * 3], **args)


def test_counts_from_top_log_probs_of_the_published_cases():
    """The authors' program by options: top-k with the tail as one outcome, arg-max triggers, a threshold given."""
    section = VECTORS["entropy_topk"]

    class Texts:
        def get_vocab(self):
            return {f"{i}:{text}": int(i) for i, text in section["token_text"].items()}

        def convert_tokens_to_string(self, tokens):
            return "".join(t.split(":", 1)[1].replace("Ġ", " ").replace("▁", " ") for t in tokens)

    for case in section["cases"]:
        if case["threshold"] < 0:
            continue  # no setting of ours; the function's own test has it
        rows = []
        for sequence in case["sequences"]:
            K = max((len(p) for p in sequence), default=1)
            log_p, ids = torch.full((len(sequence), K), -torch.inf), torch.zeros(len(sequence), K, dtype=torch.long)
            for t, position in enumerate(sequence):
                listed = sorted(position, key=lambda entry: -entry[1])
                log_p[t, : len(listed)] = torch.tensor([p for _, p in listed])
                ids[t, : len(listed)] = torch.tensor([i for i, _ in listed])
            rows.append((log_p, ids))
        reward = make(
            mode="code",
            threshold=case["threshold"],
            window=case["window"],
            percentile=case["percentile"] / 100,
            triggers=section["trigger_words"],
            argmax_trigger=True,
            entropy_source="topk",
            topk_estimate="bucket",
            threshold_estimate="dropped",
            topk_k=case["top_k"],
            vocab_size=case["vocab_size"],
        )
        for (log_p, ids), n in zip(rows, case["expect"]["hwe_count"], strict=True):
            log = {}
            sampled = [0] * len(ids)
            extra = {"token_topk_logprobs": [log_p], "token_topk_ids": [ids], "tokenizer": Texts()}
            call(reward, [sampled], ok=[1], ids=[sampled], log=log, **extra)
            assert log["ares/easy/windows"] == n, case["name"]


# The face and the errors


def test_the_face():
    reward = make()
    assert reward.__name__ == "hierarchical_entropy"
    rows, ok, groups = next(batches_of(4, unknown=False))
    got = call(reward, rows, ok=ok, groups=groups)
    assert len(got) == len(rows)
    assert all(type(r) is float for r in got)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy.state_dict() == reward.state_dict()
    assert set(reward.row_columns) == set(reward.published_columns)
    assert all(len(column) == len(rows) for column in reward.row_columns.values())
    assert isinstance(hierarchical_entropy.reward, HierarchicalEntropy)


def test_what_the_trainer_must_deliver():
    assert set(make().needs) == {"token_entropies", "token_mask", "group_index", "gather"}
    assert "token_entropies" not in make(entropy_source="topk", vocab_size=9).needs
    assert make(shuffle_counts_in_group=True).needs_whole_groups
    assert not make().needs_whole_groups
    assert HierarchicalEntropy().columns == ("answer",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "repaired"}, "mode must be one of fixed, code, paper, got 'repaired'"),
        ({"window": 0}, "window must be >= 1 token"),
        ({"percentile": 95}, r"percentile must be in \(0, 1\); 0.95"),
        ({"threshold": -1.0}, "threshold must be >= 0 nats"),
        ({"threshold_decay": 1.0}, r"threshold_decay must be in \[0, 1\)"),
        ({"target_decay": 1.0}, r"target_decay must be in \[0, 1\)"),
        ({"alpha_rate": -0.1}, "alpha_rate must be >= 0"),
        ({"alpha": 2.5}, "alpha must be in alpha_range"),
        ({"alpha_range": (1.0, 0.5)}, "alpha_range must be two numbers"),
        ({"wrong_bonus": {"easy": 0.0}}, "wrong_bonus is a share of the cap"),
        ({"wrong_bonus": {"easy": 0.0, "medium": 0.0, "hard": 1.5}}, "wrong_bonus is a share of the cap"),
        ({"entropy_source": "topk"}, "needs vocab_size"),
        ({"entropy_source": "guess"}, "entropy_source must be one of"),
        ({"topk_estimate": "best"}, "topk_estimate must be one of"),
        ({"lambda_mode": "external"}, "belongs to mode='paper'"),
        ({"mode": "paper", "lambda_mode": "off"}, "leaves accuracy alone"),
        ({"triggers": "klingon"}, "no trigger words for"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_stock_trl_is_told_what_is_missing():
    with pytest.raises(TypeError, match="needs group_index, which stock TRL does not pass"):
        make()(completions=["x"], completion_ids=[[1]], ok=[1])
    with pytest.raises(TypeError, match="token_entropies, which stock TRL does not pass"):
        make()(completions=["x"], completion_ids=[[1]], group_index=[0], ok=[1])
    with pytest.raises(TypeError, match="needs a tokenizer"):
        call(make(triggers="en", **COUNTED), [[1.0, 1.0]], ok=[1])
    with pytest.raises(ValueError, match="no hard prompt was seen yet"):
        make().reward_of(HARD, True, 3)


# The paper's mode


def test_the_printed_lambda_vanishes_until_the_target_comes_from_elsewhere():
    reward = make(mode="paper", window=1, threshold=0.5, target_decay=0.0)
    first = call(reward, [row_with(n) for n in (2, 4, 6, 8)], ok=[1, 1, 1, 0])
    assert first == [1.0, 1.0, 1.0, 0.0], "no target from before, so lambda is 0 and accuracy alone is left"
    log = {}
    second = call(reward, [row_with(n) for n in (10, 12, 14, 20)], ok=[1, 1, 1, 0], log=log)
    # mean 14 against the old target 5, population variance (16 + 4 + 0 + 36) / 4 = 14: lambda = 9 / 14;
    # Delta = 20 - 14 against the target of this batch, easy: R = -6 * 9 / 14
    assert log["ares/easy/lambda"] == pytest.approx(9 / 14, rel=1e-5)
    assert second == pytest.approx([1.0, 1.0, 1.0, -6 * 9 / 14], rel=1e-5)


def test_dual_ascent_moves_lambda_by_the_soft_cost():
    reward = make(mode="paper", lambda_mode="dual_ascent", window=1, threshold=0.5)
    rows = [row_with(2)] * 8
    log = {}
    call(reward, rows, ok=[1] * 8, log=log)
    # soft cost 2 * .5 = 1 against the budget, the first target 2: 0 + .01 (1 - 2) < 0
    assert log["ares/easy/lambda"] == 0.0
    call(reward, [row_with(20)] * 8, ok=[1] * 8, log=log)
    assert log["ares/easy/lambda"] == pytest.approx(0.01 * (10 - 2))


def test_resume_in_the_middle_of_a_dual_ascent():
    """lambda and the budget of the first batch are as much state as the target."""
    options = {"mode": "paper", "lambda_mode": "dual_ascent", **COUNTED}
    batches = [[[0.0, *([5.0] * n), 0.25] for n in range(k, k + 8)] for k in (2, 6, 4)]
    straight, first = make(**options), make(**options)
    for rows in batches[:2]:
        call(straight, rows, ok=[1] * 7 + [0])
        call(first, rows, ok=[1] * 7 + [0])
    second = make(**options)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    # soft cost 4.5 a window, on average 5.5 and then 9.5 windows; the budget stays the first batch's 5.5
    assert first._state.weight[EASY] == pytest.approx(0.01 * (4.5 * 5.5 - 5.5) + 0.01 * (4.5 * 9.5 - 5.5))
    assert call(second, batches[2], ok=[1] * 7 + [0]) == call(straight, batches[2], ok=[1] * 7 + [0])
    assert second.state_dict() == straight.state_dict()
