"""Plots of reports and studies as inline SVG: a frame with round ticks, and what is drawn into it.

No script, so they are there in a printed or saved page; colours and kinds of marks are those of page.css, which follows
the reader's light or dark setting. Only the curves of a report, whose axis the reader switches, are page.js's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 330, 190  # of a frame, in the SVG's own units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 20, 34
FEW_TICKS = 5


def colour(index: int) -> str:
    """One of the page's eight line colours."""
    return f"var(--run{index % 8})"


def round_ticks(lo: float, hi: float, count: int = FEW_TICKS) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [lo, hi], about `count` of them."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(lo / step - 1e-9)
    return [i * step for i in range(first, math.floor(hi / step + 1e-9) + 1)]


def span(values: Sequence[float], *, share: float = 0.06, zero: bool = False) -> tuple[float, float]:
    """Range of the finite values with a little air; (0, 1) where there is none."""
    known = [v for v in values if math.isfinite(v)] + ([0.0] if zero else [])
    if not known:
        return 0.0, 1.0
    lo, hi = min(known), max(known)
    air = (hi - lo) * share or abs(hi) * share or 1.0
    return lo - air, hi + air


def short(value: float) -> str:
    """A tick's label."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e5
    text = f"{value:.4g}" if plain else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−")


@dataclass(kw_only=True)
class Frame:
    """Axes, and marks in data coordinates; `svg` gives the text. The `title` of a mark shows under the pointer."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str = ""
    y_label: str = ""
    label: str = ""  # for readers of the page who do not see it
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    x_text: Callable[[float], str] = short
    x_ticks: Sequence[float] | None = None
    rows: Sequence[str] = ()  # names of y = 0, 1, 2, ... in place of a numeric y axis
    marks: list[str] = field(default_factory=list)

    def px(self, x: float) -> float:
        lo, hi = self.x
        return self.left + (x - lo) / (hi - lo) * (self.width - self.left - RIGHT)

    def py(self, y: float) -> float:
        lo, hi = self.y
        return self.height - BOTTOM - (y - lo) / (hi - lo) * (self.height - TOP - BOTTOM)

    def at(self, x: float, y: float) -> str:
        return f"{self.px(x):.1f} {self.py(y):.1f}"

    def line(self, xs: Sequence[float], ys: Sequence[float], stroke: str, *, kind: str = "line") -> None:
        points = [self.at(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if points:
            self.marks.append(f'<path class="{kind}" d="M{"L".join(points)}" style="stroke:{stroke}"/>')

    def band(self, xs: Sequence[float], los: Sequence[float], his: Sequence[float], fill: str) -> None:
        known = [(x, a, b) for x, a, b in zip(xs, los, his, strict=True) if math.isfinite(a) and math.isfinite(b)]
        if known:
            around = [self.at(x, b) for x, _, b in known] + [self.at(x, a) for x, a, _ in reversed(known)]
            self.marks.append(f'<path class="band" d="M{"L".join(around)}Z" style="fill:{fill}"/>')

    def dot(self, x: float, y: float, look: str, *, radius: float = 3, title: str = "", kind: str = "dot") -> None:
        """look: a colour, or with more of a style behind it, as in "red;opacity:0.5"."""
        if math.isfinite(x) and math.isfinite(y):
            inside = f"<title>{escape(title)}</title>" if title else ""
            place = f'cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="{radius}"'
            self.marks.append(f'<circle class="{kind}" {place} style="fill:{look}">{inside}</circle>')

    def reach(self, y: float, lo: float, hi: float, stroke: str) -> None:
        """A horizontal interval."""
        self.line([lo, hi], [y, y], stroke, kind="reach")

    def rise(self, x: float, lo: float, hi: float, stroke: str) -> None:
        """A vertical interval."""
        self.line([x, x], [lo, hi], stroke, kind="reach")

    def upright(self, x: float, *, kind: str = "zero") -> None:
        if self.x[0] <= x <= self.x[1]:
            self.marks.append(f'<path class="{kind}" d="M{self.at(x, self.y[0])}L{self.at(x, self.y[1])}"/>')

    def level(self, y: float) -> None:
        if self.y[0] <= y <= self.y[1]:
            self.marks.append(f'<path class="zero" d="M{self.at(self.x[0], y)}L{self.at(self.x[1], y)}"/>')

    def svg(self) -> str:
        ticks = round_ticks(*self.x) if self.x_ticks is None else self.x_ticks
        parts = [self._x_tick(x) for x in ticks]
        parts += [self._row(i, name) for i, name in enumerate(self.rows)] if self.rows else self._y_ticks()
        parts += self.marks
        middle = (self.left + self.width - RIGHT) / 2
        parts.append(_text(middle, self.height - 4, self.x_label, "middle"))
        if self.y_label:
            parts.append(_text(2, 8, self.y_label, "start"))
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label, quote=True)}">'
            f"{''.join(parts)}</svg>"
        )

    def _x_tick(self, x: float) -> str:
        line = f'<path class="grid" d="M{self.at(x, self.y[0])}L{self.at(x, self.y[1])}"/>'
        return line + _text(self.px(x), self.height - BOTTOM + 14, self.x_text(x), "middle")

    def _y_ticks(self) -> list[str]:
        return [
            f'<path class="grid" d="M{self.at(self.x[0], y)}L{self.at(self.x[1], y)}"/>'
            + _text(self.left - 5, self.py(y) + 4, short(y), "end")
            for y in round_ticks(*self.y, max(4, self.height // 50))
        ]

    def _row(self, index: int, name: str) -> str:
        return _text(self.left - 8, self.py(index) + 4, name, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""


def keys(names: Sequence[str], colours: Sequence[str]) -> str:
    """A legend."""
    items = (
        f'<span><i class="swatch" style="--run:{c}"></i>{escape(n)}</span>' for n, c in zip(names, colours, strict=True)
    )
    return f'<div class="keys">{"".join(items)}</div>'


def chart(title: str, body: str, *, note: str = "", legend: str = "") -> str:
    """A plot in its box."""
    small = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="chart"><h4>{escape(title)}</h4>{small}{legend}{body}</div>'
