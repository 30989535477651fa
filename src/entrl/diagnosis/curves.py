"""Metric rows as curves that grow: what the rules ask of a run, found without reading the rows before again.

    mean of the newest tenth, of the first tenth          of `SHORT` points at least
    how many of the newest are such and such              a curve of zeros and ones, summed
    the rows since a metric was logged the n-th last time

A row is read once for each curve that was ever asked for, so a look costs no more late in a run than early. Sums are
exact (fractions): a mean is the float nearest to the mean of its points, however long the run.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from fractions import Fraction
from typing import Any

Row = Mapping[str, Any]
SHORT = 3  # points of a mean at either end of a run, at least


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def tenth(count: int, least: int = SHORT) -> int:
    """How many of so many points are the newest, or the first."""
    return min(count, max(least, math.ceil(count / 10)))


class Curve:
    """Finite numbers in their order."""

    def __init__(self, numbers: Iterable[float] = ()) -> None:
        self.numbers: list[float] = []
        self._sums = [Fraction(0)]
        for number in numbers:
            self.add(number)

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, number: float) -> None:
        self.numbers.append(number)
        self._sums.append(self._sums[-1] + Fraction(number))

    def newest(self, count: int) -> Fraction:
        """Sum of the last `count`, which there are."""
        return self._sums[-1] - self._sums[len(self) - count]

    def start_mean(self) -> float | None:
        count = tenth(len(self))
        return float(self._sums[count] / count) if count else None

    def end_mean(self) -> float | None:
        count = tenth(len(self))
        return float(self.newest(count) / count) if count else None


def start_mean(numbers: Iterable[float]) -> float | None:
    """Mean of the first tenth, at least the first 3 points; None of nothing."""
    return Curve(numbers).start_mean()


def end_mean(numbers: Iterable[float]) -> float | None:
    """Mean of the last tenth, at least the last 3 points; None of nothing."""
    return Curve(numbers).end_mean()


class Curves:
    """Rows of one run, in the order of their steps."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows: list[Row] = []
        self.names: dict[str, None] = {}  # of all that was logged, in the order of their first appearance
        self._curves: dict[Hashable, Curve] = {}
        self._taken: dict[Hashable, int] = {}  # rows that a curve has taken in
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        self.rows.append(row)
        self.names.update(dict.fromkeys(row))

    def read(self, key: Hashable, number: Callable[[int, Row], float | None]) -> Curve:
        """The curve of this key, by what `number` says of a row and its place; None: no point."""
        curve = self._curves.setdefault(key, Curve())
        for at in range(self._taken.get(key, 0), len(self.rows)):
            if (found := number(at, self.rows[at])) is not None:
                curve.add(found)
        self._taken[key] = len(self.rows)
        return curve

    def of(self, name: str) -> Curve:
        """The numbers of a metric; what is no finite number is left out."""
        return self.read(name, lambda _, row: row[name] if is_finite(row.get(name)) else None)

    def over(self, name: str, bound: float) -> Curve:
        """1 where the number of a metric is above the bound, 0 where it is not."""
        return self.read(
            (name, "over", bound), lambda _, row: float(row[name] > bound) if is_finite(row.get(name)) else None
        )

    def since(self, name: str, count: int) -> list[Row]:
        """The rows from the `count`-th last on that logged this; none where there are fewer."""
        at = self.read((name, "at"), lambda at, row: at if name in row else None).numbers
        return self.rows[int(at[-count]) :] if len(at) >= count else []
