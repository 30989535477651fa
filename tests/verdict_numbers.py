r"""Strings of the verdict corpus whose value is a number: each generator yields (text, gold, want).

A generator draws values, spells them as models and data sets do, and compares the values it drew: `want` is known
before any verifier is asked. The wrong text is spelled like the right one and misses by little.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

Row = tuple[str, str, int]
Spell = Callable[[Any], str]

FRAMES = (
    r"\boxed{@}",
    r"$\boxed{@}$",
    r"Putting this together, we get $\boxed{@}$.",
    "\\[\n\\boxed{@}\n\\]",
    r"Therefore the result is \boxed{@}, as required.",
    "**Final Answer**\n\n$$\\boxed{@}$$",
)
THIN, NARROW, MINUS, EN_DASH = "\u2009", "\u202f", "\u2212", "\u2013"
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def framed(rng: Random, answer: str) -> str:
    return rng.choice(FRAMES).replace("@", answer)


def twins(rng: Random, text: Spell, gold: Spell, value: Any, near: Any) -> Iterator[Row]:
    """The gold's value and a near one, spelled alike and in the same frame."""
    frame = rng.choice(FRAMES)
    for said in (value, near):
        yield frame.replace("@", text(said)), gold(value), int(said == value)


def swapped_digits(value: int) -> int:
    """Two neighbouring digits change places; plus one where all digits are equal."""
    digits = list(str(value))
    for i in range(1, len(digits) - 1):
        if digits[i] != digits[i + 1]:
            digits[i], digits[i + 1] = digits[i + 1], digits[i]
            return int("".join(digits))
    return value + 1


def grouped(separator: str) -> Spell:
    return lambda value: f"{value:,}".replace(",", separator)


