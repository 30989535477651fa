"""Policies play environments; what came of it, with intervals.

    normalised gain     sum of realised gains / H0
    entropy area        mean over t = 1 .. budget of H_t / H0, H_t staying what it was once the questions have ended:
                        1 learns nothing, lower learns earlier
    gain per question   sum of realised gains / questions, over episodes that asked

Every number is a mean over episodes; intervals are 95 %: Wilson's for shares, a bootstrap over episodes for means. Rows
of one table share its difficulty, so with few tables the intervals are too narrow.

Source:  method card information-gain, section 10.1
Needs:   numpy
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from entrl.environments.events import malformed_call
from entrl.stats.intervals import bootstrap_interval, wilson_interval

Message = dict[str, Any]


class Policy(Protocol):
    """Something that plays. `restart` comes before a list of rows, so that the same list gives the same episodes."""

    name: str

    def restart(self) -> None: ...

    def play(self, environments: Sequence[Any], prompts: Sequence[list[Message]]) -> list[list[Message]]:
        """Play environments that were just reset to the end; the messages that followed each prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One dialogue. Gains in bits, one per question in the order asked; a repeated one has gain 0."""

    problem_id: Any
    table_id: str | None
    policy: str
    correct: bool
    submitted: bool
    score: float  # share of the submission that is right, 0 without one
    questions: int
    repeats: int
    contradictions: int
    invalid: int  # calls that are malformed, have bad arguments, or name a tool that is not there
    refused: int  # calls after the budget or after the answer
    budget: int
    h0: float
    gains: tuple[float, ...]  # realised
    expected: tuple[float, ...]
    entropies: tuple[float, ...]  # after each question
    asked: tuple[tuple[str, str], ...]  # (question, answer as it was read), in order
    history: tuple[tuple[str, str], ...]  # (question, column of its answer), each question once
    target: str
    transcript: tuple[Message, ...]


def play(
    factory: Callable[[], Any], rows: Sequence[Mapping[str, Any]], policy: Policy, *, batch: int = 32
) -> list[Episode]:
    """An episode for each row (a data set's columns, with `prompt`), in their order; `batch` of them side by side."""
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    if not len(rows):
        raise ValueError("no rows to play; give the task a size >= 1")
    rows = list(rows)
    environments = [factory() for _ in range(min(batch, len(rows)))]
    policy.restart()
    episodes = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        used = environments[: len(part)]
        prompts = [opened(row["prompt"], env.reset(**row)) for row, env in zip(part, used, strict=True)]
        played = policy.play(used, prompts)
        episodes += [
            episode(env, row, policy.name, messages) for env, row, messages in zip(used, part, played, strict=True)
        ]
    return episodes


def opened(prompt: list[Message], observation: str | None) -> list[Message]:
    """The prompt with what `reset` said at the end of its last message, as TRL does it."""
    if observation is None:
        return list(prompt)
    last = prompt[-1]
    return [*prompt[:-1], {**last, "content": last["content"] + observation}]


def episode(environment: Any, row: Mapping[str, Any], policy: str, messages: Sequence[Message]) -> Episode:
    """What an environment remembers of the dialogue it had."""
    asked = [event for event in environment._events if event.correct is None]
    steps = [event.step for event in asked]
    unknown_tools = sum(m["role"] == "tool" and m["content"].startswith("{'error': ") for m in messages)
    return Episode(
        problem_id=row.get("problem_id"),
        table_id=row.get("table_id"),
        policy=policy,
        correct=environment._correct is True,
        submitted=environment._correct is not None,
        score=environment._score or 0.0,
        questions=len(asked),
        repeats=sum(event.repeated for event in asked),
        contradictions=sum(event.contradiction for event in asked),
        invalid=environment._invalid + unknown_tools + sum(map(malformed_call, messages)),
        refused=environment._refused,
        budget=environment._budget,
        h0=environment._prior_entropy(),
        gains=tuple(step.realised for step in steps),
        expected=tuple(step.expected for step in steps),
        entropies=tuple(step.h_after for step in steps),
        asked=tuple((event.key, event.answer) for event in asked),
        history=tuple(history_of(environment)),
        target=environment._target,
        transcript=tuple(messages),
    )


def history_of(environment: Any) -> list[tuple[str, str]]:
    """Questions with the column of their answer, each once, as `entrl.beliefs.random_histories` writes them."""
    return [(question, str(answer)) for question, answer in environment._estimator._answers.items()]


def entropy_area(played: Episode) -> float:
    """Mean of H_t / H0 over the budget's questions; 0 where there was nothing to learn."""
    if played.h0 <= 0 or played.budget < 1:
        return 0.0
    curve = list(played.entropies[: played.budget])
    last = curve[-1] if curve else played.h0
    return fmean([*curve, *[last] * (played.budget - len(curve))]) / played.h0


def values_of(played: Episode) -> dict[str, float | None]:
    """The numbers of one episode; None where it has none."""
    gain = sum(played.gains)
    return {
        "success": float(played.correct),
        "submitted": float(played.submitted),
        "score": played.score,
        "questions": float(played.questions),
        "gain": gain,
        "expected_gain": sum(played.expected),
        "normalised_gain": gain / played.h0 if played.h0 > 0 else None,
        "gain_per_question": gain / played.questions if played.questions else None,
        "entropy_area": entropy_area(played),
        "repeat_rate": played.repeats / played.questions if played.questions else None,
        "contradictions": float(played.contradictions),
        "invalid": float(played.invalid),
        "refused": float(played.refused),
    }


SHARES = ("success", "submitted")  # of episodes, each 0 or 1


def score(episodes: Sequence[Episode], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """For each metric its mean, 95 % interval and the number of episodes it is a mean of (None for none)."""
    return score_values([values_of(played) for played in episodes], seed=seed)


def score_values(rows: Sequence[Mapping[str, float | None]], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """`score` of episodes of which only `values_of` is left."""
    if not rows:
        raise ValueError("no episodes to score; play some rows first")
    return {name: _summary(name, [row[name] for row in rows], seed) for name in rows[0]}


def _summary(name: str, values: Sequence[float | None], seed: int) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    if not known:
        return {"mean": None, "lo": None, "hi": None, "n": 0}
    if name in SHARES:
        lo, hi = wilson_interval(int(sum(known)), len(known))
    else:
        lo, hi = bootstrap_interval(np.array(known), seed=seed)
    return {"mean": fmean(known), "lo": lo, "hi": hi, "n": len(known)}


def paired(first: Sequence[Episode], second: Sequence[Episode], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Mean of second - first over the same rows, with a bootstrap interval; rows without a metric are left out."""
    if [e.problem_id for e in first] != [e.problem_id for e in second]:
        raise ValueError("the two lists are of different rows; play both policies on the same rows")
    a, b = [values_of(e) for e in first], [values_of(e) for e in second]
    found = {}
    for name in a[0]:
        pairs = [(x[name], y[name]) for x, y in zip(a, b, strict=True)]
        known = [y - x for x, y in pairs if x is not None and y is not None]
        lo, hi = bootstrap_interval(np.array(known), seed=seed) if known else (None, None)
        found[name] = {"mean": fmean(known) if known else None, "lo": lo, "hi": hi, "n": len(known)}
    return found
