r"""Strings of the verdict corpus about where the answer stands, and answers that are words, times or themselves."""

from collections.abc import Iterator
from random import Random

from verdict_numbers import Row, framed

# @ is the answer, ~ another number that the text also mentions
PHRASINGS = (
    "The answer is @.",
    "The answer is: @",
    "The answer is **@**.",
    "**Answer:** @",
    "**Answer: @**",
    "Answer: @",
    "ANSWER: @",
    "Final answer: @",
    "**Final Answer: @**",
    "First we add ~ and get more.\n\n### Answer\n@",
    "We have ~ of them at the start.\n#### @",
    "#### @",
    "Final Answer: The final answer is $@$. I hope it is correct.",
    "Final Answer: The final answer is $\\boxed{@}$. I hope it is correct.",
    "So in the end there are @ of them.",
    "~ + 1 is more than enough, so she needs @.",
    "Therefore, the answer is $@$.",
    "The answer is @, not ~.",
    "The answer is @ apples.",
    "The correct answer is thus:\n\n$$@$$",
    "Step 1: take ~.\nStep 2: remove some.\n\n**@**",
    "~ = ~ and so x = @",
    "The final answer is \\(@\\).",
    "\\[ @ \\]",
)


def filled(rng: Random, form: str) -> Iterator[Row]:
    """The gold where the answer stands, then a near one there while the gold stands elsewhere."""
    gold = rng.randrange(12, 400)
    other = gold + rng.choice([-1, 1, 10])
    yield form.replace("@", str(gold)).replace("~", str(other)), str(gold), 1
    yield form.replace("@", str(other)).replace("~", str(gold)), str(gold), 0


def final_phrasings(rng: Random) -> Iterator[Row]:
    for form in PHRASINGS:
        yield from filled(rng, form)


def answer_tags(rng: Random) -> Iterator[Row]:
    forms = (
        "<answer>@</answer>",
        "<answer> @ </answer>",
        "There are ~ girls and some boys. <answer>@</answer>",
        "<answer>@</answer>\nI checked ~ cases.",
        "<answer>\\boxed{@}</answer>",
        "<answer>$\\boxed{@}$</answer>",
        "<answer>\n@\n</answer>",
        "<answer>The answer is @.</answer>",
        "<answer>~</answer> No, that is wrong.\n<answer>@</answer>",
        "<think>~ looks right.</think>\n<answer>@</answer>",
        "<think>~ looks right.</think>\n<answer>It is \\boxed{@}</answer>",
        "A first guess is \\boxed{~}.\n<answer>@</answer>",
    )
    for form in forms:
        yield from filled(rng, form)


def boxes(rng: Random) -> Iterator[Row]:
    forms = (
        "\\boxed{~}. On second thoughts, \\boxed{@}.",
        "We get $\\boxed{~}$ if order counts. It does not, so the answer is $\\boxed{@}$.",
        "\\boxed{~}\n\n\\boxed{~}\n\n\\boxed{@}",
        "\\boxed{@} is the result, since ~ + 3 would be too many. Check: 3 + 4 = 7.",
        "**Answer:** $\\boxed{@}$\n\nVerification: ~ - 2 is not it, and 5 steps were used.",
        "\\boxed @",
        "\\boxed {@}",
        "\\boxed{ @ }",
        "\\boxed{@.}",
        "\\boxed{\\text{@}}",
        "\\boxed{\\mathbf{@}}",
        "\\boxed{x = @}",
        "\\fbox{@}",
        "$$\\boxed{\n@\n}$$",
        "\\(\\boxed{@}\\)",
        "**\\boxed{@}**",
        "\\boxed{\\boxed{@}}",
        "\\boxed{@}$",
    )
    for form in forms:
        yield from filled(rng, form)
    for a, b in ((14, 23), (6, 31)):
        yield f"The two roots are \\boxed{{{a}}} and \\boxed{{{b}}}.", f"{a}, {b}", 1
        yield f"The two roots are \\boxed{{{a}}} and \\boxed{{{b + 1}}}.", f"{a}, {b}", 0
        yield f"It is \\boxed{{{a}}} and not more. Or rather \\boxed{{{b}}}.", f"{a}", 0


def thinking(rng: Random) -> Iterator[Row]:
    forms = (
        "<think>\nLet me see: ~ and so on.\n</think>\n\n\\boxed{@}",
        "<think>\\boxed{~}</think>\\boxed{@}",
        "<think>Is it ~? No.</think>\n\nThe answer is @.",
        "First try ~.</think>\nThe answer is @.",
        "<think></think>\n\n**@**",
    )
    for form in forms:
        yield from filled(rng, form)
    for text in (
        "<think>\nSo it is \\boxed{@}",
        "<think>Therefore the answer is @.",
        "<think>\nThe answer is \\boxed{@}.\n</think>",
        "<think>\\boxed{@}</think>\n\n",
        "<think>The answer is @</think>I cannot say.",
        "<think><answer>@</answer>",
    ):
        gold = rng.randrange(12, 400)
        yield text.replace("@", str(gold)), str(gold), 0


