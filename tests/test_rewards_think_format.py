"""entrl_rewards.think_format: token rule, text rule, who wrote the opening tag."""

import pickle

import pytest
import torch
from entrl_rewards import think_format
from entrl_rewards.think_format import ThinkFormat, well_formed_text, well_formed_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.rewards import think_format_reward

from entrl.maths.phases import ThinkTags

TAGS = ThinkTags(open_ids=(1,), close_ids=(2,))


@pytest.mark.parametrize(
    ("ids", "opened", "expected"),
    [
        ([1, 5, 2, 6, 0], False, True),
        ([5, 2, 6, 0], True, True),  # the template opened
        ([1, 5, 2, 6, 0], True, False),  # opened twice
        ([5, 2, 6, 0], False, False),  # never opened
        ([5, 1, 5, 2, 6, 0], False, False),  # text before the tag
        ([1, 1, 5, 2, 6, 0], False, False),
        ([1, 5, 2, 6, 2, 6], False, False),  # closed twice
        ([1, 5, 2, 1, 6, 0], False, False),  # opened again
        ([1, 5, 6, 0], False, False),  # never closed
        ([1, 5, 2, 0], False, False),  # only EOS behind the tag
        ([1, 5, 2], False, False),
        ([2, 1, 6, 0], False, False),  # the wrong way round
        ([1, 2, 6, 0], False, True),  # an empty thought is well formed; PEAR's min_think_tokens is for that
        ([6, 0], False, False),
        ([], True, False),
    ],
)
def test_tokens_of_one_turn(ids, opened, expected):
    assert well_formed_tokens(ids, TAGS, prompt_opened=opened) is expected


@pytest.mark.parametrize(
    ("ids", "tools", "expected"),
    [
        ([1, 5, 2, 6, 9, 1, 5, 2, 6, 0], "1111011111", True),  # thinks in both turns
        ([1, 5, 2, 6, 9, 6, 0], "1111011", True),  # second turn only answers
        ([1, 5, 9, 5, 2, 6, 0], "1101111", True),  # a thought interrupted by a tool call
        ([1, 5, 2, 6, 1, 5, 2, 6, 0], "111101111", True),  # the template reopens behind the tool
        ([1, 5, 2, 6, 1, 1, 5, 2, 6, 0], "1111011111", False),  # and then the model must not
        ([1, 5, 2, 6, 9, 1, 5], "1111011", False),  # ends in thinking
        ([1, 5, 2, 6, 9], "11110", False),  # one answer token only
    ],
)
def test_tokens_of_several_turns(ids, tools, expected):
    mask = torch.tensor([c == "1" for c in tools])
    assert well_formed_tokens(ids, TAGS, mask, prompt_opened=False) is expected


def slow_well_formed(ids, opened):
    """One turn, tags of one token: the full sequence must read (open) no-tags close no-tags."""
    body = ids if opened else ids[1:]
    if not opened and ids[:1] != [1]:
        return False
    return body.count(1) == 0 and body.count(2) == 1 and len(body) - body.index(2) - 1 >= 2


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=9), st.booleans())
def test_tokens_match_slow_twin(ids, opened):
    assert well_formed_tokens(ids, TAGS, prompt_opened=opened) is slow_well_formed(ids, opened)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>a</think>b", False, True),
        ("\n<think>a</think>b", False, True),
        ("a</think>b", True, True),
        ("a</think>b", False, False),
        ("<think>a</think>b", True, False),
        ("<think>a</think>b", None, True),
        ("a</think>b", None, True),
        ("<think>a</think>  \n", False, False),
        ("<think>a</think>b</think>c", False, False),
        ("<think>a<think>b</think>c", False, False),
        ("x<think>a</think>b", None, False),
        ("<think>a", False, False),
        ("", None, False),
    ],
)
def test_text(text, opened, expected):
    assert well_formed_text(text, open_tag="<think>", close_tag="</think>", prompt_opened=opened) is expected


def call(prompts, completions, reward=think_format.reward, **signals):
    ids = signals.pop("completion_ids", [[0]] * len(completions))
    return reward(prompts=prompts, completions=completions, completion_ids=ids, new_keyword=1, **signals)


def test_text_prompts_show_who_opened():
    assert call(["Sum?<think>\n", "Sum?"], ["a</think>b", "a</think>b"]) == [1.0, 0.0]
    # a prompt that only talks about the tag has not opened it
    assert call(["Use <think> tags. Sum?"], ["a</think>b"]) == [0.0]


def test_messages():
    user = [{"role": "user", "content": "Sum?"}]
    prefilled = [*user, {"role": "assistant", "content": "<think>"}]
    answer = [{"role": "assistant", "content": "a</think>b"}]
    whole = [{"role": "assistant", "content": "<think>a</think>b"}]
    assert call([user, user], [answer, whole]) == [1.0, 1.0]  # the template is not in sight: both pass
    assert call([prefilled, prefilled], [answer, whole]) == [1.0, 0.0]
    strict = ThinkFormat(prompt_opened=True)
    assert call([user, user], [answer, whole], strict) == [1.0, 0.0]
    assert call([user], [[{"role": "assistant", "content": None}]]) == [0.0]


def test_tokens_win_over_text():
    # the tags are special tokens and missing from the text; the prompt's ids end in the opening tag
    signals = {"completion_ids": [[5, 2, 6, 0], [1, 5, 2, 6, 0]], "prompt_ids": [[9, 1], [9, 1]], "think_tags": TAGS}
    assert call(["p", "p"], ["ab", "ab"], **signals) == [1.0, 0.0]
    mask = [torch.tensor([True, True, True, False]), torch.ones(5, dtype=torch.bool)]
    assert call(["p", "p"], ["ab", "ab"], token_mask=mask, **signals) == [0.0, 0.0]  # the answer was a tool's token
    assert call(["p", "p"], ["ab", "ab"], ThinkFormat(prompt_opened=False), **signals) == [0.0, 1.0]


def test_agrees_with_trl_where_the_model_opens():
    texts = ["<think>a</think>b", "a</think>b", "<think>a", "<think>a<think>b</think>c"]
    theirs = think_format_reward([[{"role": "assistant", "content": t}] for t in texts])
    assert call(["Sum?"] * len(texts), texts) == theirs


def test_face_and_errors():
    assert think_format.reward.__name__ == "think_format"
    assert pickle.loads(pickle.dumps(think_format.reward)) == think_format.reward
    with pytest.raises(ValueError, match="min_answer_tokens must be >= 0"):
        ThinkFormat(min_answer_tokens=-1)
    with pytest.raises(ValueError, match="two different texts"):
        ThinkFormat(open_tag="<t>", close_tag="<t>")
