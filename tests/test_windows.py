"""entrl.maths.windows and entrl_rewards.triggers: slow twins in plain loops, properties, edges by name, every error."""

import math
import random
import statistics
import unicodedata

import pytest
import torch
from entrl_rewards.triggers import WORDS, normalise_token, trigger_ids, trigger_words
from hypothesis import given
from hypothesis import strategies as st

from entrl.maths.signals import pad_rows
from entrl.maths.windows import (
    ThresholdEMA,
    high_entropy_windows,
    in_window_mask,
    row_quantiles,
    running_tail_means,
    trigger_mask,
    window_means,
)

NAN = float("nan")


def batch(rows, *, padding=NAN, extra=2, dtype=torch.float64):
    """Rows of numbers to (B, T) with `extra` more columns of padding than anyone needs."""
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    T = max(1, *(len(r) for r in rows)) + extra
    x_BT = torch.full((len(rows), T), padding, dtype=dtype)
    for b, row in enumerate(tensors):
        x_BT[b, : len(row)] = row
    return x_BT, torch.arange(T) < torch.tensor([len(r) for r in rows])[:, None]


def flags(rows, *, padding=True, extra=2):
    """Bool rows, padded with True, so that a result which looks past the mask is seen."""
    return batch([[float(f) for f in row] for row in rows], padding=float(padding), extra=extra)[0].bool()


# Slow twins: one number at a time, from the equations of the module's docstring


def slow_window(row, t, w, following):
    start = t + 1 if following else t
    tokens = row[start : start + w]
    return sum(tokens) / w if len(tokens) == w else None


def slow_counts(row, trigger, threshold, w, following):
    count, low, soft, starts = 0, 0, 0.0, []
    for t in range(len(row)):
        mean = slow_window(row, t, w, following)
        above = mean is not None and trigger[t] and mean >= threshold
        if mean is not None and trigger[t]:
            count, low = count + above, low + (not above)
            soft += max(0.0, mean - threshold)
        starts.append(above)
    return count, low, soft, starts


def slow_tail(row, w):
    """The published loop: a list that grows, its own mean where there is no window, H_i where it is still empty."""
    found = []
    for t in range(len(row)):
        mean = slow_window(row, t, w, True)
        found.append(mean if mean is not None else sum(found) / len(found) if found else row[t])
    return found


def slow_quantile(values, q):
    ordered, place = sorted(values), (len(values) - 1) * q
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def slow_inside(starts, w, following):
    first = 1 if following else 0
    return [any(0 <= t - s - first < w and starts[s] for s in range(len(starts))) for t in range(len(starts))]


nats = st.floats(0, 8, allow_subnormal=False)
rows_of_nats = st.lists(st.lists(nats, max_size=14), min_size=1, max_size=5)
windows_of = st.tuples(st.integers(1, 9), st.booleans())


@given(rows_of_nats, windows_of)
def test_window_means_match_the_loop(rows, shape):
    w, following = shape
    mean_BT, full_BT = window_means(*batch(rows), w, following=following)
    for b, row in enumerate(rows):
        want = [slow_window(row, t, w, following) for t in range(len(row))]
        assert full_BT[b].tolist() == [m is not None for m in want] + [False] * (full_BT.shape[1] - len(row))
        assert mean_BT[b].tolist() == pytest.approx([m or 0.0 for m in want] + [0.0] * (mean_BT.shape[1] - len(row)))


@given(rows_of_nats, windows_of, st.floats(-1, 5), st.data())
def test_counts_match_the_loop(rows, shape, threshold, data):
    w, following = shape
    triggers = [data.draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r))) for r in rows]
    entropy_BT, mask_BT = batch(rows)
    trigger_BT = flags(triggers)
    got = high_entropy_windows(
        entropy_BT, mask_BT, threshold=threshold, window=w, following=following, trigger_BT=trigger_BT
    )
    inside_BT = in_window_mask(got.start_BT, w, following=following)
    for b, (row, trigger) in enumerate(zip(rows, triggers, strict=True)):
        means = [slow_window(row, t, w, following) for t in range(len(row))]
        if any(m is not None and abs(m - threshold) < 1e-12 for m in means):
            continue  # a sum in another order may fall on the other side of the line
        count, low, soft, starts = slow_counts(row, trigger, threshold, w, following)
        assert (int(got.count_B[b]), int(got.low_B[b])) == (count, low)
        assert float(got.soft_cost_B[b]) == pytest.approx(soft, abs=1e-12)
        assert got.start_BT[b, : len(row)].tolist() == starts
        assert not got.start_BT[b, len(row) :].any()
        assert inside_BT[b, : len(row)].tolist() == slow_inside(starts, w, following)
        assert not inside_BT[b, len(row) :].any(), "a counted window is whole, so it ends inside its row"


