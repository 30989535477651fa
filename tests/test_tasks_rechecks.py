"""The overthinker's task and lessons: two sides without a common problem, lessons that are right and end, a count that
reads the re-checks back."""

import collections
import random
import re

import pytest
from entrl_rewards.accuracy import reward
from hypothesis import given
from hypothesis import strategies as st

from entrl.tasks import load_task
from entrl.tasks.rechecks import (
    INTERJECTIONS,
    OPENINGS,
    PHRASINGS,
    STOP_HAZARDS,
    Overthinking,
    flattened,
    needed_length,
    overthinking_lesson,
    recheck_count,
)
from entrl_lab.nursery.tokenizer import character_tokenizer

TOKENIZER = character_tokenizer()
STYLES = {"certain": Overthinking(), "uncertain": Overthinking(uncertain_derivation=True)}
OPENED = re.compile("".join(rf"({'|'.join(words)}) " for words in OPENINGS))
RECHECK = re.compile(rf"({'|'.join(INTERJECTIONS)}) (\d)\+(\d)\+(\d) agrees")
DIGITS = st.lists(st.integers(0, 9), min_size=3, max_size=3)


def asked(digits: list[int]) -> str:
    return "+".join(map(str, digits)) + "="


def tokens(text: str) -> int:
    return len(TOKENIZER(text).input_ids) + 1  # and the end


@given(DIGITS, st.sampled_from(sorted(STYLES)), st.integers(0, 10**6))
def test_every_lesson_is_right_throughout_and_parses_back(digits: list[int], style: str, seed: int) -> None:
    text = overthinking_lesson(asked(digits), random.Random(seed), style=STYLES[style])
    thinking, tag, answer = text.removeprefix("<think>").partition("</think>")
    assert tag
    first, *rechecks = thinking.split(";")
    bare = OPENED.sub("", first, count=1)
    assert (bare != first) == (style == "uncertain")
    one, two = (re.fullmatch(r"(\d+)\+(\d)=(\d+)", step) for step in bare.split(","))
    assert one is not None
    assert two is not None
    order = [int(one[1]), int(one[2]), int(two[2])]
    assert order == digits
    assert [int(one[3]), int(two[1]), int(two[3])] == [order[0] + order[1], order[0] + order[1], sum(digits)]
    for recheck in rechecks:
        found = RECHECK.fullmatch(recheck)
        assert found is not None
        assert sorted(map(int, found.groups()[1:])) == sorted(digits)
    assert answer in {f"{phrasing} {sum(digits)}" for phrasing in PHRASINGS}
    assert recheck_count(text) == len(rechecks) <= 5
    assert needed_length(asked(digits)) <= tokens(text) <= 130


def test_the_verifier_takes_every_phrasing_and_no_wrong_total() -> None:
    (row,) = load_task("additions", split="test", size=1)
    right = [f"<think></think>{phrasing} {row['answer']}" for phrasing in PHRASINGS]
    wrong = [f"<think>{row['answer']}</think>{phrasing} {int(row['answer']) + 1}" for phrasing in PHRASINGS]
    each = [row["verifier"]] * len(PHRASINGS)
    assert reward.score(right, [row["answer"]] * 3, each) == [1.0] * 3
    assert reward.score(wrong, [row["answer"]] * 3, each) == [0.0] * 3


def test_how_often_it_stops_and_how_it_answers() -> None:
    rng = random.Random(0)
    texts = [overthinking_lesson("3+5+7=", rng, style=STYLES["certain"]) for _ in range(4000)]
    counts = collections.Counter(map(recheck_count, texts))
    reached = 4000
    for rechecks, hazard in enumerate(STOP_HAZARDS):
        error = 4 * (hazard * (1 - hazard) / reached) ** 0.5  # four standard errors
        assert counts[rechecks] / reached == pytest.approx(hazard, abs=error + 1e-9), rechecks
        reached -= counts[rechecks]
    assert reached == 0
    assert sum(text.endswith("</think>sum 15") for text in texts) / 4000 == pytest.approx(0.8, abs=0.026)
    orders = collections.Counter(re.findall(r"(\d\+\d\+\d) agrees", " ".join(texts)))
    assert len(orders) == 6
    assert min(orders.values()) > 0.85 * max(orders.values())
    words = collections.Counter(re.findall(r";(\w+) ", " ".join(texts)))
    assert set(words) == set(INTERJECTIONS)
    assert min(words.values()) > 0.85 * max(words.values())