def hash_golds(rng: Random) -> Iterator[Row]:
    solutions = (
        "Each week he saves <<4*@=@>>some coins.\nHe then has ~ left over.\n#### ",
        "She pays ~ at first and gets a part back.\n#### ",
        "There are ~ rows.\nIn all that is <<~+0=~>>~ seats before the last row.\n#### ",
    )
    for i in range(8):
        value, other = rng.randrange(1_100, 90_000), rng.randrange(11, 90)
        shown = (f"{value:,}", str(value), f"${value:,}")[i % 3]
        gold = solutions[i % 3].replace("@", str(other)).replace("~", str(other)) + shown
        for said in (value, value + 10):
            yield framed(rng, (f"{said:,}", str(said), rf"\${said:,}")[i % 3]), gold, int(said == value)
        yield f"We find {value:,} in the middle.\n#### {other}", gold, 0
        yield f"We find {other} in the middle.\n#### {value:,}", gold, 1


def hedges(rng: Random) -> Iterator[Row]:
    """Several answers are no answer, unless the gold is several; nor is saying nothing."""
    forms = (
        r"\boxed{@ \text{ or } ~}",
        "The answer is @ or ~.",
        r"\boxed{@, ~}",
        r"\boxed{\{@, ~\}}",
        r"\boxed{@ \text{ and } ~}",
    )
    for form in forms:
        a, b = sorted(rng.sample(range(2, 90), 2))
        text = form.replace("@", str(a)).replace("~", str(b))
        golds = rng.sample([f"{a}, {b}", rf"\{{{a}, {b}\}}", rf"{a} \text{{ or }} {b}", rf"{a} \text{{ and }} {b}"], 2)
        yield from ((text, gold, want) for gold, want in ((str(a), 0), (str(b), 0), (golds[0], 1), (golds[1], 1)))
    for text in ("", "I do not know.", "The problem cannot be solved.", r"\boxed{}", "Answer:", r"\boxed{?}"):
        yield text, str(rng.randrange(2, 50)), 0


def european_decimals(rng: Random) -> Iterator[Row]:
    for _ in range(4):
        whole, part = rng.randrange(2, 60), rng.randrange(1, 9)
        yield framed(rng, f"{whole},{part}"), f"{whole}.{part}", 0
        yield framed(rng, f"{whole}.{part}"), f"{whole}.{part}", 1


WORDS = (  # a gold, and something as near as another answer gets
    ("Marion", "Marian"), ("no solution", "one solution"), ("odd", "even"), ("parabola", "hyperbola"), ("yes", "no"),
    ("True", "False"), ("Tuesday", "Thursday"), ("March 14", "March 15"), ("4 July 1998", "4 July 1989"),
    ("green", "grey"), ("PQRS", "PRQS"), ("obtuse", "acute"), ("2019-03-04", "2019-04-03"),
    ("decreasing", "increasing"),
)  # fmt: skip
WORD_FRAMES = (
    r"\boxed{\text{@}}", r"\boxed{@}", "The answer is @.", "**Answer:** @", "<answer>@</answer>", r"\boxed{\textbf{@}}",
    r"\boxed{\mathrm{@}}", "The answer is **@**.", r"$\boxed{\text{@}}$", "Final answer: @",
)  # fmt: skip


def words_and_dates(rng: Random) -> Iterator[Row]:
    for i, (gold, near) in enumerate(WORDS):
        written = (rf"\text{{{gold}}}", gold)[i % 2]
        for frame in (WORD_FRAMES[i % 10], WORD_FRAMES[(i + 3) % 10]):
            if " " in gold and "mathrm" in frame:
                continue  # mathematics mode drops the space
            yield frame.replace("@", gold), written, 1
            yield frame.replace("@", near), written, 0
    for gold in ("yes", "no"):
        yield rf"\boxed{{\text{{{gold.title()}}}}}", rf"\text{{{gold}}}", 1
        yield f"**{gold.title()}**", gold, 1
        yield f"The answer is {'no' if gold == 'yes' else 'yes'}.", gold.title(), 0