@given(rows_of_nats, st.integers(1, 9))
def test_running_tail_means_match_the_published_loop(rows, w):
    got_BT = running_tail_means(*batch(rows), w)
    for b, row in enumerate(rows):
        assert got_BT[b].tolist() == pytest.approx(slow_tail(row, w) + [0.0] * (got_BT.shape[1] - len(row)))


@given(rows_of_nats, st.floats(0, 1))
def test_row_quantiles_match_the_loop_and_torch(rows, q):
    got_B = row_quantiles(*batch(rows), q)
    for value, row in zip(got_B.tolist(), rows, strict=True):
        if not row:
            assert math.isnan(value)
            continue
        assert value == pytest.approx(slow_quantile(row, q), abs=1e-12)
        assert value == pytest.approx(float(torch.tensor(row, dtype=torch.float64).quantile(q)), abs=1e-12)
        assert min(row) <= value <= max(row)


# By hand

ROW = [0.5, 1.0, 3.0, 2.0, 0.0, 4.0]
# window 2, following: after 0: (1+3)/2 = 2; after 1: (3+2)/2 = 2.5; after 2: (2+0)/2 = 1; after 3: (0+4)/2 = 2
# window 2, including: .75, 2, 2.5, 1, 2; none at the last token


def test_by_hand():
    x, mask = batch([ROW], extra=0)
    mean, full = window_means(x, mask, 2, following=True)
    assert mean.tolist() == [[2.0, 2.5, 1.0, 2.0, 0.0, 0.0]]
    assert full.tolist() == [[True, True, True, True, False, False]]
    assert window_means(x, mask, 2, following=False)[0].tolist() == [[0.75, 2.0, 2.5, 1.0, 2.0, 0.0]]
    trigger = torch.tensor([[True, False, True, True, True, True]])
    got = high_entropy_windows(x, mask, threshold=2.0, window=2, trigger_BT=trigger)
    # triggers with a window: 0 (2.0 counts, at the line), 2 (1.0 does not), 3 (2.0 counts); 4 and 5 have no window
    assert (got.count_B.item(), got.low_B.item(), got.soft_cost_B.item()) == (2, 1, 0.0)
    assert got.start_BT.tolist() == [[True, False, False, True, False, False]]
    assert in_window_mask(got.start_BT, 2, following=True).tolist() == [[False, True, True, False, True, True]]
    assert in_window_mask(got.start_BT, 2, following=False).tolist() == [[True, True, False, True, True, False]]
    # whole windows 2, 2.5, 1, 2 have mean 1.875, which the two tokens without one are given
    assert running_tail_means(x, mask, 2).tolist() == [[2.0, 2.5, 1.0, 2.0, 1.875, 1.875]]
    # sorted 0 .5 1 2 3 4: place 5 * .9 = 4.5, between 3 and 4
    assert row_quantiles(x, mask, 0.9).item() == pytest.approx(3.5)


def test_soft_cost_by_hand():
    x, mask = batch([ROW])
    # means 2, 2.5, 1, 2 above 1.5: .5 + 1 + 0 + .5
    assert high_entropy_windows(x, mask, threshold=1.5, window=2).soft_cost_B.item() == pytest.approx(2.0)


# Properties


def random_rows(seed, n=6):
    rng = random.Random(seed)
    return [[rng.expovariate(1) for _ in range(rng.randint(0, 30))] for _ in range(n)]


