"""Where the answer stands: the last answer block for every kind, the last box, the statement of a plain text."""

import time

import pytest

from entrl.verify.answers import final_answer
from entrl.verify.characters import plain, squeeze
from entrl.verify.judge import check, gold_problem, quick_check
from entrl.verify.mathematics import is_mathematics
from entrl.verify.statements import stated


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>12</answer>", "12"),
        ("first <answer>7</answer>, then <answer> 8 </answer> I used 5 steps", "8"),
        ("<ANSWER>\n12\n</Answer>", "12"),
        ("< answer >12</ answer >", "12"),
        ("<answer>12", "12"),
        ("<answer>7</answer> no, <answer>12", "12"),
        ("<answer></answer>", ""),
        ("  plain text ", "plain text"),
        ("<answers>12</answers>", "<answers>12</answers>"),
    ],
)
def test_the_last_answer_block_is_the_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("kind", "text", "gold", "spec"),
    [
        ("math", "4 boys and 8 girls. <answer>12</answer>", "12", {}),
        ("choice", "A is tempting. <answer>B</answer> (not C)", "B", {}),
        ("exact", "so <answer> a  b </answer>", "a b", {}),
        ("reasoning_gym", "so <answer>36</answer>", "36",
         {"dataset": "chain_sum", "entry": {"answer": "36", "metadata": {}}}),
    ],
)  # fmt: skip
def test_every_kind_reads_the_last_answer_block(kind, text, gold, spec):
    """F4: the block counts, and what stands around it does not."""
    assert check(kind, text, gold, spec) == 1.0
    assert check(kind, text.replace("<answer>", "<answer>7</answer><answer>"), gold, spec) == 1.0
    assert check(kind, f"{text} <answer>7</answer>", gold, spec) == 0.0


def test_a_number_beside_the_answer_block_pays_nothing():
    assert check("math", "4 boys and 8 girls. <answer>12</answer>", "8", {}) == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{7}. On reflection, \boxed{8}.", "8"),
        (r"\boxed{\frac{\sqrt{3}}{\sqrt{2}+1}}", r"\frac{\sqrt{3}}{\sqrt{2}+1}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed 5", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{4} then \boxed{5", "4"),  # a box that never closes holds nothing
        (r"\boxed{4} then \boxed{}", ""),
        (r"\boxed{42} is the answer, as 40+2 = 42. Check with 7 apples.", "42"),
        ("The answer is 41. #### 42", "42"),
        ("**Answer:** 73", "73"),
        ("Sum is 234.\n\n**Final Answer: 73**", "73"),
        ("Answer:\n\n\\[\n\\frac{1}{2}\n\\]", r"\frac{1}{2}"),
        ("The answer is $x=2$ or $x=3$.", "$x=2$ or $x=3$"),
        ("She pays $5 and $6, so the total is $11.", "$11"),
        ("We know 3 + 4 = 7, so there are 7 ways.", "7 ways"),
        ("The answer is 60 because the angles are equal.", "60"),
        ("The sum is 42.\n\nI hope this helps!", "42"),
        ("", ""),
    ],
)
def test_the_statement_of_a_text(text, answer):
    assert stated(text, several=False, reads=is_mathematics).answer.strip("$[]\\ \n") == answer.strip("$[]\\ \n")


def test_boxes_side_by_side_are_one_list_where_the_gold_is_one():
    """F16: the last box only, unless the gold is a list."""
    text = r"The roots are \boxed{3} and \boxed{4}."
    assert check("math", text, "3,4", {}) == 1.0
    assert check("math", text, "4", {}) == 1.0
    assert check("math", text, "3", {}) == 0.0
    assert check("math", r"\boxed{3} is wrong. The roots are \boxed{4} and \boxed{5}.", "3,4,5", {}) == 0.0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("−5", "-5"), ("5²", "5^{2}"), ("x₁", "x_{1}"), ("2½", r"2\frac{1}{2}"), ("３４", "34"),
        ("3\u202f500", "3 500"),
        ("√5", r"\sqrt 5"), ("2π", r"2\pi "), ("60°", r"60^\circ "), ("≤", r"\le "), ("“a”", '"a"'),
        ("a\u200bb", "ab"),
        ("٣", "3"), ("Ｂ", "B"), ("（Ｂ）", "(B)"), ("∅", r"\emptyset "), ("é", "é"), ("10⁻³", "10^{-3}"),
    ],
)  # fmt: skip
def test_one_table_of_characters(typed, meant):
    assert plain(typed) == meant


def test_squeezing_keeps_what_separates():
    assert squeeze("2 1/2") != squeeze("21/2")
    assert squeeze("x = 5 .") == squeeze("x=5")
    assert squeeze("no solution") != squeeze("nosolution")


@pytest.mark.parametrize(
    ("kind", "gold", "spec", "problem"),
    [
        ("math", "", {}, "says nothing to compare with"),
        ("math", " $ ", {}, "says nothing to compare with"),
        ("math", r"\frac{1}{2", {}, "braces that do not close"),
        ("math", "the proof goes on " * 10, {}, "prose of 40 words"),
        ("math", r"\$18.90", {}, None),
        ("math", r"\$32,\!348", {}, None),
        ("math", r"\$36", {}, None),
        ("math", "no solution", {}, None),
        ("choice", "E", {}, "none of the options A, B, C, D"),
        ("choice", "E", {"letters": "ABCDE"}, None),
        ("choice", "(B)", {}, None),
        ("choice", "42", {}, "none of the options"),
        ("exact", "  ", {}, "empty"),
        ("exact", "a", {}, None),
        ("reasoning_gym", "", {}, None),  # its entry is the gold
    ],
)
def test_golds_are_judged_before_any_answer(kind, gold, spec, problem):
    found = gold_problem(kind, gold, spec)
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize("kind", ["math", "choice", "exact"])
@pytest.mark.parametrize(
    "unit", [" ", "(", "\\boxed{", "answer ", "answer is\n", "<answer>", "<", "$", "$x",
             "**", "\\[", "B ", "A, ", "9", "1,", "{"]
)  # fmt: skip
def test_long_texts_are_read_in_linear_time(kind, unit):
    """R14: 32,000 characters of anything, twice as long takes no four times as long; and nothing near a second."""
    gold = "B" if kind == "choice" else "7"
    for size in (32_000, 128_000):
        began = time.process_time()
        assert quick_check(kind, unit * (size // len(unit)), gold, {}) == 0.0
        assert time.process_time() - began < 0.5


@pytest.mark.parametrize("kind", ["math", "choice"])
@pytest.mark.parametrize(
    "filling", [" ", "\t", "a", "a ", "(", "1 ", "\\text{a} ", "_", "*", "and ", "0,", "-", "x=", "<"]
)
def test_long_statements_are_read_in_linear_time(kind, filling):
    for text in (
        f"x{filling * 32_000}y",
        rf"\boxed{{x{filling * (3900 // len(filling))}y}}",
        f"Answer: {filling * 2000}!",
    ):
        began = time.process_time()
        assert quick_check(kind, text, "B" if kind == "choice" else "7", {}) == 0.0
        assert time.process_time() - began < 0.5
