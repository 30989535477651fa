"""A rule at work in one run: what is known of each prompt, the prompts of each rollout, and what a checkpoint holds.

The prompts of a rollout are drawn when they are asked for and kept until the pass over the data ends: a resumed run
asks for them again from the start of the pass, and must get those it had.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from entrl.curriculum.draw import draw, probabilities
from entrl.curriculum.pass_rates import Group, PassRateFile, PassRates, problem_key
from entrl.curriculum.rules import Floats, Prompts, Rule, Tried

ID, PROMPT = "problem_id", "prompt"  # the columns that pass rates are kept by
PASSES = 2**32  # more rollouts than a pass over the data has; numbers draws


@dataclass(frozen=True, kw_only=True)
class CourseOptions:
    reward: str = "accuracy"  # the reward function that says whether a completion is right
    pass_above: float = 0.5  # its value above which a completion has passed
    decay: float = 0.5  # what older trials of a prompt weigh once it is tried again, in (0, 1]
    floor: float = 0.1  # share of the draws that goes to all prompts alike, in [0, 1]

    def __post_init__(self) -> None:
        if not math.isfinite(self.pass_above):
            raise ValueError(f"curriculum.pass_above must be a finite reward, got {self.pass_above}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"curriculum.decay must be in (0, 1], 1 to forget nothing; got {self.decay}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"curriculum.floor is a share in [0, 1], got {self.floor}")


class Course:
    """rule: made for this run alone, it may keep state. file: None keeps pass rates in memory and checkpoints only."""

    def __init__(self, rule: Rule, options: CourseOptions | None = None, *, file: PassRateFile | None = None) -> None:
        self.rule, self.options, self.file = rule, options or CourseOptions(), file
        self.rates = PassRates(decay=self.options.decay)
        self.rollouts = 0  # recorded by this run
        self.problems: list[str] = []  # `problem_key` of each row of the data set
        self.seed = 0
        self._columns: Mapping[str, Sequence[Any]] = {}
        self._rows: dict[str, list[int]] = {}  # problem_id -> its rows
        self._ids: dict[str, str] = {}  # key -> problem_id
        self._pass, self._drawn = 0, list[list[int]]()  # of the pass under way
        self._prompts: Prompts | None = None  # as they are known now
        self._chosen: tuple[Floats | None] | None = None  # the rule's weights for them

    # The data set

    def bind(self, rows: Any, *, seed: int) -> Self:
        """Take the rows (a `datasets.Dataset`); ValueError where they lack a column, or the rule refuses them."""
        if not hasattr(rows, "__getitem__"):
            raise ValueError(
                "curriculum draws prompts at random, which a streamed data set cannot give; load it whole (streaming: "
                "false), or leave the curriculum out"
            )
        given = list(getattr(rows, "column_names", None) or [])
        readers = dict.fromkeys((ID, PROMPT), "pass rates are kept by it")
        readers |= dict.fromkeys(self.rule.columns, f"{self.rule.name} reads it")
        for name, why in readers.items():
            if name not in given:
                raise ValueError(
                    f"curriculum: the rows have no column {name!r} ({why}), only {', '.join(given)}; add it to the task"
                )
        if without := [row for row, problem in enumerate(rows[ID]) if problem is None]:
            raise ValueError(
                f"curriculum: prompt {without[0]} has no {ID!r} (null, as in {len(without)} of {len(rows[ID])} rows), "
                "and pass rates are kept by it; give each row one, or leave those out"
            )
        ids, asked, self.seed = [str(problem) for problem in rows[ID]], rows[PROMPT], seed
        self._columns = {name: list(rows[name]) for name in self.rule.columns}
        self._rows = {}
        for row, problem in enumerate(ids):
            self._rows.setdefault(problem, []).append(row)
        keys = {problem: problem_key(problem, [asked[row] for row in found]) for problem, found in self._rows.items()}
        self.problems, self._ids = [keys[problem] for problem in ids], {key: problem for problem, key in keys.items()}
        self._forget()
        if (weight_P := self._weights()) is not None:
            probabilities(weight_P, floor=self.options.floor)  # refuses senseless ones before anything is drawn
        return self

    def code(self, problem: Any) -> int:
        """A number that stands for a problem on every rank."""
        return self._rows[str(problem)][0]

    # Drawing

    def begin(self, earlier: Sequence[Sequence[Group]]) -> None:
        """Before a run's first rollout; earlier: what other runs found, `PassRateFile.others`."""
        self._pass, self._drawn = 0, []
        self._forget()
        if not self.rollouts:
            self.rates = PassRates(decay=self.options.decay)
            for groups in earlier:
                self.rates.add(groups)

    def start_pass(self, number: int) -> None:
        """A pass over the data begins, or is gone through again by a run that was resumed within it."""
        if number != self._pass:
            self._pass, self._drawn = number, []

    def prompts_of(self, rollout: int, usual: Sequence[int]) -> list[int]:
        """Rows of the data set for a rollout of this pass, counted from 0; usual: those of TRL's own order."""
        if rollout == len(self._drawn):
            self._drawn.append(self._draw(rollout, usual))
        return self._drawn[rollout]

    def _draw(self, rollout: int, usual: Sequence[int]) -> list[int]:
        weight_P = self._weights()
        if weight_P is None:
            return list(usual)
        number = self._pass * PASSES + rollout
        return draw(weight_P, len(usual), floor=self.options.floor, seed=self.seed, number=number)

    def _weights(self) -> Floats | None:
        if self._chosen is not None:
            return self._chosen[0]
        given = self.rule.weights(self.prompts())
        try:
            weight_P = None if given is None else np.asarray(given, dtype=float)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.rule.name} gave weights that are no numbers ({error}); return one per prompt"
            ) from None
        if weight_P is not None and weight_P.shape != (len(self.problems),):
            raise ValueError(
                f"{self.rule.name} gave weights of shape {weight_P.shape} for {len(self.problems)} prompts"
            )
        self._chosen = (weight_P,)
        return weight_P

    def _forget(self) -> None:
        """What is known has changed."""
        self._prompts = self._chosen = None

    def prompts(self) -> Prompts:
        """What is known of each row of the data set."""
        if self._prompts is None:
            counts = [self.rates.of(problem) for problem in self.problems]
            self._prompts = Prompts(
                trials_P=np.array([c.trials for c in counts], dtype=float),
                passes_P=np.array([c.passes for c in counts], dtype=float),
                failed_P=np.array([c.failed for c in counts], dtype=np.int64),
                columns=self._columns,
            )
        return self._prompts

    def _learn(self, groups: Sequence[Group]) -> None:
        """Count the groups; only their rows are looked at again."""
        known, self._chosen = self.prompts(), None
        arrays = known.trials_P.copy(), known.passes_P.copy(), known.failed_P.copy()
        self.rates.add(groups)
        for problem in {group.problem for group in groups}:
            for array, value in zip(arrays, self.rates.of(problem), strict=True):
                array[self._rows[self._ids[problem]]] = value
        trials_P, passes_P, failed_P = arrays
        self._prompts = Prompts(trials_P=trials_P, passes_P=passes_P, failed_P=failed_P, columns=self._columns)

    # What came of it

    def passed(self, reward: float) -> bool | None:
        """Whether a completion passed; None where nobody judged it."""
        return None if math.isnan(reward) else reward > self.options.pass_above

    def record(self, codes: Sequence[int], rewards: Sequence[float], *, group_size: int, write: bool) -> None:
        """The completions of a rollout over all ranks, groups of `group_size` in a row, by `code` of their problem.

        write: on one rank alone, into the file.
        """
        groups, rows = [], []
        for first in range(0, len(codes), group_size):
            mine = codes[first : first + group_size]
            if len(set(mine)) != 1:
                raise RuntimeError(f"the completions of one group answer different prompts (rows {sorted(set(mine))})")
            verdicts = [v for r in rewards[first : first + group_size] if (v := self.passed(r)) is not None]
            groups.append(Group(self.problems[mine[0]], len(verdicts), sum(verdicts)))
            rows.append(mine[0])
        if write and self.file is not None:
            self.file.append(self.rollouts, groups, start=self.rollouts == 0)
        self.rollouts += 1
        self._learn(groups)
        tried = Tried(prompt_G=rows, trials_G=[g.trials for g in groups], passes_G=[g.passes for g in groups])
        self.rule.observed(self.prompts(), tried)

    def metrics(self) -> dict[str, float]:
        """Of the prompts as they are known now; shares of all prompts of the data set."""
        prompts, weight_P = self.prompts(), self._weights()
        known_P = prompts.trials_P > 0
        chance_P = probabilities(np.ones(len(prompts)) if weight_P is None else weight_P, floor=self.options.floor)
        shares = {
            "curriculum/known": float(known_P.mean()),
            "curriculum/solved": float((known_P & (prompts.passes_P == prompts.trials_P)).mean()),
            "curriculum/unsolved": float((known_P & (prompts.passes_P == 0)).mean()),
            "curriculum/effective_prompts": float(1 / np.square(chance_P).sum() / len(prompts)),
        }
        if known_P.any():
            shares["curriculum/pass_rate"] = float((prompts.passes_P[known_P] / prompts.trials_P[known_P]).mean())
        return shares

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {
            "rates": self.rates.state_dict(),
            "rollouts": self.rollouts,
            "pass": self._pass,
            "drawn": [list(rows) for rows in self._drawn],
            "rule": self.rule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rates.load_state_dict(state["rates"])
        self.rollouts, self._pass = int(state["rollouts"]), int(state["pass"])
        self._drawn = [list(rows) for rows in state["drawn"]]
        self.rule.load_state_dict(state["rule"])
        self._forget()
