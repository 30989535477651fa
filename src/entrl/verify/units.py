"""Units of a quantity, as far as two answers may differ in them: 12 cm, 12 centimeters, 0.12 m.

`unit` brings the words behind a number to (name, factor): the same name means the same thing measured, and factors
convert within it. A unit that is not in the table keeps its own words ("apples"), singular, in small letters.
"""

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """What is measured and in how many of its smallest part; "" measures nothing."""

    name: str
    factor: Fraction = Fraction(1)


def _table() -> dict[str, tuple[str, Fraction]]:
    rows = """
        length: mm=millimeter,millimetre 1/1000; cm=centimeter,centimetre 1/100; dm=decimeter,decimetre 1/10;
          m=meter,metre 1; km=kilometer,kilometre 1000; in=inch,inches 127/5000; ft=foot,feet 381/1250;
          yd=yard 1143/1250; mi=mile 201168/125
        mass: mg=milligram 1/1000; g=gram,gm 1; kg=kilogram,kilo 1000; t=tonne,metric ton 1000000
        avoirdupois: oz=ounce 1; lb=pound,lbs 16
        time: ms=millisecond 1/1000; s=second,sec 1; min=minute 60; h=hour,hr 3600; day=d 86400; week=wk 604800
        months: month=mo 1; year=yr,years old,year old 12
        volume: ml=mL,milliliter,millilitre 1; l=L,liter,litre 1000
        dollar: dollar=usd,USD,buck 1; cent=¢ 1/100
        pound sterling: £=GBP,gbp 1
        euro: euro=eur,EUR,€ 1
        yen: yen=¥,JPY,yuan,RMB 1
        rupee: rupee=₹,Rs,INR 1
        angle: degree=deg,\\circ 1
        percent: percent=%,per cent,pct,percentage,percentage point,percent point 1
        force: N=newton 1; kN=kilonewton 1000
        energy: J=joule 1; kJ=kilojoule 1000
        power: W=watt 1; kW=kilowatt 1000
        charge: C=coulomb 1
        potential: V=volt 1
        current: A=ampere,amp 1
        frequency: Hz=hertz 1; kHz=kilohertz 1000
        pressure: Pa=pascal 1; kPa=kilopascal 1000
        temperature: K=kelvin 1
        amount: mol=mole 1
        celsius: celsius=\\circ C,degree celsius,degrees celsius 1
        fahrenheit: fahrenheit=\\circ F,degree fahrenheit,degrees fahrenheit 1
        radian: radian=rad 1
    """
    found: dict[str, tuple[str, Fraction]] = {}
    for line in re.split(r"\n\s+(?=[a-z ]+:)", rows.strip()):
        name, _, members = line.strip().partition(": ")
        for member in members.split(";"):
            words, _, factor = member.strip().rpartition(" ")
            for word in re.split("[=,]", words):
                found[word.strip()] = name.strip(), Fraction(factor)
    return found


KNOWN = _table()
NOTHING = {"", "unit", "square unit", "cubic unit", "unit^2", "unit^3", "sq unit", "th", "st", "nd", "rd", "in total",
           "total", "times", "time", "number", "of them"}  # fmt: skip
COUNTS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
POWERS = (
    (re.compile(r"^(?:square|sq\.?)\s+(.+)$"), r"\1^2"),
    (re.compile(r"^(?:cubic|cu\.?)\s+(.+)$"), r"\1^3"),
    (re.compile(r"^(.+?)\s+squared$"), r"\1^2"),
    (re.compile(r"^(.+?)\s+cubed$"), r"\1^3"),
)


def unit(words: str) -> Unit:
    """The unit that these words name."""
    words = re.sub(r"\s+", " ", words.replace("\\", "" if "circ" not in words else "\\")).strip(" .~*")
    words = re.sub(r"\^\{?(-?\d)\}?", r"^\1", words)
    words = re.sub(r"\s*\^\s*", "^", words)
    words = re.sub(r"(?<=\w)[ .](\w+)\^-(\d)", r"/\1^\2", words).replace("^1", "")
    words = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h"}.get(words, words)
    words = re.sub(r"\s*/\s*|\s+per\s+|\s+an?\s+(?=hour|minute|second|day|week|year)", "/", words)
    if _single(words) in NOTHING:
        return Unit("")
    if (simple := _known(words)) is not None:
        return Unit(*simple)
    above, *below = words.split("/")
    parts = [_power(part) for part in (above, *below)]
    factor = parts[0][1]
    for _, divisor in parts[1:]:
        factor /= divisor
    return Unit("/".join(name for name, _ in parts), factor)


def known(words: str) -> bool:
    """Whether every part of a unit is in the table: only then may it stand right behind a number."""
    if words in ("mph", "kph", "kmh", "kmph"):
        return True
    parts = [re.sub(r"\^\{?-?\d\}?$", "", part).strip(" .") for part in re.split(r"/|\s+per\s+", words)]
    return all(_known(p) is not None or _single(p) in NOTHING for p in parts)


def _known(word: str) -> tuple[str, Fraction] | None:
    for form in (word, word.lower() if len(word) > 2 else word, _single(word)):
        if form in KNOWN:
            return KNOWN[form]
    return None


def _single(word: str) -> str:
    word = word.lower() if len(word) > 2 else word
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word


def _power(word: str) -> tuple[str, Fraction]:
    word = word.strip()
    for pattern, form in POWERS:
        word = pattern.sub(form, word)
    base, _, power = word.partition("^")
    name, factor = _known(base.strip()) or (_single(base.strip()), Fraction(1))
    if not power.lstrip("-").isdigit():
        return name, factor
    cubed = {"length^3": ("volume", Fraction(10**6))}.get(f"{name}^{power}")
    return (cubed[0], factor**3 * cubed[1]) if cubed else (f"{name}^{power}", factor ** int(power))
