"""PreSelect: prefer texts whose losses order models as their benchmark scores do.

    s_i = number of model pairs (a, b) with loss_i(a) < loss_i(b) and score(a) > score(b), or both the other way round

M models make M (M - 1) / 2 pairs; equal losses or scores count for neither. Losses are nats or bits per character, so
that long and short texts compare.

Source:  hkust-nlp/PreSelect, data_processing/fasttext/train_fasttext.py and README (six models, 15 pairs; top 10 %)
Differs: the classifier that spreads the scores to texts without losses is left out: here each prompt has its own
Needs:   a column with the losses of M models on each prompt (or on its solution), and the M benchmark scores. Any M
         models of one family will do, checkpoints of one run among them
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from entrl.curriculum.rules import Floats, Ints, Prompts, Rule
from entrl.settings.json_lines import is_number


def concordance(losses_PM: Floats, scores_M: Floats) -> Ints:
    """(P,) concordant pairs, 0 to M (M - 1) / 2."""
    first, second = np.triu_indices(losses_PM.shape[1], k=1)
    loss_sign = np.sign(losses_PM[:, first] - losses_PM[:, second])
    score_sign = np.sign(scores_M[first] - scores_M[second])
    return (loss_sign * score_sign == -1).sum(1)


def bits_per_character(nats: float, text: str) -> float:
    """Of a text whose tokens' negative log-probs sum to `nats`."""
    if not text:
        raise ValueError("an empty text has no loss per character; leave it out")
    return nats / math.log(2) / len(text)


@dataclass(kw_only=True)
class PreSelect(Rule):
    name: ClassVar[str] = "preselect"
    by_prompt: ClassVar[bool] = False

    column: str = "losses"  # of the data set: M losses for each prompt
    benchmark: Sequence[float] = field(default_factory=tuple)  # M scores, higher is better
    keep: float = 0.1  # share of the prompts that is taken, with all that equal the last of them

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"preselect: keep is a share of the prompts in (0, 1], got {self.keep}")
        if 0 < len(self.benchmark) < 2:
            raise ValueError("preselect: one model makes no pair; give the benchmark scores of two or more")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def weights(self, prompts: Prompts) -> Floats:
        models, losses_P = len(self.benchmark), prompts.columns[self.column]
        for i, losses in enumerate(losses_P):
            if not isinstance(losses, (list, tuple)) or not all(map(is_number, losses)):
                raise ValueError(
                    f"preselect: the column {self.column!r} holds {losses!r} for prompt {i}; it lists each prompt's "
                    "losses, finite numbers, one for each model: measure them, or leave the prompt out"
                )
        wrong = [i for i, losses in enumerate(losses_P) if len(losses) != models]
        if wrong or not models:
            has = f"prompt {wrong[0]} has {len(losses_P[wrong[0]])} losses" if wrong else "none"
            raise ValueError(
                f"preselect: benchmark lists the scores of {models} models, and {has}; give one score for each loss "
                f"in the column {self.column!r}"
            )
        losses_PM = np.array(losses_P, dtype=float)
        count_P = concordance(losses_PM, np.array(self.benchmark, dtype=float))
        threshold = np.sort(count_P)[::-1][math.ceil(self.keep * len(count_P)) - 1]
        return (count_P >= threshold).astype(float)


rule = PreSelect()
