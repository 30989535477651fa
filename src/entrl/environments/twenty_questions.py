"""Twenty questions over a table: ask about attributes, then name the row that is meant.

    row columns   table_id, target, user_noise (0), max_questions (20), seed (0); others are ignored
    answer        drawn from the table's likelihood with the row's seed, once per (episode, question)
    belief        exact Bayes over the rows, with the same likelihood

Source:  method card information-gain, sections 7.3, 8 and 10.1
Needs:   numpy
"""

import functools
from typing import Any

import numpy as np

from entrl.beliefs import ExactBayes
from entrl.beliefs.errors import InvalidDistribution
from entrl.beliefs.estimators import Observation, OnContradiction
from entrl.beliefs.information import Array, entropy_bits
from entrl.environments.events import (
    CERTAIN,
    BadArguments,
    InquiryEnv,
    OwnReward,
    draw,
    listed,
    matched,
    pick,
    shown,
)
from entrl.environments.table_files import table_of_row
from entrl.environments.tables import YES_NO, Table

INSTRUCTION = "Find the hidden one. Ask about one attribute at a time, then submit its name."


@functools.lru_cache(maxsize=64)
def game_prompt(table: Table, show: str) -> str:
    """The message that opens a game. show: `table` tells every row, `names` the names and the attributes only."""
    between = ", " if any(" " in question for question in table.questions) else " "
    if show == "names":
        words, names = (between.join(table.questions), " ".join(table.hypotheses))
        return f"{INSTRUCTION}\n\nAttributes: {words}\nNames: {names}"
    cell = _word if table.answers[:2] == YES_NO else _pair
    lines = []
    for name, values in zip(table.hypotheses, table.values, strict=True):
        words = [cell(table, question, value) for question, value in zip(table.questions, values, strict=True)]
        lines.append(f"{name}: {between.join(word for word in words if word)}".rstrip())
    return f"{INSTRUCTION}\n\n" + "\n".join(lines)


def _word(table: Table, question: str, value: int) -> str:
    """Only what is true; a third answer is named."""
    return ("", question)[value] if value < 2 else f"{question}={table.answers[value]}"


def _pair(table: Table, question: str, value: int) -> str:
    return f"{question}={table.answers[value]}"


class TwentyQuestions(InquiryEnv):
    """Tools `ask(attribute)` and `submit(answer)` over the table of the row."""

    def __init__(
        self,
        *,
        on_contradiction: OnContradiction = "ignore",
        assumed_noise: float | None = None,
        name_ruled_out: bool = False,
    ) -> None:
        """assumed_noise: what the belief takes the user's noise to be; None: what it is.

        name_ruled_out: an answer also names what it has ruled out ("no; not mizo, karu"), which spares a small model
            the search through the table. The target is never among them: belief and user share one likelihood.
        """
        if name_ruled_out and assumed_noise is not None:
            raise ValueError("name_ruled_out with assumed_noise could rule out the target aloud; leave one of them out")
        self._name_ruled_out = name_ruled_out
        if assumed_noise is not None and not 0 <= assumed_noise <= 1:
            raise InvalidDistribution(f"assumed_noise must be in [0, 1] or None, got {assumed_noise}")
        self._assumed = assumed_noise
        super().__init__(on_contradiction=on_contradiction)

    def reset(self, **row: Any) -> None:
        """Start the episode of one row; ValueError when the row names no table or a target that is not in it."""
        if not isinstance(row.get("table_id"), str):
            raise ValueError(f"the row has no column 'table_id' with a table's name, got {sorted(row)}")
        table = table_of_row(row["table_id"])
        if row.get("target") not in table.hypotheses:
            raise ValueError(f"target {row.get('target')!r} is not in table {table.table_id!r}")
        self._clear(row)
        self._table: Table = table
        self._target = str(row["target"])
        self._belief_noise = self._noise if self._assumed is None else self._assumed
        self._estimator = self._build(table)

    def _build(self, table: Table) -> ExactBayes:
        return ExactBayes(
            table.hypotheses,
            table.questions,
            lambda question: table.likelihood(question, noise=self._belief_noise),
            prior=table.prior,
            on_contradiction=self._on_contradiction,
        )

    def ask(self, attribute: str) -> str:
        """
        Ask whether the hidden one has an attribute.

        Args:
            attribute: The attribute to ask about.

        Returns:
            The answer.
        """
        return self._call(lambda: self._ask(attribute), question=True)

    def submit(self, answer: str) -> str:
        """
        Submit the name of the hidden one. This ends the inquiry.

        Args:
            answer: The name.

        Returns:
            Whether it is right.
        """
        return self._call(lambda: self._submit(answer), question=False)

    def _ask(self, attribute: object) -> str:
        question = matched(attribute, self._table.questions, "attribute")
        truth = self._table.likelihood(question, noise=self._noise)
        return self._observed("ask", question, truth)

    def _observed(self, tool: str, question: str, truth: Array) -> str:
        """Draw the answer to a question with the (K, A) likelihood `truth`, and take it in."""
        best, before = self._best_expected(question), self._estimator.entropy()
        chance = truth[self._table.hypotheses.index(self._target)]
        answer = pick(chance, draw(self._seed, self._table.table_id, self._target, question))
        was_possible = self._estimator.belief.probs > 0
        seen: Observation = self._estimator.observe(question, answer, target=self._target)
        certain = int(self._estimator.entropy() <= CERTAIN < before)
        text = self._table.render(question, seen.answer)
        if self._name_ruled_out:
            out = was_possible & (self._estimator.belief.probs == 0)
            names = [name for name, gone in zip(self._table.hypotheses, out, strict=True) if gone]
            text += f"; not {', '.join(names)}" if names else ""
        return self._question(tool, question, text, seen, best_expected=best, resolved=certain)

    def _open_gains(self) -> Array:
        """(Q,) expected gains in bits under the belief as it is now, 0 for what was asked. One product for all."""
        tensor = self._table.tensor(self._belief_noise)
        probs = self._estimator.belief.probs
        gains = entropy_bits(probs @ tensor) - entropy_bits(tensor) @ probs
        asked = set(self._estimator.asked)
        return np.where([question in asked for question in self._table.questions], 0.0, np.maximum(gains, 0.0))

    def _best_expected(self, question: str) -> float:
        return float(self._open_gains().max())

    def _submit(self, answer: object) -> str:
        name = matched(answer, self._table.hypotheses, "name")
        right = name == self._target
        return self._submission(name, float(right), "Correct." if right else f"Wrong, it is {self._target}.")


