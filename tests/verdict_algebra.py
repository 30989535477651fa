r"""Strings of the verdict corpus that are more than one number: expressions, lists, regions, equations, matrices.

Values are tuples of integers or exact fractions; `want` compares them, never a verifier.
"""

from collections.abc import Iterator
from random import Random

from verdict_numbers import FRAMES, Row, framed, twins


def told(rng: Random, gold: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> Iterator[Row]:
    """Hand-made spellings of one value, and of its neighbours."""
    for want, texts in ((1, right), (0, wrong)):
        for text in texts:
            yield framed(rng, text), gold, want


def roots_and_constants(rng: Random) -> Iterator[Row]:
    for _ in range(4):
        a, b = rng.randrange(2, 8), rng.choice([2, 3, 5, 7])
        frame = rng.choice(FRAMES)
        squared = rf"\sqrt{{{a * a * b}}}"
        for said in (rf"{a}\sqrt{{{b}}}", rf"{a}\sqrt{b}", rf"{a}*\sqrt{{{b}}}"):
            yield frame.replace("@", said), squared, 1
        for said in (rf"{a + 1}\sqrt{{{b}}}", rf"{a}\sqrt{{{b + 1}}}", rf"{a * a * b}"):
            yield frame.replace("@", said), squared, 0
    yield from told(
        rng, r"\frac{1}{\sqrt{5}}", (r"\frac{\sqrt{5}}{5}", r"5^{-1/2}"), (r"\frac{\sqrt{5}}{2}", r"\sqrt{5}")
    )
    yield from told(
        rng, r"\frac{5\pi}{6}", (r"\dfrac{5\pi}{6}", r"\frac{5}{6}\pi", r"5\pi/6"), (r"\frac{5\pi}{3}", r"\frac{5}{6}")
    )
    yield from told(rng, r"\sqrt[3]{16}", (r"2\sqrt[3]{2}", r"16^{1/3}"), (r"2\sqrt{2}", r"4\sqrt[3]{2}"))
    yield from told(rng, r"\ln 8", (r"3\ln 2", r"\ln(8)"), (r"2\ln 3", r"\ln 9"))
    yield from told(rng, r"-\infty", (r"-\infty", "-∞"), (r"\infty", r"+\infty"))
    yield from told(rng, r"\binom{7}{3}", ("35", r"\binom{7}{4}"), (r"\binom{7}{2}", "34"))
    yield from told(rng, r"e^{3}", (r"e^3", r"e \cdot e^2"), (r"3e", r"e^{-3}"))


def unicode_mathematics(rng: Random) -> Iterator[Row]:
    rows = [
        ("3√7", r"3\sqrt{7}", "7√3"),
        ("√(15)", r"\sqrt{15}", "√(16)"),
        ("4π", r"4\pi", "3π"),
        ("π/6", r"\frac{\pi}{6}", "π/8"),
        ("∞", r"\infty", "-∞"),
        ("x² − 9", r"x^2-9", "x² + 9"),
        ("2³", "8", "3²"),
        ("¾", r"\frac{3}{4}", "¼"),
        ("1½", r"\frac{3}{2}", "½"),
        ("6 × 7", "42", "6 + 7"),
        ("5 · 11", "55", "5.11"),
        ("9 ÷ 4", r"\frac{9}{4}", "4 ÷ 9"),
        ("x ≤ 4", r"x \le 4", "x ≥ 4"),
        ("[2, ∞)", r"[2,\infty)", "(2, ∞)"),
        ("x ∈ (0, 5)", r"(0,5)", "x ∈ (0, 6)"),
        ("（3, 8）", "(3,8)", "（8, 3）"),
        ("１７", "17", "７１"),
        ("∅", r"\emptyset", "{0}"),
    ]
    for i, (text, gold, near) in enumerate(rows):
        frame = "The answer is @." if i % 2 else rng.choice(FRAMES)
        yield frame.replace("@", text), gold, 1
        yield frame.replace("@", near), gold, 0


def tuples(rng: Random) -> Iterator[Row]:
    spells = (
        lambda v: f"({', '.join(map(str, v))})",
        lambda v: f"({','.join(map(str, v))})",
        lambda v: rf"\left({', '.join(map(str, v))}\right)",
        lambda v: r"\left( " + r",\, ".join(map(str, v)) + r" \right)",
        lambda v: rf"\langle {', '.join(map(str, v))} \rangle",
        lambda v: rf"\big({', '.join(map(str, v))}\big)",
    )
    for i, text in enumerate(spells * 3):
        value = tuple(rng.sample(range(-9, 30), 2 + i % 2))
        near = [value[::-1], (value[0] + 1, *value[1:]), (*value[:-1], -value[-1] or 1)][i % 3]
        yield from twins(rng, text, spells[1], value, near)
    yield from told(
        rng, r"\left(\frac{3}{2}, -4\right)", ("(1.5, -4)", "(3/2,-4)"), ("(-4, 1.5)", "(1.5, 4)", "(2/3,-4)")
    )


def sets_and_lists(rng: Random) -> Iterator[Row]:
    spells = (
        lambda v: rf"\{{{', '.join(map(str, v))}\}}",
        lambda v: rf"\left\{{{','.join(map(str, v))}\right\}}",
        lambda v: ", ".join(map(str, v)),
        lambda v: ",".join(map(str, v)),
        lambda v: rf"{', '.join(map(str, v[:-1]))} \text{{ and }} {v[-1]}",
        lambda v: rf"\lbrace {', '.join(map(str, v))} \rbrace",
    )
    for i, text in enumerate(spells * 3):
        value = rng.sample(range(1, 60), 2 + i % 3)
        near = [value[:-1], [*value, 61], [*value[:-1], value[-1] + 60]][i % 3] if len(value) > 2 else [value[0], 63]
        gold, frame = (spells[0] if i % 6 in (0, 1, 5) else spells[2]), rng.choice(FRAMES)
        shuffled = rng.sample(value, len(value)) if gold is spells[0] else value  # a set knows no order
        yield frame.replace("@", text(shuffled)), gold(value), 1
        yield frame.replace("@", text(near)), gold(value), int(set(near) == set(value))


def regions(rng: Random) -> Iterator[Row]:
    table = [
        ("[{a},{b})", (r"[{a}, {b})", r"{a} \le x < {b}", r"x \in [{a},{b})", r"\left[{a}, {b}\right)"),
         ("[{a},{b}]", "({a},{b})", r"{a} < x < {b}", "[{a},{c})")),
        (r"(-\infty,{a}]", (r"x \leq {a}", r"{a} \ge x", r"\left(-\infty, {a}\right]"),
         (r"x \geq {a}", r"x < {a}", r"(-\infty,{a})")),
        (r"x > {b}", (r"({b},\infty)", r"({b}, +\infty)", r"{b} < x"), (r"x \ge {b}", r"({a},\infty)", r"x < {b}")),
        (r"(-\infty,{a})\cup({b},\infty)",
         (r"(-\infty, {a}) \cup ({b}, \infty)", r"x<{a} \text{{ or }} x>{b}", r"({b},\infty)\cup(-\infty,{a})"),
         (r"({a},{b})", r"(-\infty,{a}]\cup[{b},\infty)", r"(-\infty,{a})\cup({c},\infty)")),
        (r"[{a},{b}]\cup[{c},{d}]", (r"[{a}, {b}] \cup [{c}, {d}]", r"[{c},{d}]\cup[{a},{b}]"),
         (r"[{a},{d}]", r"[{a},{b}]\cap[{c},{d}]")),
    ]  # fmt: skip
    for gold, right, wrong in table:
        ends = dict(zip("abcd", sorted(rng.sample(range(2, 40), 4)), strict=True))
        for want, texts in ((1, right), (0, wrong)):
            for text in texts:
                yield framed(rng, text.format(**ends)), gold.format(**ends), want


def equations(rng: Random) -> Iterator[Row]:
    single = (("{}", "x={}"), ("x={}", "{}"), ("n = {}", "{}"), ("a = {}", "b={}"), ("x = {}", "x={}"))
    for text, gold in single:
        value = rng.randrange(3, 99)
        yield from twins(rng, text.format, gold.format, value, value + 1)
    several = (
        (r"x = {} \text{{ or }} x = {}", "{}, {}"),
        (r"x={}, x={}", "{},{}"),
        (r"x_1 = {}, x_2 = {}", "{}, {}"),
        (r"x = {}, {}", r"x={} \text{{ or }} x={}"),
        (r"{}, {}", "x={}, x={}"),
        (r"x = {} \quad \text{{and}} \quad x = {}", "{}, {}"),
    )
    for text, gold in several:
        a, b = sorted(rng.sample(range(2, 50), 2))
        yield from twins(rng, lambda v, t=text: t.format(*v), lambda v, g=gold: g.format(*v), (a, b), (a, b + 1))
    yield from told(
        rng, "x=3, y=8", ("x = 3, y = 8", r"x=3,\ y=8", r"x = 3 \text{ and } y = 8"), ("x=8, y=3", "x=3, y=9")
    )
    yield from told(
        rng, "5x+2y=10", ("10x + 4y = 20", "5x + 2y - 10 = 0", "2y = 10 - 5x"), ("5x-2y=10", "5x+2y=11", "2x+5y=10")
    )
    yield from told(rng, "y=4x-7", ("y = 4x - 7", "y=-7+4x", "4x - y = 7"), ("y=4x+7", "y=-4x-7", "y = 7x - 4"))
    yield from told(rng, "x^2+y^2=49", ("x^2 + y^2 = 7^2", "y^2+x^2=49"), ("x^2+y^2=7", "x^2-y^2=49"))


def term(coefficient: int, power: str) -> str:
    if not coefficient:
        return ""
    size = "" if abs(coefficient) == 1 and power else str(abs(coefficient))
    return f"{'-' if coefficient < 0 else '+'}{size}{power}"


def expressions(rng: Random) -> Iterator[Row]:
    for i in range(8):
        a, b = rng.sample([n for n in range(-9, 10) if n], 2)
        factored = f"(x{-a:+d})(x{-b:+d})"
        near = [(a, b + 1), (-a, b), (a, -b)][i % 3]
        expanded = ["x^2" + term(-sum(v), "x") + term(v[0] * v[1], "") for v in ((a, b), near)]
        frame = rng.choice(FRAMES)
        for want, said in ((1, expanded[0]), (0, expanded[1])):
            yield frame.replace("@", said), factored, want
        yield frame.replace("@", f"(x{-b:+d})(x{-a:+d})"), expanded[0], 1
        yield frame.replace("@", f"(x{-near[0]:+d})(x{-near[1]:+d})"), expanded[0], 0
    yield from told(
        rng, "3x^2-2x+5", ("f(x) = 3x^2 - 2x + 5", "5-2x+3x^2", "p(x)=3x^2-2x+5"), ("3x^2+2x+5", "f(x)=3x^2-2x-5")
    )
    yield from told(
        rng,
        r"\frac{n(n-1)}{2}",
        (r"\frac{n^2-n}{2}", r"\binom{n}{2}", r"\dfrac{1}{2}n(n-1)"),
        (r"\frac{n(n+1)}{2}", r"n(n-1)"),
    )
    yield from told(rng, r"2^{n+1}-2", (r"2(2^n-1)", r"2\cdot 2^n - 2"), (r"2^{n}-2", r"2^{n+1}-1"))
    yield from told(
        rng, r"\frac{x+1}{x-4}", (r"\dfrac{x+1}{x-4}", r"(x+1)/(x-4)"), (r"\frac{x-4}{x+1}", r"\frac{x+1}{x+4}")
    )
    yield from told(rng, "a-2b", ("-2b+a", "a - 2b"), ("2b-a", "b-2a"))
    yield from told(
        rng, r"\sin x \cos x", (r"\cos x \sin x", r"\sin(x)\cos(x)"), (r"\sin x + \cos x", r"\sin x \sin x")
    )


def complex_numbers(rng: Random) -> Iterator[Row]:
    for i in range(7):
        a, b = rng.randrange(1, 20), rng.randrange(2, 20)
        text = (lambda v: f"{v[0]}{v[1]:+d}i", lambda v: f"{v[1]}i{v[0]:+d}", lambda v: f"{v[0]} {v[1]:+d}i")[i % 3]
        near = [(a, -b), (-a, b), (a, b + 1), (a + 1, b)][i % 4]
        yield from twins(rng, text, lambda v: f"{v[0]}{v[1]:+d}i", (a, b), near)


def matrices(rng: Random) -> Iterator[Row]:
    def matrix(kind: str, gap: str = r" \\ ", cell: str = " & "):
        return lambda v: rf"\begin{{{kind}}} {gap.join(cell.join(map(str, row)) for row in v)} \end{{{kind}}}"

    spells = (matrix("pmatrix"), matrix("bmatrix"), matrix("pmatrix", r"\\", "&"), matrix("bmatrix", " \\\\\n", " & "))
    for i, text in enumerate(spells * 2):
        a, b, c, d = rng.sample(range(-9, 12), 4)
        value = ((a, b), (c, d)) if i % 2 else ((a,), (b,), (c,))
        near = tuple(zip(*value, strict=True)) if i % 4 == 1 else ((-a or 1, *value[0][1:]), *value[1:])
        yield from twins(rng, text, matrix("pmatrix"), value, near)


KINDS = (
    roots_and_constants, unicode_mathematics, tuples, sets_and_lists, regions, equations, expressions, complex_numbers,
    matrices,
)  # fmt: skip
