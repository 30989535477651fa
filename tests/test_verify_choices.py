"""Multiple choice: one function brings gold and answer to a letter."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrl.verify.choices import chosen_letter, gold_letter, option_letter
from entrl.verify.judge import check

CASES = json.loads((Path(__file__).parent / "data" / "choices.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[c["text"][:30] + "|" + c["gold"] for c in CASES])
def test_the_cases_of_people_who_do_this_job(case):
    assert check("choice", case["text"], case["gold"], {}) == case["want"]


@pytest.mark.parametrize(
    "gold", ["(B)", "B.", "b", " B ", r"\text{(B)}", "B) 42", "1", r"$\textbf{(B)}\ 42$", "**B**", "Option B",
             r"\boxed{B}", "B: 42", "Answer: B", "Ｂ", "<answer>B</answer>"],
)  # fmt: skip
def test_the_spellings_of_a_gold(gold):
    assert gold_letter(gold, "ABCD") == "B"


@pytest.mark.parametrize("gold", ["E", "4", "42", "", "Apple", "A cat", "AB", "A or B", "None", "B, C", "-1"])
def test_a_gold_that_is_no_option_is_named(gold):
    """F5: such a gold scored 0 for every answer, silently."""
    with pytest.raises(ValueError, match="is none of the options A, B, C, D"):
        gold_letter(gold, "ABCD")


@pytest.mark.parametrize("text", [
    "B", "(B)", "B.", "B) 42", "B: 42", "Option B", "option (b)", "I pick option B", "Hence (B).", "(B) is correct.",
    "Therefore, option B is the correct answer.", "The answer is B because A is wrong.", "The answer is B, not A.",
    "The answer is not A but B.", "The answer is not A, it is B.", "[[B]]",
    "The answer is therefore B.", "So, the answer must be B.", "### Answer: B", "#### B",
    "Answer:\n\n**B**", "Answer: b.", r"$$\boxed{\textbf{(B)}\ 42}$$", r"\boxed{\text{B. 42}}",
    r"\boxed{A} then \boxed{B}", "Answer: A\nWait, Answer: B", "Eliminating A, C and D leaves B.\nB",
    "D is wrong because 3 > 2. B is correct.",
    "A) 12 is too small.\nB) 17 fits.\n\nTherefore the answer is B.", "答案是（B）", "Ответ: B", "정답: B", "答え：B",
    "La respuesta correcta es B.", "Die Antwort ist B", "My choice: B",
    "<answer>A</answer> <answer>The answer is B</answer>", "So, B.", "Hence option B", "It must be B",
    "La respuesta correcta es la B.", "정답은 B입니다",
])  # fmt: skip
def test_ways_to_settle_on_an_option(text):
    assert chosen_letter(text, "ABCD") == "B"


@pytest.mark.parametrize("text", [
    "", "I like apples", "The answer is a function of C.", "Answer: E", "Answer: A or B", "Answer: A and B",
    "Answer: A, B", "Answer: A/B", "Answer: Both A and B", r"\boxed{A, B}", r"\boxed{AB}", r"\boxed{42}", r"\boxed{E}",
    "Answer: Dog", "None of the above", "Answer: A\nFinal answer: A or B", "A good question. I do not know.",
    "The answer is A dog.",
])  # fmt: skip
def test_texts_that_settle_on_nothing(text):
    assert chosen_letter(text, "ABCD") is None


FORMS = ("{}", "({})", "{}.", "{})", "{}: 42", r"\boxed{{{}}}", r"\boxed{{\text{{({})}}}}", "Answer: {}", "**{}**",
         "The answer is {}.", "<answer>{}</answer>", "so I choose {}.", "The correct option is ({}).")  # fmt: skip


@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ"), st.sampled_from(FORMS), st.sampled_from(FORMS[:5]))
def test_every_form_names_its_letter_and_no_other(letter, gold, form, gold_form):
    score = check("choice", form.format(letter), gold_form.format(gold), {"letters": "ABCDEFGHIJ"})
    assert score == float(letter == gold)


@given(st.text(max_size=200))
def test_no_text_breaks_it(text):
    assert chosen_letter(text, "ABCD") in (*"ABCD", None)
    assert option_letter(text, "ABCD") in (*"ABCD", None)
