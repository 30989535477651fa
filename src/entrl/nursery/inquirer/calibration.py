"""What the tiny inquirer can and cannot do yet: games on test tables, greedy and sampled, beside two that compute.

RL needs a signal (it is right far more often than a guess), headroom (it asks more than greedy exact gain does, or is
right less often), and calls that a parser reads. A model without these is refused.
"""

from functools import partial
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entrl.environments.model_policy import ModelPolicy
from entrl.environments.play import play, values_of
from entrl.environments.policies import GreedyExact, RandomQuestions
from entrl.environments.rows import twenty_questions_rows
from entrl.environments.twenty_questions import TwentyQuestions

TEST_SEED = 2_000_000
ROWS = COLUMNS = 8  # the size that is measured
GAME = partial(TwentyQuestions, name_ruled_out=True)  # what the lessons are about
KEPT = ("success", "submitted", "questions", "gain_per_question", "repeat_rate", "invalid", "refused")
LONGEST = 400  # tokens of a dialogue after its prompt: 20 questions need 221


def games_of(count: int) -> list[dict[str, Any]]:
    """Rows of the test side; no lesson was about any of their tables."""
    return [
        dict(r) for r in twenty_questions_rows(split="test", size=count, seed=TEST_SEED, rows=ROWS, columns=COLUMNS)
    ]


def calibrate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, games: int = 300, seed: int = 0, batch: int = 100
) -> dict[str, Any]:
    """Means over the same games for each player; `None` where a metric has no episode."""
    rows = games_of(games)
    options: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "seed": seed, "max_completion_length": LONGEST}
    players = {
        "sampled": ModelPolicy(temperature=1.0, **options),
        "greedy": ModelPolicy(temperature=0.0, **options),
        "random_questions": RandomQuestions(seed=seed),
        "greedy_exact": GreedyExact(),
    }
    played = {name: play(GAME, rows, player, batch=batch) for name, player in players.items()}
    return {"games": games, "rows": ROWS, "columns": COLUMNS} | {
        name: _means([values_of(one) for one in episodes]) for name, episodes in played.items()
    }


def _means(values: list[dict[str, float | None]]) -> dict[str, float | None]:
    known = {name: [v[name] for v in values if v[name] is not None] for name in KEPT}
    return {name: round(fmean(found), 4) if found else None for name, found in known.items()}  # type: ignore[arg-type]


def complaints(measured: dict[str, Any]) -> list[str]:
    """Why RL should not start here; empty for a good base."""
    found = []
    sampled, best = measured["sampled"], measured["greedy_exact"]
    if sampled["success"] < 0.5:
        found.append(f"sampled success is {sampled['success']:.3f}, under 0.5: too little signal")
    if sampled["submitted"] < 0.95:
        found.append(f"only {sampled['submitted']:.3f} of the sampled games end with a name")
    if sampled["success"] > 0.9 * best["success"] and sampled["questions"] < 1.2 * best["questions"]:
        found.append(f"it plays nearly as well as greedy exact gain ({sampled['questions']:.2f} questions): no room")
    return found