def integers(rng: Random) -> Iterator[Row]:
    separators = ("", ",", r"\,", "{,}", THIN, NARROW, r",\!")
    nears = (lambda v: v + 1, lambda v: v - 1, swapped_digits, lambda v: v // 10, lambda v: v * 10, lambda v: -v)
    for i in range(16):
        value = rng.randrange(1_000, 9_999_999)
        text, gold = separators[i % 7], rng.choice(["", ",", "{,}", r",\!", r"\,"])
        yield from twins(rng, grouped(text), grouped(gold), value, nears[i % len(nears)](value))


def plain(value: Fraction) -> str:
    """A fraction with a finite decimal as that decimal."""
    text = f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def slashed(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def latex(command: str = "frac") -> Spell:
    def spell(value: Fraction) -> str:
        sign = "-" if value < 0 else ""
        return rf"{sign}\{command}{{{abs(value.numerator)}}}{{{value.denominator}}}"

    return spell


def short(value: Fraction) -> str:
    return rf"\frac{value.numerator}{value.denominator}" if value.numerator < 10 > value.denominator else slashed(value)


def fractions(rng: Random) -> Iterator[Row]:
    spells: tuple[Spell, ...] = (
        latex(), latex("dfrac"), latex("tfrac"), slashed, short, plain, lambda v: plain(v) + "0",
        lambda v: f"{v.numerator} / {v.denominator}", lambda v: plain(v).removeprefix("0"),
    )  # fmt: skip
    nears = (
        lambda v: 1 / v,
        lambda v: v + Fraction(1, v.denominator),
        lambda v: v * Fraction(1001, 1000),
        lambda v: Fraction(v.numerator, v.denominator * 2),
    )
    for i in range(18):
        value = Fraction(rng.choice([1, 3, 7, 9, 11]), rng.choice([2, 4, 5, 8]))
        near = nears[i % 4](value)
        text = spells[i % 9]
        if text(Fraction(5)) == "5" and any(near.denominator % p == 0 for p in (3, 7, 9, 11)):
            near = value + Fraction(1, 1000)  # the inverse has no finite decimal
        yield from twins(rng, text, rng.choice([latex(), slashed, plain, latex("dfrac")]), value, near)


def signs(rng: Random) -> Iterator[Row]:
    def minus(sign: str, spell: Spell = str) -> Spell:
        return lambda value: (sign if value < 0 else "") + spell(abs(value))

    whole = [minus("-"), minus(MINUS), minus(EN_DASH), minus("- "), lambda v: f"{{{v}}}", lambda v: f"{v:+d}"]
    for i, text in enumerate(whole * 2):
        value = -rng.randrange(2, 60)
        near = -value if i % 2 else value - 1
        yield from twins(rng, text, minus(rng.choice(["-", "-", MINUS])), value, near)
    broken: list[Spell] = [
        lambda v: rf"\frac{{{v.numerator}}}{{{v.denominator}}}",
        lambda v: rf"\frac{{{abs(v.numerator)}}}{{{'-' if v < 0 else ''}{v.denominator}}}",
        minus(MINUS, latex("dfrac")),
        minus(MINUS, slashed),
    ]
    for text in broken:
        value = -Fraction(rng.choice([2, 4, 5]), rng.choice([3, 7, 9]))
        yield from twins(rng, text, latex(), value, -value)


def plus_minus(rng: Random) -> Iterator[Row]:
    spells = (r"\pm {}", "±{}", r"x = \pm {}", r"{}, -{}", r"\{{-{}, {}\}}", r"x = {} \text{{ or }} x = -{}")
    golds = (r"\pm {}", r"\{{{}, -{}\}}", "-{}, {}", "±{}")
    for i, spell in enumerate(spells):
        n, gold = rng.randrange(2, 30), golds[i % 4]
        frame = rng.choice(FRAMES)
        for said in (spell.format(n, n), str(n), f"-{n}", spell.format(n + 1, n + 1)):
            yield frame.replace("@", said), gold.format(n, n), int(said == spell.format(n, n))
        yield framed(rng, golds[(i + 1) % 4].format(n, n)), gold.format(n, n), 1


def percentages(rng: Random) -> Iterator[Row]:
    spells = (r"{}\%", "{}%", r"{} \%", "{} percent", r"{}\text{{ percent}}", "{}", r"{}\,\%", r"\text{{{}\%}}")
    for i, spell in enumerate(spells * 2):
        value = rng.choice([Decimal(rng.randrange(11, 97)), Decimal(rng.randrange(11, 97)) + Decimal("0.5")])
        near = [value + 1, value / 10, value - Decimal("0.1"), 101 - value][i % 4]
        gold = rng.choice([r"{}\%", "{}%", "{}"])
        yield from twins(rng, lambda v, s=spell: s.format(v), lambda v, g=gold: g.format(v), value, near)
    for value in (35, 64):
        yield f"That is a rise of {value}%.\n\nThe answer is {value}%.", rf"{value}\%", 1
        yield f"That is a rise of {value}%.\n\nThe answer is {value}%.", rf"{value + 1}\%", 0


CURRENCIES: dict[str, tuple[str, ...]] = {
    "$": (r"\${}", "${}", r"{}\text{{ dollars}}", "{} dollars", r"\$ {}"),
    "£": ("£{}", r"\text{{£}}{}", r"\pounds {}"),
    "€": ("€{}", r"{}\text{{ €}}", "{} euros"),
    "¢": (r"{}\text{{ cents}}", "{} cents", "{}¢"),
}


def money(rng: Random) -> Iterator[Row]:
    amounts = (lambda: f"{rng.randrange(2, 99)}", lambda: f"{rng.randrange(1, 90)}.{rng.randrange(11, 99)}")
    for i, (mark, spell) in enumerate((m, s) for m, spells in CURRENCIES.items() for s in spells):
        amount = amounts[i % 2]() if mark != "¢" else amounts[0]()
        gold = rng.choice([spell, CURRENCIES[mark][0], "{}"]).format(amount)
        cent = f"{Decimal(amount) + (Decimal('0.01') if '.' in amount else 1)}"
        yield from twins(rng, spell.format, lambda _, g=gold: g, amount, cent)
        other = rng.choice([s[0] for m, s in CURRENCIES.items() if m != mark])
        if gold != amount:  # against a plain gold the mark says nothing
            yield framed(rng, other.format(amount)), gold, 0
            yield framed(rng, amount), gold, 1
    for amount in (1_450, 32_700):
        yield f"Altogether they raised **${amount:,}**.", rf"\${amount:,}".replace(",", r",\!"), 1
        yield f"Altogether they raised **${amount + 10:,}**.", rf"\${amount:,}".replace(",", r",\!"), 0
        yield rf"\boxed{{\${amount:,}.00}}", f"{amount}", 1


UNITS: tuple[tuple[tuple[str, ...], str], ...] = (  # spellings of one unit, and another unit
    ((r"{}\text{{ cm}}", r"{}\,\text{{cm}}", r"{}~\mathrm{{cm}}", "{} cm"), r"{}\text{{ mm}}"),
    ((r"{}\text{{ cm}}^2", r"{} \text{{ cm}}^{{2}}", "{} cm²", r"{}\,\mathrm{{cm}}^2"), r"{}\text{{ cm}}^3"),
    ((r"{}\text{{ km/h}}", "{} km/h", r"{} \mathrm{{km/h}}"), r"{}\text{{ m/s}}"),
    ((r"{}\text{{ hours}}", "{} hours", r"{} \textrm{{ hours}}"), r"{}\text{{ minutes}}"),
    ((r"{}\text{{ kg}}", "{} kg", r"{}\;\text{{kg}}"), r"{}\text{{ g}}"),
)


def units(rng: Random) -> Iterator[Row]:
    for spells, other in UNITS:
        for i, spell in enumerate(spells):
            value = rng.randrange(3, 90)
            gold = rng.choice([spells[0], spells[-1], "{}"]) if i else spells[0]
            yield from twins(rng, spell.format, gold.format, value, value + rng.choice([1, -1, 10]))
            if gold != "{}":
                yield framed(rng, other.format(value)), gold.format(value), 0
        yield framed(rng, "31"), spells[1].format(31), 1
    degrees = (r"{}^\circ", r"{}^{{\circ}}", "{}°", r"{}\text{{ degrees}}", "{} degrees", r"{}\degree")
    for spell in degrees:
        value = rng.randrange(10, 170)
        yield from twins(rng, spell.format, rng.choice([*degrees[:2], "{}"]).format, value, 180 - value + (value == 90))


def improper(mixed: tuple[int, int, int]) -> Fraction:
    """Whole, top, bottom; the sign of the whole is the sign of all."""
    whole, top, bottom = mixed
    return (-1 if whole < 0 else 1) * (abs(whole) + Fraction(top, bottom))


def mixed_numbers(rng: Random) -> Iterator[Row]:
    spells = (r"{}\frac{{{}}}{{{}}}", r"{} \dfrac{{{}}}{{{}}}", "{} {}/{}", r"{}\frac{}{}", r"{}\,\tfrac{{{}}}{{{}}}")
    for i, spell in enumerate(spells * 2):
        whole = rng.randrange(2, 12) * (-1 if i > 6 else 1)
        top, bottom = rng.choice([(1, 2), (3, 4), (2, 5), (5, 8)])
        written, value = spell.format(whole, top, bottom), improper((whole, top, bottom))
        product = Fraction(whole * top, bottom)  # "2 1/2" read as 2 * 1/2
        glued = Fraction(int(f"{whole}{top}"), bottom)  # ... or as 21/2
        for said in (value, product if i % 2 else glued):
            yield framed(rng, rng.choice([latex(), slashed, plain])(said)), written, int(said == value)
        near = spell.format(whole + 1, top, bottom)
        yield framed(rng, written), rng.choice([latex(), plain])(value), 1
        yield framed(rng, near), rng.choice([latex(), plain])(value), 0


def positional(mantissa: str, power: int) -> str:
    return f"{Decimal(mantissa).scaleb(power):f}"


def scientific(rng: Random) -> Iterator[Row]:
    spells: tuple[Callable[[str, int], str], ...] = (
        lambda m, p: f"{m}e{p}",
        lambda m, p: f"{m}E{p}",
        lambda m, p: rf"{m} \times 10^{{{p}}}",
        lambda m, p: rf"{m} \cdot 10^{{{p}}}",
        lambda m, p: rf"{m}\times10^{p}" if 0 < p < 10 else rf"{m}\times10^{{{p}}}",
        lambda m, p: f"{m}×10^{p}" if p > 0 else f"{m}×10^({p})",
        lambda m, p: f"{m} × 10{str(p).translate(SUPERSCRIPTS)}",
        positional,
    )
    for i, spell in enumerate(spells * 2):
        m, p = f"{rng.randrange(11, 99) / 10}", rng.randrange(3, 10) * (-1 if i >= 8 else 1)
        near = [(m, p + 1), (m, -p), (f"{Decimal(m) * Decimal('1.001'):f}", p), (m, p - 1)][i % 4]
        gold = rng.choice([spells[2], spells[3], positional, spells[0]])
        yield from twins(rng, lambda v, s=spell: s(*v), lambda v, g=gold: g(*v), (m, p), near)


def tiny_and_huge(rng: Random) -> Iterator[Row]:
    long = 31_415_926_535_897_932_384
    equal = [
        (r"10^{350}", "1" + "0" * 350),
        (r"2^{900}", r"4^{450}"),
        (r"3^{300}", r"9^{150}"),
        (r"6.63 \times 10^{-34}", r"6.63\cdot 10^{-34}"),
        (r"1.38 \times 10^{-23}", "1.38e-23"),
        ("0.0000000004", r"4 \times 10^{-10}"),
        (r"5\times 10^{-12}", r"\frac{5}{10^{12}}"),
        (str(long), f"{long:,}"),
        (r"25!", "15511210043330985984000000"),
        (r"2^{64}-1", "18446744073709551615"),
    ]
    unequal = [
        (r"10^{350}", r"10^{351}"),
        (r"2^{900}", r"2^{901}"),
        (r"3^{300}", r"3^{300}+1"),
        (r"6.63 \times 10^{-34}", r"9.27\times 10^{-24}"),
        (r"1.67 \times 10^{-27}", r"1.38 \times 10^{-23}"),
        ("0.0000000004", r"4 \times 10^{-11}"),
        (r"10^{-40}", "0"),
        (str(long + 1), str(long)),
        (r"5 \times 10^{-13}", r"5\times 10^{-12}"),
        (r"2^{64}", "18446744073709551615"),
    ]
    for want, rows in ((1, equal), (0, unequal)):
        for text, gold in rows:
            yield framed(rng, text), gold, want


def bases(rng: Random) -> Iterator[Row]:
    spells = ("{}_{}", "{}_{{{}}}", r"{}_{{\text{{{}}}}}", "({})_{}")
    for i, spell in enumerate(spells * 2):
        base = rng.randrange(4, 9)
        digits = "".join(str(rng.randrange(1, base)) for _ in range(4))
        last = digits[:-1] + str(int(digits[-1]) - 1)
        frame, gold = rng.choice(FRAMES), ("{}_{}", "{}_{{{}}}")[i % 2].format(digits, base)
        for d, b in ((digits, base), (digits, base + 1), (last, base)):
            yield frame.replace("@", spell.format(d, b)), gold, int((d, b) == (digits, base))
        yield frame.replace("@", digits), gold, 1


KINDS = (
    integers, fractions, signs, plus_minus, percentages, money, units, mixed_numbers, scientific, tiny_and_huge, bases,
)  # fmt: skip
