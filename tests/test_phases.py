"""entrl.maths.phases: where the tags stand, turn by turn."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import PreTrainedTokenizerFast

from entrl.maths.phases import (
    ThinkTags,
    answer_text,
    closing_seen,
    locate_close,
    opened_in_prompt,
    phase_labels,
    phase_masks,
    phase_spans,
    prompt_start,
    turn_ranges,
)
from entrl_lab.nursery.tokenizer import character_tokenizer

VECTORS = json.loads((Path(__file__).parent / "vectors" / "pear.json").read_text())
TAGS = ThinkTags(open_ids=(1,), close_ids=(2,))
LONG = ThinkTags(open_ids=(7, 8), close_ids=(3, 4))
SHORT = {"think": "t", "open": "o", "close": "c", "answer": "a", "tool": "."}


def letters(ids, tags=TAGS, token_mask=None, **options):
    return "".join(SHORT[x] for x in phase_labels(ids, tags, token_mask, **options))


@pytest.mark.parametrize("case", VECTORS["locate_close"])
@pytest.mark.parametrize("which", ["first", "last"])
def test_locate_close_vectors(case, which):
    found = locate_close(case["ids"], case["tag_ids"], which=which)
    assert (None if found is None else found + 1) == case["expect"][which]  # the vectors count from 1


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5, 5, 2, 6, 6], "ttcaa"),
        ([2, 6, 6], "caa"),  # first position
        ([5, 5, 2], "ttc"),  # last position
        ([5, 5, 5], "ttt"),  # missing
        ([1, 5, 2, 6], "otca"),  # the model opened
        ([5, 2, 6, 2, 6], "tcaaa"),  # repeated: the first counts
        ([5, 2, 6, 1, 5, 2, 6], "tcaaaaa"),  # opened again behind the tag: answer
        ([], ""),
    ],
)
def test_labels_of_one_turn(ids, expected):
    assert letters(ids) == expected


def test_last_tag_counts_on_request():
    assert letters([5, 2, 6, 2, 6], which="last") == "tttca"


def test_tag_of_several_tokens():
    assert letters([7, 8, 5, 3, 9, 3, 4, 6], LONG) == "oottt" + "cca"
    assert letters([5, 3], LONG) == "tt"  # cut off inside the tag: not closed


@pytest.mark.parametrize(
    ("ids", "tools", "expected"),
    [
        # each turn thinks: cut per turn
        ([5, 2, 6, 9, 9, 5, 2, 6], "11100111", "tca..tca"),
        # thinking interrupted by tool calls goes on
        ([5, 5, 9, 5, 2, 6], "110111", "tt.tca"),
        # an answer interrupted by a tool call stays an answer
        ([5, 2, 6, 9, 6, 6], "111011", "tca.aa"),
        # a new phase opened after an answer and never closed
        ([5, 2, 6, 9, 1, 5], "111011", "tca.ot"),
        # a tool's own tag is nobody's tag
        ([5, 2, 5], "101", "t.t"),
        ([9, 9], "00", ".."),
    ],
)
def test_labels_of_several_turns(ids, tools, expected):
    assert letters(ids, token_mask=[c == "1" for c in tools]) == expected


def test_turn_ranges():
    assert turn_ranges([True, True, False, True]) == [range(0, 2), range(3, 4)]
    assert turn_ranges([False]) == []
    assert turn_ranges([]) == []


def test_masks_and_closed():
    masks = phase_masks([1, 5, 2, 6, 0], TAGS)
    assert masks.think.tolist() == [True, True, False, False, False]
    assert masks.close.tolist() == [False, False, True, False, False]
    assert masks.answer.tolist() == [False, False, False, True, True]
    assert masks.open.tolist() == [True, False, False, False, False]
    assert masks.closed
    assert not phase_masks([5, 5], TAGS).closed
    assert not phase_masks([], TAGS).closed
    assert phase_masks([5, 2], TAGS).closed  # tag last: closed, without an answer


def test_masks_can_leave_out_open_tag_and_eos():
    masks = phase_masks([1, 5, 2, 6, 0], TAGS, count_open=False, exclude_ids=(0,))
    assert masks.think.tolist() == [False, True, False, False, False]
    assert masks.answer.tolist() == [False, False, False, True, False]
    assert masks.open.tolist()[0]  # still known
    unclosed = phase_masks([5, 0], TAGS, exclude_ids=(0,))
    assert unclosed.think.tolist() == [True, False]


def test_closed_in_several_turns():
    mask = torch.tensor([1, 1, 1, 0, 1, 1]).bool()
    assert not phase_masks([5, 2, 6, 9, 1, 5], TAGS, mask).closed  # the last turn ends in thinking
    assert phase_masks([5, 2, 6, 9, 6, 6], TAGS, mask).closed


def slow_labels(ids, close):
    """One turn, tag of one token, straight from the definition."""
    if close not in ids:
        return ["think"] * len(ids)
    k = ids.index(close)
    return ["think"] * k + ["close"] + ["answer"] * (len(ids) - k - 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 5), max_size=12))
def test_one_turn_matches_slow_twin(ids):
    assert phase_labels(ids, TAGS) == slow_labels(ids, 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=14), st.sampled_from(["first", "last"]))
def test_every_model_token_is_in_exactly_one_phase(rows, which):
    ids, mask = [i for i, _ in rows], [m for _, m in rows]
    masks = phase_masks(ids, TAGS, mask, which=which)
    total = masks.think.int() + masks.close.int() + masks.answer.int()
    assert total.bool().tolist() == mask
    assert int(total.sum()) == sum(mask)
    assert not (masks.open & ~masks.think).any()
    labels = phase_labels(ids, TAGS, mask, which=which)
    assert [x == "tool" for x in labels] == [not m for m in mask]


def test_opened_in_prompt():
    assert opened_in_prompt([5, 1], TAGS)
    assert opened_in_prompt([5, 1, 9], TAGS)
    assert not opened_in_prompt([5, 9], TAGS)
    assert not opened_in_prompt([1, 5, 2, 6], TAGS)  # an earlier turn, closed again
    assert opened_in_prompt([1, 5, 2, 6, 1], TAGS)
    assert not opened_in_prompt([], TAGS)
    assert opened_in_prompt([7, 8], LONG)


def test_spans_are_ranges():
    (turn,) = phase_spans([1, 5, 2, 6], TAGS)
    assert (turn.think, turn.open, turn.close, turn.answer) == (range(0, 2), range(0, 1), range(2, 3), range(3, 4))
    assert not turn.ends_thinking


@pytest.fixture(scope="module")
def bpe():
    """Byte-level BPE trained on text where the tag's last character is merged with what follows it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevelDecoder()
    text = ["<think>\nlet me add </think>\n\nThe sum is 12."] * 20
    core.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_tokenizer_without_tag_tokens(bpe):
    tags = ThinkTags.from_tokenizer(bpe)
    assert len(tags.close_ids) > 1
    for after in ("\n\nSo 12", " 12", "12", "\n12", ""):
        ids = bpe.encode("<think>\nfirst 5" + "</think>" + after)
        masks = phase_masks(ids, tags)
        assert masks.closed, after
        assert "</think>" in bpe.decode([i for i, c in zip(ids, masks.close, strict=True) if c])
        assert bpe.decode([i for i, t in zip(ids, masks.think, strict=True) if t]) == "<think>\nfirst 5"
        assert masks.open.any()