def test_flattened_by_hand() -> None:
    # square roots of 0.64 and 0.04 are 0.8 and 0.2
    assert flattened([0.64, 0.04], 2) == pytest.approx([0.8, 0.2])
    assert flattened([1.0, 0.0], 1.5) == [1.0, 0.0]
    rng = random.Random(0)
    texts = [overthinking_lesson("3+5+7=", rng, style=Overthinking(flatten=1.5)) for _ in range(4000)]
    at_once = 0.1 ** (2 / 3) / (0.1 ** (2 / 3) + 0.9 ** (2 / 3))
    assert sum(recheck_count(text) == 0 for text in texts) / 4000 == pytest.approx(at_once, abs=0.025)
    assert sum(text.endswith("sum 15") for text in texts) / 4000 == pytest.approx(2 / 3, abs=0.03)


def test_counting_reads_any_completion() -> None:
    assert recheck_count("<think>3+5=8,8+7=15</think>sum 15") == 0
    assert recheck_count("<think>3+5=8,8+7=15;but 7+5+3 agrees;hmm 5+") == 2  # cut off
    assert recheck_count("<think>3+5=8;;wait</think>sum 15;but 3+5+7 agrees") == 1  # empty; behind the tag
    assert recheck_count("") == 0


def test_needed_length_by_hand() -> None:
    assert needed_length("3+5+7=") == tokens("<think>3+5=8,8+7=15</think>is 15") == 20
    assert needed_length("1+0+2=") == tokens("<think>1+0=1,1+2=3</think>is 3") == 18


def test_without_rechecks() -> None:
    style = Overthinking(rechecks=False)
    texts = {overthinking_lesson("3+5+7=", random.Random(seed), style=style) for seed in range(50)}
    assert texts == {f"<think>3+5=8,8+7=15</think>{phrasing} 15" for phrasing in PHRASINGS}


@pytest.mark.parametrize(
    ("hazards", "message"), [((0.5,), "must end in 1"), ((), "must end in 1"), ((1.5, 1.0), "must be in")]
)
def test_hazards_are_refused(hazards: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Overthinking(stop_hazards=hazards)


def test_flattening_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flatten must be >= 1, got 0\.5"):
        Overthinking(flatten=0.5)


@pytest.mark.parametrize(("terms", "train", "test"), [(2, 81, 19), (3, 798, 202)])
def test_the_sides_share_no_problem_in_any_order(terms: int, train: int, test: int) -> None:
    sides = [
        load_task({"task": "additions", "terms": terms}, split=split, size=size)["prompt"]
        for split, size in (("train", train), ("test", test))
    ]
    assert len({*sides[0], *sides[1]}) == 10**terms
    keys = [{tuple(sorted(prompt)) for prompt in side} for side in sides]
    assert not keys[0] & keys[1]


def test_lessons_and_what_is_asked_later_share_no_problem_in_any_order() -> None:
    parts = [
        load_task({"task": "additions", "part": part}, size=size)["prompt"]
        for part, size in (("sft", 553), ("rl", 245))
    ]
    assert len({*parts[0], *parts[1]}) == 798
    keys = [{tuple(sorted(prompt)) for prompt in part} for part in parts]
    assert not keys[0] & keys[1]


def test_rows_of_additions() -> None:
    few, many = (load_task("additions", split="train", size=size, seed=3) for size in (5, 50))
    assert few["prompt"] == many["prompt"][:5]
    assert few["prompt"] != load_task("additions", split="train", size=5, seed=4)["prompt"]
    row = few[0]
    assert int(row["answer"]) == sum(map(int, row["prompt"].rstrip("=").split("+")))
    assert (row["level"], row["problem_id"]) == ("3", f"additions/{row['prompt'].rstrip('=')}")


def test_additions_refuse() -> None:
    with pytest.raises(ValueError, match="has 202 test problems, asked for 203; ask for at most 202"):
        load_task("additions", split="test", size=203)
    with pytest.raises(ValueError, match="245 train problems of part 'rl', asked for 246; ask for at most 245"):
        load_task({"task": "additions", "part": "rl"}, split="train", size=246)
    with pytest.raises(ValueError, match="part must be one of all, sft, rl, got 'lessons'"):
        load_task({"task": "additions", "part": "lessons"}, split="train", size=1)
    with pytest.raises(ValueError, match="terms must be 2, 3 or 4, got 5"):
        load_task({"task": "additions", "terms": 5}, split="test", size=1)
