"""Every spelling that docs/thinking.md names: phases and answers are found, whatever tokens a tag is made of."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from entrl.maths.phases import ThinkTags, answer_text, closing_seen, phase_labels

PAGE = Path(__file__).parents[1] / "docs/thinking.md"
FORMATS = re.findall(r"^- [^`]+: `(\S+)`, `(\S+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
TURNS = ["<|im_start|>", "<|im_end|>"]
HARMONY = ["<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>", "<|constrain|>"]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"


def test_the_page_names_the_formats():
    assert len(FORMATS) >= 9
    assert ("<think>", "</think>") in FORMATS
    assert (ANALYSIS, FINAL) in FORMATS
    assert len(set(FORMATS)) == len(FORMATS)


@functools.cache
def tokenizer(*special: str, merged: tuple[str, ...] = ()) -> Any:
    """Byte-level BPE. merged: texts that occur so often that all of each may become one token, blanks and all."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", *TURNS, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text for text in merged for _ in range(50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def ids(tok: Any, text: str) -> list[int]:
    return tok.encode(text, add_special_tokens=False)


def spelled(kind: str, opening: str, closing: str) -> Any:
    """A tokenizer to which the tags are letters, or special tokens, or text that merges with its neighbours."""
    if kind == "special":
        whole = HARMONY if "<|channel|>" in opening else [opening, closing]
        return tokenizer(*whole)
    special = HARMONY if kind == "merged" and "<|channel|>" in opening else []
    around = (f"{closing}\n\n", f"\n{closing}", f"{opening}\n", closing[-1] + "\n\n", closing[-3:] + "\n")
    return tokenizer(*special, merged=around if kind == "merged" else ())


KINDS = ("letters", "merged", "special")


def read(tok: Any, opening: str, closing: str, said: str, prompt: str = "") -> tuple[str, str, bool]:
    """(what counts as thinking, the answer, whether it was closed), of a completion as a sampler writes it."""
    tags = ThinkTags.from_tokenizer(tok, open=opening, close=closing)
    written, before = ids(tok, said), ids(tok, prompt)
    labels = phase_labels(written, tags, prompt_ids=before)
    thought = tok.decode([i for i, label in zip(written, labels, strict=True) if label == "think"])
    answer = answer_text(written, tags, tok, prompt_ids=before)
    return thought.strip(), answer, closing_seen(written, tags, prompt_ids=before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("opening", "closing"), FORMATS)
def test_a_completion_that_thinks_and_answers(opening, closing, kind):
    tok = spelled(kind, opening, closing)
    for gap in ("", "\n", "\n\n"):
        found = read(tok, opening, closing, f"{opening}{gap}12+7=19{gap}{closing}{gap}The answer is 19<|im_end|>")
        assert found == ("12+7=19", "The answer is 19", True), gap


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("opening", "closing"), FORMATS)
def test_a_template_that_opens_the_thinking(opening, closing, kind):
    tok = spelled(kind, opening, closing)
    prompt = f"<|im_start|>user\n12+7<|im_end|>\n<|im_start|>assistant\n{opening}\n"
    assert read(tok, opening, closing, f"12+7=19{closing}\n\n19", prompt) == ("12+7=19", "19", True)
    assert read(tok, opening, closing, "12+7=1", prompt) == ("12+7=1", "", False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("opening", "closing"), FORMATS)
def test_a_template_that_closes_it(opening, closing, kind):
    tok = spelled(kind, opening, closing)
    prompt = f"<|im_start|>user\n12+7<|im_end|>\n<|im_start|>assistant\n{opening}\n\n{closing}\n\n"
    assert read(tok, opening, closing, "19<|im_end|>", prompt) == ("", "19", True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("opening", "closing"), FORMATS)
def test_thinking_that_is_cut_has_no_answer(opening, closing, kind):
    tok = spelled(kind, opening, closing)
    assert read(tok, opening, closing, f"{opening}\n12+7=1") == ("12+7=1", "", False)
    assert read(tok, opening, closing, "19") == ("19", "19", False)  # a model that marks nothing


# Channels

REASONED = f"{ANALYSIS}12+7=19<|end|><|start|>assistant{FINAL}19<|return|>"


def test_channels_end_where_the_final_one_begins():
    tok = tokenizer(*HARMONY)
    system = "<|start|>system<|message|># Valid channels: analysis, commentary, final.<|end|>"
    asked = f"{system}<|start|>user<|message|>12+7<|end|><|start|>assistant"
    thought, answer, closed = read(tok, ANALYSIS, FINAL, REASONED, asked)
    assert (thought, answer, closed) == ("12+7=19<|end|><|start|>assistant", "19", True)
    # What was said in turns before belongs to them.
    again = f"{asked}{FINAL}19<|end|><|start|>user<|message|>And 3+4?<|end|><|start|>assistant"
    assert read(tok, ANALYSIS, FINAL, f"{ANALYSIS}3+4", again) == ("3+4", "", False)
    assert read(tok, ANALYSIS, FINAL, f"{ANALYSIS}3+4=7<|end|><|start|>assistant{FINAL}7<|return|>", again)[1:] == (
        "7",
        True,
    )
    # The template of a model that shall not think begins the final channel itself.
    assert read(tok, ANALYSIS, FINAL, "19<|return|>", f"{asked}{FINAL}") == ("", "19", True)


def test_a_call_in_the_commentary_channel_is_no_answer_and_thinking_goes_on_behind_the_tool():
    tok = tokenizer(*HARMONY)
    tags = ThinkTags.from_tokenizer(tok, open=ANALYSIS, close=FINAL)
    call = f"{ANALYSIS}ask<|end|><|start|>assistant<|channel|>commentary to=functions.ask<|message|>{{}}<|call|>"
    told = "<|start|>functions.ask to=assistant<|channel|>commentary<|message|>yes<|end|><|start|>assistant"
    last = f"{ANALYSIS}so 19<|end|><|start|>assistant{FINAL}19<|return|>"
    written = [ids(tok, part) for part in (call, told, last)]
    mask = [i != 1 for i, part in enumerate(written) for _ in part]
    everything = [token for part in written for token in part]
    assert answer_text(everything, tags, tok, mask) == "19"
    labels = phase_labels(everything, tags, mask)
    assert set(labels[: len(written[0])]) == {"think", "open"}
    assert set(labels[len(written[0]) : len(written[0]) + len(written[1])]) == {"tool"}
    assert labels[-2:] == ["answer", "answer"]
    assert answer_text(everything[: len(written[0])], tags, tok, mask[: len(written[0])]) == ""