class _OpenBayes(ExactBayes):
    """Questions beyond the closed set, as long as the environment has a likelihood for them."""

    def likelihood(self, question: str) -> Any:
        return self._likelihood(question)


class TwentyQuestionsAny(TwentyQuestions):
    """With a second tool, `ask_any(attributes)`: balanced splits without free text. For tables answered no or yes."""

    def reset(self, **row: Any) -> None:
        """As `TwentyQuestions.reset`; ValueError for a table whose answers are not two."""
        super().reset(**row)
        if len(self._table.answers) != 2:
            answers = listed(self._table.answers)
            raise ValueError(f"ask_any needs a table answered no or yes, {self._table.table_id!r} has {answers}")

    def ask_any(self, attributes: list[str]) -> str:
        """
        Ask whether the hidden one has at least one of several attributes.

        Args:
            attributes: The attributes to ask about.

        Returns:
            The answer.
        """
        return self._call(lambda: self._ask_any(attributes), question=True)

    def _build(self, table: Table) -> ExactBayes:
        self._parts: dict[str, list[str]] = {}  # of the disjunctions asked
        return _OpenBayes(
            table.hypotheses,
            table.questions,
            lambda key: self._any_likelihood(key, self._belief_noise),
            prior=table.prior,
            on_contradiction=self._on_contradiction,
        )

    def _any_likelihood(self, key: str, noise: float) -> Array:
        """(K, 2) of "any of these?"; the user makes up the answer as a whole, so the noise falls on it once."""
        if key not in self._parts:
            return self._table.likelihood(key, noise=noise)
        no = np.prod([self._table.likelihood(name)[:, 0] for name in self._parts[key]], axis=0)
        sure = np.stack([no, 1 - no], 1)
        return (1 - noise) * sure + noise * (1 - sure)

    def _ask_any(self, attributes: object) -> str:
        given = attributes.split(",") if isinstance(attributes, str) else attributes
        if not isinstance(given, list | tuple) or not given:
            raise BadArguments(f"attributes must be a list of attributes, got {shown(attributes)}")
        wanted = {matched(one, self._table.questions, "attribute") for one in given}
        names = [name for name in self._table.questions if name in wanted]  # one order, so that repeats are known
        key = " or ".join(names)
        if len(names) > 1:  # one alone is the same question as `ask`
            self._parts[key] = names
        return self._observed("ask_any", key, self._any_likelihood(key, self._noise))

    def _best_expected(self, question: str) -> float:
        """Of the single attributes and this question: the best of all disjunctions is too many to look at."""
        return max(super()._best_expected(question), self._estimator.expected_gain(question))


class ScoredTwentyQuestions(OwnReward, TwentyQuestions):
    """`TwentyQuestions` that brings its own reward."""
