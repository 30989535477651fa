"""The picture of a length study as one SVG file: every arm's tokens and accuracy, seeds and 95 % intervals, arm by arm.

Rows instead of a plane of tokens and accuracy: the arms of such a study lie close together in accuracy, where labels of
points would cover each other. The file stands alone (a README shows it), so it brings its own few colours.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from entrl.report.drawing import Frame, span
from entrl_lab.replicate.analyses.length import ACCURACY, TOKENS
from entrl_lab.replicate.summary import blocks_of

ROW, HEAD, TITLE = 24, 56, 26  # heights in the SVG's units: a row, axis and labels, a panel's heading
NAMES, TOKENS_WIDTH, ACCURACY_WIDTH = 230, 420, 290  # widths: arm names, and the two plots
VALUE = 40  # width of a value behind the last plot
FEWEST = 3  # seeds from which on an interval is drawn: that of two is as wide as the page
COLOURS = {"control": "#66635e", "tested": "#d55e00", "other": "#0072b2"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#3a3835} .grid{stroke:#eceae6} .head{font-size:14px;font-weight:600}"
    " .reach{fill:none;stroke-width:2.5;stroke-linecap:round} .zero{stroke:#8a8680} .margin{stroke:#8a8680;"
    "stroke-dasharray:4 3}"
)

Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # arm -> seed -> numbers


def picture(result: Mapping[str, Any]) -> str | None:
    """One panel for each task of each `length` analysis; None where a study has none that was measured."""
    blocks = blocks_of(result)
    panels = [
        (_title(analysis["title"], task), found, blocks[task]["values"])
        for analysis in result.get("analyses", [])
        for task, found in analysis["tasks"].items()
        if analysis["use"] == "length" and found["measured"]
    ]
    if not panels:
        return None
    labels = {name: arm.get("label", name) for name, arm in result["arms"].items()}
    body, top, width = "", 0.0, NAMES + TOKENS_WIDTH + ACCURACY_WIDTH + VALUE
    for title, found, values in panels:
        height = ROW * len(found["arms"]) + HEAD
        body += f'<text class="head" x="8" y="{top + 18:.0f}">{escape(title)}</text>'
        body += _placed(_tokens(found, values, height, labels), 0, top + TITLE, NAMES + TOKENS_WIDTH, height)
        body += _placed(_accuracy(found, values, height), NAMES + TOKENS_WIDTH, top + TITLE, ACCURACY_WIDTH, height)
        top += TITLE + height + 14
    seeds = max(arm["seeds"] for _, found, _ in panels for arm in found["arms"].values())
    line = labels[result["reference"]]
    note = f"Means over up to {seeds} seeds (small dots), 95 % t intervals of {FEWEST} or more."
    note += f" Solid line: {line}; dashed: the margin."
    body += f'<text x="8" y="{top + 8:.0f}">{escape(note)}</text>'
    box = f'viewBox="0 0 {width} {top + 18:.0f}" width="{width}" height="{top + 18:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="Tokens and accuracy of every arm">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def _title(title: str, task: str) -> str:
    return f"{title}, {task}" if task and task not in title else title


def _placed(svg: str, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{x}" y="{y:.0f}" width="{width}" height="{height}" overflow="visible"'
    return svg.replace("<svg ", f"<svg {place} ", 1)


def _tokens(found: Mapping[str, Any], values: Values, height: int, labels: Mapping[str, str]) -> str:
    size = {"width": NAMES + TOKENS_WIDTH, "height": height, "left": NAMES}
    frame = _frame(found, values, TOKENS, 1.0, **size, zero=True, labels=labels)
    frame.x_label = "tokens of a sampled completion"
    return frame.svg()


def _accuracy(found: Mapping[str, Any], values: Values, height: int) -> str:
    frame = _frame(found, values, ACCURACY, 100.0, width=ACCURACY_WIDTH, height=height, left=16, zero=False)
    frame.x_label = "sampled accuracy, %"
    return frame.svg()


def _frame(
    found: Mapping[str, Any],
    values: Values,
    number: str,
    scale: float,
    *,
    width: int,
    height: int,
    left: int,
    zero: bool,
    labels: Mapping[str, str] | None = None,
) -> Frame:
    arms = list(reversed(found["arms"]))  # the first at the top
    seeds = {arm: [scale * row[number] for row in values[arm].values()] for arm in arms}
    ends = {arm: _ends(found["arms"][arm]["numbers"][number], seeds[arm], scale) for arm in arms}
    reference = ends[found["reference"]][0] if found["reference"] in ends else None
    margin = None if zero or reference is None else reference - scale * found["margin"]
    shown = [v for arm in arms for v in (*ends[arm], *seeds[arm])] + ([] if margin is None else [margin])
    frame = Frame(
        x=span(shown, share=0.09, zero=zero),
        y=(-0.7, len(arms) - 0.3),
        rows=[""] * len(arms) if labels is None else [labels[arm] for arm in arms],
        width=width,
        height=height,
        left=left,
        label=f"{number} of every arm",
    )
    if reference is not None:
        frame.upright(reference)
    if margin is not None:
        frame.upright(margin, kind="margin")
    for row, arm in enumerate(arms):
        mean, lo, hi = ends[arm]
        shade = COLOURS[_part(found, arm)]
        frame.reach(row, lo, hi, shade)
        for seed in seeds[arm]:
            frame.dot(seed, row, shade, radius=1.8)
        frame.dot(mean, row, shade, radius=4.5, title=f"{arm}: {mean:.4g} [{lo:.4g}, {hi:.4g}]")
        place = f'x="{frame.px(max(hi, *seeds[arm])) + 9:.1f}" y="{frame.py(row) + 4:.1f}"'
        frame.marks.append(f"<text {place}>{mean:.1f}</text>")
    return frame


def _ends(entry: Mapping[str, Any], seeds: Sequence[float], scale: float) -> tuple[float, float, float]:
    """Mean and interval; few seeds have none."""
    lo, hi = (entry["mean"] if len(seeds) < FEWEST else entry[k] for k in ("lo", "hi"))
    return scale * entry["mean"], scale * lo, scale * hi


def _part(found: Mapping[str, Any], arm: str) -> str:
    first = next(iter(found["pairs"].values()))
    return "tested" if arm == first["arm"] else "control" if arm in (first["other"], found["reference"]) else "other"
