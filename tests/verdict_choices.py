r"""Strings of the verdict corpus for multiple choice: four options A to D, many spellings of gold and answer."""

from collections.abc import Iterator
from random import Random

from verdict_numbers import Row

LETTERS = "ABCD"
FORMS = {
    "choice_bare": (
        "@", "(@)", "@.", "@)", "**@**", "**(@)**", "[@]", "$@$", "@: 17", "(@) 17 apples", "*@*", "@\n", "`@`",
        "@. The square has four equal sides.",
    ),
    "choice_boxed": (
        r"\boxed{@}", r"$\boxed{@}$", r"\boxed{(@)}", r"$\boxed{\text{@}}$", r"\boxed{\text{(@)}}",
        r"\boxed{\mathrm{(@)}}",
        r"\boxed{\textbf{@.}}", r"\boxed{\mathbf{(@)}}", r"\boxed{@.}", r"\boxed{@)}", r"\boxed{@: 17}", r"\boxed{ @ }",
        r"\boxed{(@)\ 17}", r"\boxed{\text{@. 17 apples}}", r"\boxed{\text{Option @}}", r"\boxed{\textbf{(@)}\ 17}",
        "\\[\n\\boxed{@}\n\\]", r"\boxed {@}", r"\boxed{\mathsf{@}}", r"**\boxed{@}**",
    ),
    "choice_phrased": (
        "The answer is @.", "The answer is (@).", "The answer is **@**.", "The answer is: @", "The answer is **(@)**.",
        "Answer: @", "Answer: **@**", "**Answer: (@)**", "**Answer**: @", "ANSWER: @", "Answer - @", "Answer = @",
        "The correct answer is @.", "The correct option is @.", "Final answer: @", "**Final Answer: @**",
        "Therefore, the answer is option @.", "So I pick @.", "My choice: @", "Option @", "Option @ is correct.",
        "@ is correct.", "(@) is the right answer.", "The best choice is therefore (@).", "I would go with @.",
        "Final Answer: The final answer is $@$. I hope it is correct.", "The answer is $\\text{(@)}$.", "#### @",
        "The correct choice is **@) 17**.", "Hence @ must be the answer.", "Choice @.",
    ),
    "choice_tagged": (
        "<answer>@</answer>", "<answer>(@)</answer>", "<answer>\n@\n</answer>", "<answer>@. 17 apples</answer>",
        "<answer>Option @</answer>", r"<answer>\boxed{@}</answer>", "<answer>The answer is @</answer>",
        "<think>~ looks tempting.</think>\n<answer>@</answer>", "<think>The answer is ~.</think>\nAnswer: @",
        "<answer>~</answer> Wait, no.\n<answer>@</answer>",
    ),
    "choice_languages": (
        "答案：@", "答案是 @", "答案：（@）", "正确答案是@。", "答案为 @", "Answer：(@)", "Antwort: @",
        "Die richtige Antwort ist @.", "La réponse est @.", "Réponse : @", "Respuesta: @",
        "La respuesta correcta es @.",
        "Resposta: @", "La risposta corretta è @.", "Ответ: @", "答え：@", "정답: @", "（@）",
    ),
    "choice_settled": (  # ~ is mentioned, @ is what the text settles on
        "\\boxed{~} was my first thought.\n\nAnswer: @", "Answer: ~\n\nNo, that forgets the sign.\n\nAnswer: @",
        "It cannot be ~. The answer is @.", "~ is wrong because 3 > 2. @ is correct.", "The answer is @, not ~.",
        "\\boxed{~}, or rather \\boxed{@}", "~) 12 is too small.\n@) 17 fits.\n\nTherefore the answer is @.",
        "Option ~ is out. **Answer: @**\n\nI am sure.", "Answer: @\n\nExplanation: ~ confuses mass and weight.",
    ),
}  # fmt: skip
GOLDS = (
    "@",
    "(@)",
    "@.",
    "@)",
    "@) 17",
    "@. 17 apples",
    r"\text{(@)}",
    "lower",
    r"\text{@}",
    " @ ",
    "(@) 17",
    "@: 17",
    "**@**",
    "(lower)",
)


