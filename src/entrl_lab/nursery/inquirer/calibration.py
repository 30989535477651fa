"""What the tiny inquirer and the tiny specifier can and cannot do yet: test games, greedy and sampled, beside two that
compute.

RL needs a signal (it is right far more often than a guess), headroom (it asks more or less well than greedy exact gain
does, or is right less often), and calls that a parser reads. A model without these is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entrl.environments.diagram import DiagramShort
from entrl.environments.model_policy import ModelPolicy
from entrl.environments.play import play, values_of
from entrl.environments.policies import GreedyExact, RandomQuestions
from entrl.environments.twenty_questions import TwentyQuestions
from entrl.tasks.inquiries import diagram_rows, twenty_questions_rows

TEST_SEED = 2_000_000
LONGEST = 400  # tokens of a dialogue after its prompt: 20 questions need 221
KEPT = (*("success", "score", "submitted", "questions", "gain_per_question", "repeat_rate", "invalid", "refused"),)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model is measured on, and why it may be refused."""

    game: Callable[[], Any]  # the environment, as the lessons are about it
    rows: Callable[..., Any]
    options: dict[str, Any]  # of `rows`
    complaints: Callable[[dict[str, Any]], list[str]]

    def games(self, count: int) -> list[dict[str, Any]]:
        """Rows of the test side; no lesson was about any of them."""
        return [dict(r) for r in self.rows(split="test", size=count, seed=TEST_SEED, **self.options)]


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    measured: Measured,
    *,
    games: int = 300,
    seed: int = 0,
    batch: int = 100,
) -> dict[str, Any]:
    """Means over the same games for each player; `None` where a metric has no episode."""
    rows = measured.games(games)
    options: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "seed": seed, "max_completion_length": LONGEST}
    players = {
        "sampled": ModelPolicy(temperature=1.0, **options),
        "greedy": ModelPolicy(temperature=0.0, **options),
        "random_questions": RandomQuestions(seed=seed),
        "greedy_exact": GreedyExact(),
    }
    played = {name: play(measured.game, rows, player, batch=batch) for name, player in players.items()}
    return (
        {"games": games}
        | measured.options
        | {name: _means([values_of(one) for one in episodes]) for name, episodes in played.items()}
    )


def _means(values: list[dict[str, float | None]]) -> dict[str, float | None]:
    known = {name: [v[name] for v in values if v[name] is not None] for name in KEPT}
    return {name: round(fmean(found), 4) if found else None for name, found in known.items()}  # type: ignore[arg-type]


def _inquirer_complaints(measured: dict[str, Any]) -> list[str]:
    """Why RL should not start here; empty for a good base."""
    sampled, best = measured["sampled"], measured["greedy_exact"]
    found = _no_submission(sampled)
    if sampled["success"] < 0.5:
        found.append(f"sampled success is {sampled['success']:.3f}, under 0.5: too little signal")
    if sampled["success"] > 0.9 * best["success"] and sampled["questions"] < 1.2 * best["questions"]:
        found.append(f"it plays nearly as well as greedy exact gain ({sampled['questions']:.2f} questions): no room")
    return found


def _specifier_complaints(measured: dict[str, Any]) -> list[str]:
    """The same for the diagram game, where the share of slots that are right is the signal."""
    sampled, best = measured["sampled"], measured["greedy_exact"]
    found = _no_submission(sampled)
    if sampled["score"] < 0.4:
        found.append(f"{sampled['score']:.3f} of the slots are right in sampled games, under 0.4: too little signal")
    if sampled["score"] > 0.95 * best["score"]:
        found.append(f"it plays nearly as well as greedy exact gain ({sampled['score']:.3f} of the slots): no room")
    return found


def _no_submission(sampled: dict[str, Any]) -> list[str]:
    if sampled["submitted"] >= 0.95:
        return []
    return [f"only {sampled['submitted']:.3f} of the sampled games end with a submission"]


INQUIRER = Measured(
    game=partial(TwentyQuestions, name_ruled_out=True),
    rows=twenty_questions_rows,
    options={"rows": 8, "columns": 8},
    complaints=_inquirer_complaints,
)
SPECIFIER = Measured(
    game=partial(DiagramShort, slot_in_answer=True),
    rows=diagram_rows,
    options={"slots": 5, "max_questions": 3},
    complaints=_specifier_complaints,
)
