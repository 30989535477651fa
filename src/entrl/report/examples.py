"""Completions for a person to read: the same problem before and after training, thinking told from the answer.

Evaluations keep the completions of their first problems (`examples`); without them two completions of training stand
here, of the median length in the first and the last step that recorded any, and of different problems.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from entrl.report.metrics import by_task
from entrl.report.read import RunRecord

LONGEST = 1500  # characters of a part; what is beyond is counted
NAMES = {"think": "thinking", "open": "tag", "close": "tag", "answer": "answer", "tool": "tool"}


class Part(NamedTuple):
    phase: str  # of `NAMES`, or ""
    name: str
    text: str


class Completion(NamedTuple):
    when: str
    prompt: str
    right: bool | None
    tokens: int | None
    parts: list[Part]


class Example(NamedTuple):
    prompt: str
    answer: str  # the right one; "" unknown
    both: list[Completion]


class Examples(NamedTuple):
    note: str
    shown: list[Example]


def examples_of(run: RunRecord) -> Examples | None:
    """None where the run left no text."""
    before, after = by_task(run.eval_before), by_task(run.eval_after)
    pairs = [
        (old, new)
        for task in after
        for new in after[task].get("examples") or ()
        for old in before.get(task, {}).get("examples") or ()
        if old["id"] == new["id"]
    ]
    if pairs:
        shown = [
            Example(new["prompt"], str(new["answer"]), [_read(o, "before"), _read(new, "after")]) for o, new in pairs
        ]
        return Examples("The first problems of the evaluation, answered before and after training.", shown)
    return _of_training(run)


def _read(example: Mapping[str, Any], when: str) -> Completion:
    parts = [_part(str(phase), str(text)) for phase, text in example["text"]]
    return Completion(f"{when} training", "", example.get("right"), example.get("tokens"), [p for p in parts if p.text])


def _part(phase: str, text: str) -> Part:
    beyond = len(text) - LONGEST
    if beyond > 0:
        text = f"{text[:LONGEST]} … ({beyond:,} more characters)"
    return Part(phase, NAMES.get(phase, ""), text.strip() if phase in ("open", "close") else text)


def _of_training(run: RunRecord) -> Examples | None:
    by_step: dict[Any, list[Mapping[str, Any]]] = {}
    for completion in run.completions:
        by_step.setdefault(completion.get("step"), []).append(completion)
    if not by_step:
        return None
    steps = list(by_step)
    ends = dict.fromkeys((steps[0], steps[-1]))
    both = [_recorded(_median(by_step[step]), f"training step {step}") for step in ends]
    note = "Completions of training, of median length in their step; the problems are different ones."
    return Examples(note, [Example("", "", both)])


def _median(completions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return sorted(completions, key=lambda c: len(c["tokens"]))[len(completions) // 2]


def _recorded(completion: Mapping[str, Any], when: str) -> Completion:
    tokens = [str(token) for token in completion["tokens"]]
    phases = [str(p) for p in completion.get("phases") or ()][: len(tokens)]
    labelled = zip([*phases, *[""] * (len(tokens) - len(phases))], tokens, strict=True)
    parts = [_part(phase, "".join(t for _, t in same)) for phase, same in groupby(labelled, key=lambda x: x[0])]
    return Completion(when, prompt_text(completion.get("prompt")), None, len(tokens), [p for p in parts if p.text])


def prompt_text(prompt: Any) -> str:
    """A prompt as text; conversations as role: content."""
    if isinstance(prompt, list):
        return "\n".join(f"{m.get('role')}: {m.get('content')}" if isinstance(m, dict) else str(m) for m in prompt)
    return "" if prompt is None else str(prompt)