@pytest.mark.parametrize("following", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_padding_and_the_order_of_rows_change_nothing(seed, following):
    rows = random_rows(seed)

    def count(rows, **layout):
        got = high_entropy_windows(*batch(rows, **layout), threshold=1.2, window=3, following=following)
        return got.count_B.tolist(), got.soft_cost_B.tolist()

    plain = count(rows, padding=0.0, extra=0)
    assert plain[0] != [0] * len(rows)
    assert count(rows, padding=NAN, extra=5) == count(rows, padding=99.0, extra=1) == plain
    assert count(rows[::-1]) == tuple(part[::-1] for part in plain)
    assert [count([row])[0][0] for row in rows] == plain[0], "a row does not know its neighbours"


@pytest.mark.parametrize("seed", range(4))
def test_counts_fall_as_the_threshold_rises(seed):
    x, mask = batch(random_rows(seed))
    counts = torch.stack([high_entropy_windows(x, mask, threshold=t, window=4).count_B for t in (-1.0, 0.5, 1.0, 2.0)])
    assert bool((counts[1:] <= counts[:-1]).all())
    assert counts[0].tolist() == (mask.sum(-1) - 4).clamp(min=0).tolist(), "below zero every whole window counts"


def test_a_threshold_for_each_row():
    rows = random_rows(1)
    x, mask = batch(rows)
    lines = torch.linspace(0.2, 1.8, len(rows), dtype=torch.float64)
    together = high_entropy_windows(x, mask, threshold=lines, window=3)
    alone = [
        high_entropy_windows(*batch([row]), threshold=float(t), window=3) for row, t in zip(rows, lines, strict=True)
    ]
    assert together.count_B.tolist() == [a.count_B.item() for a in alone]
    assert together.soft_cost_B.tolist() == pytest.approx([a.soft_cost_B.item() for a in alone], abs=1e-12)


def test_a_batch_of_any_size_is_its_rows():
    """Large enough that a batch may be worked through in pieces: each row's answer is the one it has alone."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(37, 5000, generator=g)
    mask = torch.arange(5000) < torch.randint(0, 5001, (37, 1), generator=g)
    trigger, lines = torch.rand(37, 5000, generator=g) < 0.2, torch.rand(37, generator=g)
    together = high_entropy_windows(x, mask, threshold=lines, window=4, trigger_BT=trigger)
    quantiles, tails = row_quantiles(x, mask, 0.95), running_tail_means(x, mask, 4)
    for b in range(37):
        row = (x[b : b + 1], mask[b : b + 1])
        alone = high_entropy_windows(*row, threshold=float(lines[b]), window=4, trigger_BT=trigger[b : b + 1])
        for ours, theirs in zip(together, alone, strict=True):
            assert torch.equal(ours[b : b + 1], theirs)
        assert torch.equal(quantiles[b : b + 1], row_quantiles(*row, 0.95))
        assert torch.equal(tails[b : b + 1], running_tail_means(*row, 4))


def test_including_is_following_one_token_earlier():
    x, mask = batch(random_rows(2), padding=0.0)
    including, _ = window_means(x, mask, 3, following=False)
    following, _ = window_means(x, mask, 3, following=True)
    assert torch.equal(including[:, 1:], following[:, :-1])


def test_a_long_row_keeps_the_precision_of_its_window():
    """A window after 200,000 loud tokens is as exact as one after none: no running sum is differenced."""
    quiet = [1e-4, 2e-4, 3e-4, 4e-4, 5e-4]
    x, mask = batch([[11.7] * 200_000 + quiet, quiet], padding=0.0, extra=0, dtype=torch.float32)
    mean, _ = window_means(x, mask, 4, following=True)
    assert mean[0, 200_000].item() == mean[1, 0].item() == pytest.approx(3.5e-4, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x, mask = batch([ROW], dtype=dtype)
    assert window_means(x, mask, 2, following=True)[0].dtype == dtype
    assert running_tail_means(x, mask, 2).dtype == row_quantiles(x, mask, 0.5).dtype == dtype
    got = high_entropy_windows(x, mask, threshold=1.0, window=2)
    assert (got.count_B.dtype, got.low_B.dtype, got.soft_cost_B.dtype) == (torch.int64, torch.int64, dtype)


# Edges


def test_empty_and_too_short_rows():
    x, mask = batch([[], [1.0], [1.0, 2.0], [1.0, 2.0, 3.0]], extra=0)
    got = high_entropy_windows(x, mask, threshold=0.0, window=2)
    assert got.count_B.tolist() == [0, 0, 0, 1]
    assert got.low_B.tolist() == [0, 0, 0, 0]
    assert running_tail_means(x, mask, 2).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [2.5, 2.5, 2.5]]
    assert math.isnan(row_quantiles(x, mask, 0.95)[0])


def test_all_rows_empty_and_a_window_wider_than_the_batch():
    x, mask = pad_rows([torch.zeros(0), torch.zeros(0)])
    got = high_entropy_windows(x, mask, threshold=0.0, window=8)
    assert got.count_B.tolist() == [0, 0]
    assert not in_window_mask(got.start_BT, 8, following=True).any()
    assert running_tail_means(x, mask, 8).tolist() == [[0.0], [0.0]]
    assert row_quantiles(x, mask, 0.5).isnan().all()


@pytest.mark.parametrize("window", [0, -3])
def test_no_window_of_no_tokens(window):
    with pytest.raises(ValueError, match=f"window must be >= 1 token, got {window}"):
        window_means(*batch([ROW]), window, following=True)


def test_masks_with_a_gap_and_other_shapes_are_refused():
    x, mask = batch([ROW], padding=0.0)
    gap = mask.clone()
    gap[0, 2] = False
    with pytest.raises(ValueError, match="the mask has a gap"):
        high_entropy_windows(x, gap, threshold=1.0, window=2)
    with pytest.raises(ValueError, match=r"\(1, 8\) and mask \(1, 7\) must be one"):
        window_means(x, mask[:, :-1], 2, following=True)
    with pytest.raises(ValueError, match="must be one"):
        window_means(x[0], mask[0], 2, following=True)


@pytest.mark.parametrize("q", [-0.1, 1.5, 95])
def test_a_quantile_is_a_share(q):
    with pytest.raises(ValueError, match=f"q must be in .0, 1., got {q}"):
        row_quantiles(*batch([ROW]), q)


# Threshold


@given(st.lists(st.lists(st.one_of(nats, st.just(NAN)), max_size=7), min_size=1, max_size=6), st.floats(0, 0.999))
def test_threshold_matches_the_loop_in_any_order_of_values(batches, decay):
    ours, want = ThresholdEMA(decay=decay), None
    for values in batches:
        known = [v for v in values if not math.isnan(v)]
        if known:
            middle = statistics.median(known)
            want = middle if want is None else decay * want + (1 - decay) * middle
        shuffled = values[:]
        random.Random(len(values)).shuffle(shuffled)
        again = ThresholdEMA(decay=decay)
        again.load_state_dict(ours.state_dict())
        assert again.update(shuffled) == ours.update(values) == ours.value
        assert (ours.value is None) == (want is None)
        assert want is None or ours.value == pytest.approx(want, abs=1e-12)


def test_threshold_by_hand_and_through_a_checkpoint():
    ema = ThresholdEMA(decay=0.9)
    assert ema.update([NAN]) is None, "a batch without any window says nothing"
    assert ema.update([3.0, 1.0, 2.0, NAN]) == 2.0
    copy = ThresholdEMA(decay=0.9)
    copy.load_state_dict(ema.state_dict())
    assert ema.update([4.0, 8.0]) == copy.update([8.0, 4.0]) == pytest.approx(0.9 * 2 + 0.1 * 6)
    assert ema.update([]) == ema.value


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
def test_threshold_decay_is_checked(decay):
    with pytest.raises(ValueError, match="decay must be in"):
        ThresholdEMA(decay=decay)


# Triggers


class Vocabulary:
    """What `trigger_ids` asks of a tokenizer: texts as the vocabulary spells them, and as they read."""

    def __init__(self, spelled, read=None):
        self.spelled, self.read = spelled, read or {}

    def get_vocab(self):
        return {text: i for i, text in enumerate(self.spelled)}

    def convert_tokens_to_string(self, tokens):
        return "".join(self.read.get(t, t.replace("Ġ", " ").replace("▁", " ")) for t in tokens)


@pytest.mark.parametrize(
    ("raw", "word"),
    [(" Wait", "wait"), ("ĠHowever", "however"), ("▁Thus", "thus"), ("ĠĠif", "if"), ("ĊBut\n", "but"), ("so,", "so,")],
)
def test_tokens_as_words(raw, word):
    assert normalise_token(raw) == word
    assert normalise_token(word) == word


def test_ids_of_words_in_every_spelling():
    tokenizer = Vocabulary(["wait", "ĠWait", "▁WAIT", "waiting", "ĠçŃī", "x", "Ġbut"], read={"ĠçŃī": " 等"})
    assert trigger_ids(tokenizer, trigger_words(["wait"])) == {0, 1, 2}
    assert trigger_ids(tokenizer, trigger_words("en+zh")) == {0, 1, 2, 4, 6}
    with pytest.raises(ValueError, match="none of the trigger words"):
        trigger_ids(tokenizer, trigger_words(["perhaps"]))


def test_mask_of_ids():
    ids = torch.tensor([[3, 5, 3], [7, 0, 5]])
    assert trigger_mask(ids, frozenset({3, 7})).tolist() == [[True, False, True], [True, False, False]]
    assert trigger_mask(ids, None).all()
    assert not trigger_mask(ids, frozenset()).any()
    # a padding of -1 and ids beyond every trigger are none
    others = torch.tensor([[-1, 0, 1, 2, 151_935]])
    assert trigger_mask(others, frozenset({0, 1})).tolist() == [[False, True, True, False, False]]


def test_word_lists():
    assert trigger_words(["ĠWait", "wait "]) == {"wait"}
    for language, words in WORDS.items():
        assert len(set(words)) == len(words) < 60, language
        for word in words:
            assert normalise_token(word) == word == unicodedata.normalize("NFC", word)
            assert " " not in word, "a word is one token, so it has no space"
    with pytest.raises(ValueError, match=r"no trigger words for \['xx'\]"):
        trigger_words("en+xx")
    with pytest.raises(ValueError, match="must be words with letters"):
        trigger_words([" ", "wait"])
    with pytest.raises(ValueError, match="must be words with letters"):
        trigger_words([])