def test_tokenizer_with_tag_tokens(bpe):
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.backend_tokenizer.to_str()))
    own.add_tokens(["<think>", "</think>"])
    tags = ThinkTags.from_tokenizer(own)
    assert (len(tags.open_ids), len(tags.close_ids), dict(tags.close_pieces)) == (1, 1, {})


BLANK, MARK, TEXT = 30, 40, 50  # white space, a token of the template's, any other
CHAT = ThinkTags(open_ids=(1,), close_ids=(2,), blank_ids=frozenset({BLANK}), marker_ids=frozenset({MARK}))


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ([TEXT, 1], "think"),  # the template opens
        ([MARK, 1, BLANK], "think"),
        ([MARK, 1, TEXT], "think"),  # and a first thought was given
        ([MARK, 1, BLANK, 2, BLANK], "answer"),  # as Qwen3's with thinking off
        ([1, 2], "answer"),
        ([MARK, 1, 2, BLANK, TEXT], "answer"),  # an answer was begun
        ([TEXT, 1, TEXT, 2, TEXT], None),  # prose about tags, no template
        ([MARK, 1, TEXT, 2, TEXT, MARK, MARK], None),  # an earlier turn
        ([MARK, TEXT, 1, TEXT, MARK], None),  # a message that names the tag
        ([MARK, 1, TEXT, 2, MARK, 1], "think"),
        ([TEXT], None),
        ([], None),
    ],
)
def test_where_a_prompt_leaves_off(prompt, start):
    assert prompt_start(prompt, CHAT) == start
    assert opened_in_prompt(prompt, CHAT) is (start == "think")
    assert closing_seen([TEXT], CHAT, prompt_ids=prompt) is (start == "answer")


CLOSED, OPENED = (MARK, 1, BLANK, 2, BLANK), (MARK, 1)


@pytest.mark.parametrize(
    ("prompt", "ids", "first", "last"),
    [
        (CLOSED, [5, 6], "aa", "aa"),
        (CLOSED, [5, 2, 6], "aaa", "tca"),  # the tag that counts stands in the prompt; asked for the last, it does not
        (CLOSED, [BLANK, 1, 5, 2, 6], "totca", "totca"),  # the model began a phase of its own
        (CLOSED, [5, 1, 6], "aaa", "tot"),
        (CLOSED, [], "", ""),
        (OPENED, [5, 6], "tt", "tt"),
        (OPENED, [5, 2, 6], "tca", "tca"),
    ],
)
def test_labels_behind_a_prompt_that_says(prompt, ids, first, last):
    assert letters(ids, CHAT, prompt_ids=prompt) == first
    assert letters(ids, CHAT, prompt_ids=prompt, which="last") == last
    assert phase_masks([*ids, 6], CHAT, prompt_ids=CLOSED).closed is (2 in ids or 1 not in ids or ids[0] != BLANK)