def filled(form: str, letter: str, other: str) -> str:
    return form.replace("@", letter).replace("~", other)


def forms(name: str, rng: Random) -> Iterator[Row]:
    for form in FORMS[name]:
        letter, other = rng.sample(LETTERS, 2)
        yield filled(form, letter, other), letter, 1
        yield filled(form, other, letter), letter, 0


def choice_golds(rng: Random) -> Iterator[Row]:
    for gold in GOLDS:
        letter, other = rng.sample(LETTERS, 2)
        spelled = gold.replace("lower", letter.lower()).replace("@", letter)
        text = rng.choice([r"\boxed{@}", "The answer is (@).", "Answer: @", "**@**"])
        yield filled(text, letter, other), spelled, 1
        yield filled(text, other, letter), spelled, 0


def choice_small_and_wide(rng: Random) -> Iterator[Row]:
    """Lower case where a letter is marked as one, and the full-width letters of East Asian text."""
    small = (r"\boxed{@}", "(@)", "The answer is (@).", r"\boxed{\text{(@)}}", "<answer>@</answer>", "Answer: (@)")
    wide = ("答案：@", "答案是@。", r"\boxed{@}", "Answer: @", "（@）")
    for form, spell in [(f, str.lower) for f in small] + [(f, lambda c: chr(ord(c) + 0xFEE0)) for f in wide]:
        letter, other = rng.sample(LETTERS, 2)
        yield form.replace("@", spell(letter)), letter, 1
        yield form.replace("@", spell(other)), letter, 0


def choice_refused(rng: Random) -> Iterator[Row]:
    """No single letter of the four is chosen: 0 whatever the gold, beside the same words with a choice made."""
    traps = (
        ("Answer: A or C", "A"), ("Answer: A or C", "C"), ("The answer is B or D.", "D"), ("Both A and B", "A"),
        ("Answer: Carbon", "C"), ("The answer is Definitely not given.", "D"), ("Answer: BD", "B"), ("Answer: BD", "D"),
        ("The answer is a prime number.", "A"), ("The answer is a", "C"), ("None of the above", "A"),
        ("Answer: F", "B"),
        (r"\boxed{E}", "D"), (r"\boxed{G}", "A"), ("I cannot decide between A and B.", "B"), ("", "C"),
        (r"\boxed{A, B}", "A"), (r"\boxed{A, B}", "B"), (r"\boxed{\text{A or D}}", "D"),
        ("<think>The answer is B.", "B"),
        ("<think>The answer is C.</think>", "C"), ("I do not know.", "D"), (r"\boxed{}", "A"),
        ("<answer></answer>", "B"),
        ("A careful reader would ask for more data.", "A"), ("Answer: Because it boils.", "B"), (r"\boxed{42}", "D"),
    )  # fmt: skip
    for text, gold in traps:
        yield text, gold, 0
    chosen = (
        ("Answer: A\nB and D are traps.", "A"), ("It is either B or D. Since 3 > 2, the answer is B.", "B"),
        ("A careful reader chooses C.\n\nAnswer: C", "C"), ("Carbon, hence Answer: D", "D"),
        ("The answer is a prime number, so \\boxed{A}", "A"), ("Not A or C, so the answer is D.", "D"),
        ("I cannot decide at first. Then I see: Answer: B", "B"), ("Because it boils: (C)\n\nThe answer is (C).", "C"),
        ("Answer: D\n\nBecause it boils.", "D"), ("A is no prime and C is none.\n\nThe answer is B.", "B"),
        ("Definitely: the answer is A", "A"), ("Both A and B fail, E is no option. \\boxed{C}", "C"),
    )  # fmt: skip
    for text, gold in chosen:
        yield text, gold, 1


KINDS = (choice_golds, choice_small_and_wide, choice_refused)
