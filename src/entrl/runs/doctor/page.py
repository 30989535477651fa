"""An examination as text: a table of completions to read, shares, what was looked at, what is wrong."""

from collections.abc import Iterator
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entrl.runs.doctor.examination import Examination
from entrl.runs.doctor.sampled import Row, Sampled
from entrl.runs.wording import one_line

LONGEST = 160  # characters of a cell, cut in the middle
SHOWN = 2  # completions of a prompt
SHARES = {
    "right": "right",
    "unverified": "not verified",
    "without_answer": "without an answer",
    "truncated": "truncated",
    "without_closing_tag": "without a closing tag",
    "flat_groups": "groups without spread",
}


def render(found: Examination, *, width: int | None = None) -> str:
    """width: of the table, in characters; None: the terminal's."""
    return "\n".join(lines(found, width=width))


def lines(found: Examination, *, table: bool = True, width: int | None = None) -> Iterator[str]:
    if found.sampled is not None:
        if table:
            yield _table(found.sampled, width)
        shares = ", ".join(f"{found.sampled.shares[key]:.0%} {words}"
                           for key, words in SHARES.items() if key in found.sampled.shares)  # fmt: skip
        yield f"of {len(found.sampled.rows)} completions: {shares}"
        yield f"start: {', '.join(_reach(found.sampled))}"
    yield from (f"{name}: {value}" for name, value in found.facts.items())
    yield from (f"error: {one_line(text)}" for text in found.errors)
    yield from (f"warning: {one_line(text)}" for text in found.warnings)
    yield from (f"not checked: {one_line(text)}" for text in found.unchecked)
    yield _verdict(found)


def _verdict(found: Examination) -> str:
    if found.errors:
        return f"{len(found.errors)} error(s): do not train this"
    return f"{len(found.warnings)} warning(s)" if found.warnings else "nothing found"


def _reach(seen: Sampled) -> Iterator[str]:
    for k, reach in seen.pass_at_k.items():
        if reach["value"] is not None:
            low, high = reach["ci"]
            yield f"pass@{k} {reach['value']:.2f} [{low:.2f}, {high:.2f}] over {reach['problems']} problems"


def _table(seen: Sampled, width: int | None) -> str:
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, expand=True)
    for name, ratio in {"prompt": 3, "thinking": 4, "answer": 3}.items():
        table.add_column(name, ratio=ratio, overflow="fold")
    for name in ("gold", "verdict", "reward"):
        table.add_column(name, max_width=16, overflow="fold")
    for row in _shown(seen):
        thinking = "".join(text for phase, text in row.phases if phase in ("open", "think", "close"))
        answer = "".join(text for phase, text in row.phases if phase in ("answer", ""))
        verdict = f"{row.verdict}{', cut' if row.truncated else ''}"
        reward = "" if row.reward is None else f"{row.reward:.2f}"
        cells = (row.prompt, thinking, answer, row.gold, verdict, reward)
        table.add_row(*(Text(_cut(cell)) for cell in cells))
    out = StringIO()
    console = Console(file=out, width=width or Console().width, color_system=None)
    console.print(table)
    return out.getvalue().rstrip()


def _shown(seen: Sampled) -> Iterator[Row]:
    counts: dict[str, int] = {}
    for row in seen.rows:
        counts[row.problem] = counts.get(row.problem, 0) + 1
        if counts[row.problem] <= SHOWN:
            yield row


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