def times_and_ratios(rng: Random) -> Iterator[Row]:
    spells = ("{}:{:02}", r"\text{{{}:{:02}}}", r"{}:{:02} \text{{ p.m.}}", r"{}:{:02}\text{{ a.m.}}", "{}:{:02} PM")
    for spell in spells * 2:
        hour, minute = rng.randrange(1, 12), rng.randrange(1, 59)
        frame = rng.choice([r"\boxed{@}", "The answer is @.", r"$\boxed{@}$", "**Answer:** @"])
        frame = r"\boxed{@}" if "\\" in spell else frame
        for h, m in ((hour, minute), (hour, minute + 1), (hour + 1, minute)):
            yield frame.replace("@", spell.format(h, m)), spell.format(hour, minute), int((h, m) == (hour, minute))
        yield r"\boxed{@}".replace("@", spell.format(hour, minute)), spell.format(hour, minute), 1
    yield r"\boxed{7:20 \text{ a.m.}}", r"7:20 \text{ p.m.}", 0
    for spell in ("{}:{}", "{} : {}", r"\text{{{}:{}}}", r"{}\!:\!{}"):
        a, b = rng.choice([(5, 3), (7, 2), (9, 4), (11, 6)])
        for said in ((a, b), (b, a), (a, b + 1)):
            yield framed(rng, spell.format(*said)), f"{a}:{b}", int(said == (a, b))
        yield framed(rng, spell.format(a, b)), f"{a} : {b}", 1


TWINS = (  # different answers that share most of their characters
    ("2:45", "2:54"), ("0x2B", "0x2C"), (r"\angle PQR", r"\angle QPR"), (r"a_{k}", r"a_{k+1}"), ("2nd", "3rd"),
    (r"\vec{u}", r"\vec{w}"), ("9 r 4", "9 r 5"), (r"g'(x)", "g(x)"), (r"\ge 7", r"\le 7"), ("-2", "2"),
    (r"\text{circle}", r"\text{sphere}"), ("~40", "~41"), (r"O(n^2)", r"O(n^3)"),
    (r"0.\overline{27}", r"0.\overline{72}"),
    ("4 red and 5 blue", "5 red and 4 blue"), ("m - n", "n - m"), (r"\overline{AB}", r"\overline{CD}"),
    ("12 R", "12 S"),
    (r"\mathbb{Z}", r"\mathbb{Q}"), (r"x \neq 3", "x = 3"), (r"\text{May 7}", r"\text{May 8}"), ("x<-2", "x<2"),
    (r"7^{\text{th}}", r"6^{\text{th}}"),
    (r"\begin{pmatrix} 4 \\ -9 \end{pmatrix}", r"\begin{pmatrix} 4 \\ 9 \end{pmatrix}"),
    ("print(2)", "print(3)"), (r"\log_{2} 5", r"\log_{5} 2"), ("1/0", "0"), ("8^{8^8}", "8^{8^9}"), ("u|v", "v|u"),
    (r"\{2,4,\ldots,2n\}", r"\{1,3,\ldots,2n-1\}"), ("70 percent", "7 percent"), ("LLUR", "LULR"), ("$4,500", "$4,600"),
)  # fmt: skip


def identities(rng: Random) -> Iterator[Row]:
    """A string equals itself, bare and in a box; its neighbour does not."""
    for i, (gold, near) in enumerate(TWINS):
        yield gold, gold, 1
        yield rf"\boxed{{{gold}}}", gold, 1
        yield (near, rf"\boxed{{{near}}}")[i % 2], gold, 0
        yield (gold, rf"\boxed{{{gold}}}")[i % 2], near, 0


def exact(rng: Random) -> Iterator[Row]:
    golds = (
        ("Lisbon", "Lisboa"), ("def f(n): return n", "def f(n): return -n"), ("4.0", "4"), ("b a n a n a", "b a n a n"),
        ("[1, 2, 3]", "[1, 3, 2]"), ("key=value; x", "key=value;x"), ("SOS", "sos"), ("left left up", "left up left"),
    )  # fmt: skip
    frames = ("@", "  @ \n", "<answer>@</answer>", "<think>@? Or not.</think>\n@", "Let me see.\n<answer> @ </answer>")
    for i, (gold, near) in enumerate(golds):
        for frame in (frames[i % 5], frames[(i + 2) % 5]):
            yield frame.replace("@", gold), gold, 1
            yield frame.replace("@", near), gold, 0
    yield "left\n left  up", "left left up", 1
    yield "The capital is Lisbon", "Lisbon", 0
    yield "<think>Lisbon", "Lisbon", 0


KINDS = (
    final_phrasings, answer_tags, boxes, thinking, hash_golds, hedges, european_decimals, words_and_dates,
    times_and_ratios, identities,
)  # fmt: skip