def test_the_template_between_turns_says_too():
    # the template closes the thinking again in front of the second turn, or opens it
    assert letters([5, 2, 6, MARK, 1, 2, 7], CHAT, token_mask=[c == "1" for c in "1110001"]) == "tca...a"
    assert letters([5, 2, 6, MARK, 1, 7], CHAT, token_mask=[c == "1" for c in "111001"]) == "tca..t"
    # a tool that writes a tag is not the template
    assert letters([5, 2, 6, 1, MARK, 7], CHAT, token_mask=[c == "1" for c in "111001"]) == "tca..a"
    assert letters([5, 2, 7], CHAT, token_mask=[True, False, True]) == "t.t"


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        ("1+2=", "<think>hm</think> 3 ", "3"),
        ("1+2=", "a</think>b</think>c", "c"),  # the last tag
        ("1+2=", "3", "3"),  # a model that marks no thinking
        ("1+2=", "<think>3", ""),  # never closed
        ("1+2=<think>", "3", ""),  # opened by the prompt, cut inside the thought
        ("1+2=<think>", "hm</think>3", "3"),
        ("1+2=<think>\n\n</think>\n\n", "3", "3"),
        ("1+2=<think>\n\n</think>\n\n", "<think>3", ""),
        ("1+2=<think>\n\n</think>\n\n", "<think>1</think>3", "3"),
        ("1+2=", "hm</think>", ""),
        ("1+2=", "", ""),
    ],
)
def test_the_answer_of_a_text(prompt, text, answer):
    tokenizer = character_tokenizer()
    tags = ThinkTags.from_tokenizer(tokenizer)
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id] if text else []
    assert answer_text(ids, tags, tokenizer, prompt_ids=tokenizer.encode(prompt)) == answer


def test_the_answer_is_the_last_turns():
    tokenizer = character_tokenizer()
    tags = ThinkTags.from_tokenizer(tokenizer)
    turns = [("<think>a</think>5", True), ("7", False), ("8", True)]
    ids = [i for text, _ in turns for i in tokenizer.encode(text)]
    mask = [own for text, own in turns for _ in tokenizer.encode(text)]
    assert answer_text(ids, tags, tokenizer, mask) == "8"
    assert answer_text(ids, None, tokenizer, mask) == "8"
    assert answer_text(ids[:-1], tags, tokenizer, mask[:-1]) == "5"
    assert answer_text([], tags, tokenizer) == ""


@pytest.fixture(scope="module")
def merging():
    """Byte-level BPE whose merges run over both ends of the tags: "x</", ".</", ">\\n\\n", ">The"."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = ByteLevelDecoder()
    text = [
        f"{a}</{t}>{b}" for a in ("x", ").", "!", "2}") for b in ("\n\n", "The", " 4", "$4") for t in ("think", "t")
    ]
    core.train_from_iterator(
        text * 9, trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("tag", ["</think>", "[/THINK]", "<|end_of_thought|>", "\n### Answer:"])
def test_a_tag_of_several_tokens_is_found_whatever_it_is_merged_with(merging, tag):
    tags = ThinkTags.from_tokenizer(merging, open="<o>", close=tag)
    assert len(tags.close_ids) > 1 or tag == "</think>"
    spellings = set()
    for before in ("x", ").", "!", "2}", "", " ", "a\n", "$", "<", "é"):
        for after in ("\n\n4", "The 4", " 4", "$4$", "4", "é4"):
            ids = merging.encode(before + tag + after)
            close = tags.find_close(ids)
            spellings.add(tuple(ids[close.start : close.stop]))
            assert tag in merging.decode(ids[close.start : close.stop]), (before, after)
            assert tags.find_close(ids, which="last") == close
            assert answer_text(ids, tags, merging) == after.strip(), (before, after)
            assert not tags.find_close(merging.encode(before + tag[:-1] + after))
    assert len(spellings) > 1 or tag != "</think>"


def test_refusals(bpe):
    with pytest.raises(ValueError, match="close_ids is empty"):
        ThinkTags(open_ids=(1,), close_ids=())
    with pytest.raises(ValueError, match="cannot encode the tag ''"):
        ThinkTags.from_tokenizer(bpe, close="")
    unknown = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), unk_token="[UNK]"
    )
    with pytest.raises(ValueError, match="cannot encode the tag '<think>'"):
        ThinkTags.from_tokenizer(unknown)
    with pytest.raises(ValueError, match="which must be 'first' or 'last', got 'any'"):
        locate_close([1], [1], which="any")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="close_ids is empty"):
        locate_close([1], [])
    with pytest.raises(ValueError, match="token_mask has 1 values for 2 token ids"):
        phase_labels([5, 5], TAGS, [True])
