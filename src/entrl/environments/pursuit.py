"""Information Pursuit and C-IP: questions chosen by a model's belief, or by its calibrated sets.

    InformationPursuit            argmin_q sum_a m(a) H(b(history + (q, a)))                 b: some model's belief
    ConformalPursuit              argmin_q log2 sum_a m(a) |C(history + (q, a))|             C: its calibrated sets
    m(a) = sum_h b(h | history) P(a | h, q)

Both stop when the estimates' standard deviation over the open questions is below `eps` and none promises more than
`eps` (bits), and submit the most likely hypothesis, at the latest when the budget is used up. Where no set can tell the
questions apart though several labels are left (small calibrations keep everything), C-IP looks at entropies.

Source:  C-IP (arXiv 2507.03279; ryanchankh/Conformal-IP at ed7fb66), sections 2, 3 and G.10; method card
    information-gain, section 3
Differs: answers are weighed by the model's belief given the history, exactly; the released code draws labels from the
    prior. The paper's equation 11 for the objective, not the code's bound. Ranks of the thresholds are exact
Needs:   numpy; torch where a language model supplies the belief
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from entrl.beliefs import AnswerModel, CandidateScores, ConformalSize, History, logged_histories, random_histories
from entrl.beliefs.estimators import TIE
from entrl.beliefs.information import Array
from entrl.environments.play import Episode, Message, history_of
from entrl.environments.policies import ScriptedPolicy, open_questions
from entrl.environments.tables import Table
from entrl.environments.twenty_questions import game_prompt

FRESH = 1_000_003  # between the seeds of calibration and of the histories that test it
FLOOR = 1e-9  # of a likelihood, so that a user who contradicts a table leaves a belief

Beliefs = Callable[[Table, float], AnswerModel]  # (table, the user's noise) -> who supplies the belief


@dataclass(kw_only=True)
class InformationPursuit(ScriptedPolicy):
    """Expected entropy of a model's belief. For environments over a table."""

    name: str = "ip"
    beliefs: Beliefs
    eps: float = 0.01  # bits
    _models: dict[Any, AnswerModel] = field(default_factory=dict, init=False, repr=False)

    def _dialogue(self, environment: Any) -> list[Message]:
        if not hasattr(environment, "_table"):
            raise TypeError(f"{self.name} needs an environment over a table, and {type(environment).__name__} has none")
        return super()._dialogue(environment)

    def model(self, environment: Any) -> AnswerModel:
        """Who supplies the belief over this environment's table; made once per table and noise."""
        key = (environment._table.table_id, environment._noise)
        if key not in self._models:
            self._models[key] = self.beliefs(environment._table, environment._noise)
        return self._models[key]

    def choose(self, environment: Any, rng: np.random.Generator) -> str | None:
        left = open_questions(environment)
        if not left:
            return None
        history, now = history_of(environment), self.now(environment)
        estimates = np.array([self.estimate(environment, history, question) for question in left])
        if flat(estimates, now, self.eps):
            return self.undecided(environment, rng)
        return left[int(np.argmax(estimates <= estimates.min() + TIE))]

    def now(self, environment: Any) -> float:
        """The uncertainty before the next question, in the unit of `estimate`."""
        return self.model(environment).belief(history_of(environment)).entropy()

    def estimate(self, environment: Any, history: History, question: str) -> float:
        """Bits expected to be left after the question."""
        model = self.model(environment)
        return float(
            sum(
                p * model.belief([*history, (question, str(a))]).entropy()
                for a, p in answer_probs(model, environment, history, question)
            )
        )

    def undecided(self, environment: Any, rng: np.random.Generator) -> str | None:
        """What to do where the estimates neither differ nor promise anything."""
        return None

    def guess(self, environment: Any) -> dict[str, Any]:
        belief = self.model(environment).belief(history_of(environment))
        return {"answer": belief.hypotheses[int(belief.probs.argmax())]}


@dataclass(kw_only=True)
class ConformalPursuit(InformationPursuit):
    """Expected size of conformal sets, one threshold for each history length, calibrated per table on random histories
    of answers with the user's noise."""

    name: str = "c-ip"
    alpha: str = "0.1"  # share of sets that may miss, a decimal
    calibration: int = 200  # histories of each length
    # Of a table, played dialogues (history, truth) to calibrate on, such as `logged_histories` takes; None: random ones
    logged: Callable[[Table], Sequence[tuple[History, int | str]]] | None = None
    _sizes: dict[Any, ConformalSize] = field(default_factory=dict, init=False, repr=False)

    def size(self, environment: Any) -> ConformalSize:
        """The calibrated sets over this environment's table."""
        table, noise = environment._table, environment._noise
        key = (table.table_id, noise, environment._budget)
        if key not in self._sizes:
            sample: Any = random_histories(Noisy(table, noise), count=self.calibration, seed=self.seed)
            if self.logged is not None:
                sample = logged_histories(self.logged(table))
            lengths = range(1, min(environment._budget, len(table.questions)) + 1)
            self._sizes[key] = ConformalSize.calibrated(self.model(environment), sample, lengths, self.alpha)
        return self._sizes[key]

    def now(self, environment: Any) -> float:
        return self.size(environment).value(history_of(environment))

    def estimate(self, environment: Any, history: History, question: str) -> float:
        sets = self.size(environment)
        weighed = answer_probs(sets.model, environment, history, question)
        mean = sum(p * max(sets.size([*history, (question, str(a))]), 1) for a, p in weighed)
        return math.log2(mean)

    def undecided(self, environment: Any, rng: np.random.Generator) -> str | None:
        if self.size(environment).size(history_of(environment)) <= 1:
            return None
        by_entropy = InformationPursuit(beliefs=self.beliefs, eps=self.eps)
        by_entropy._models = self._models
        return by_entropy.choose(environment, rng)


def flat(estimates: Array, now: float, eps: float) -> bool:
    """The stopping rule: the estimates hardly differ, and none of them promises anything. Bits."""
    return bool(estimates.std() < eps and now - estimates.min() < eps)


def answer_probs(model: AnswerModel, environment: Any, history: History, question: str) -> list[tuple[int, float]]:
    """The question's answers with their probability under the model's belief, those of probability 0 left out."""
    likelihood = environment._table.likelihood(question, noise=environment._noise)
    m = model.belief(history).probs @ likelihood
    return [(a, float(p)) for a, p in enumerate(m) if p > 0]


@dataclass(frozen=True)
class Noisy:
    """A table as its user answers it; what `random_histories` draws from."""

    table: Table
    noise: float

    @property
    def hypotheses(self) -> tuple[str, ...]:
        return self.table.hypotheses

    @property
    def questions(self) -> tuple[str, ...]:
        return self.table.questions

    @property
    def prior(self) -> Any:
        return self.table.prior

    def likelihood(self, question: str) -> Array:
        return self.table.likelihood(question, noise=self.noise)


def exact_beliefs(table: Table, noise: float, *, temperature: float = 1.0) -> AnswerModel:
    """Bayes over the table as an `AnswerModel`; a temperature below 1 makes it over-confident, above 1 timid.

    At temperature 1 it is the posterior, up to likelihoods of 0 taken as 1e-9.
    """
    prior = np.full(len(table.hypotheses), 1 / len(table.hypotheses)) if table.prior is None else table.prior
    with np.errstate(divide="ignore"):
        log_prior = np.log(prior)
    columns = {
        question: np.log(np.maximum(table.likelihood(question, noise=noise), FLOOR)) for question in table.questions
    }

    def score(history: History, hypotheses: Sequence[str]) -> Array:
        return log_prior + sum(
            (columns[question][:, int(answer)] for question, answer in history), np.zeros(len(prior))
        )

    return AnswerModel(score, table.hypotheses, temperature=temperature)


def language_beliefs(
    model: Any, tokenizer: Any, *, reduce: str = "sum", temperature: float = 1.0, prompt: Any = None
) -> Beliefs:
    """A causal language model's belief: its log-probs of the names as answers to "which one is it?".

    prompt: (table, history) to the messages that ask; None: `naming_prompt`. The table's noise is not told.
    """
    ask = prompt or naming_prompt

    def beliefs(table: Table, noise: float) -> AnswerModel:
        def encode(history: History) -> list[int]:
            messages = ask(table, history)
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)

        names = {name: tokenizer(name, add_special_tokens=False)["input_ids"] for name in table.hypotheses}
        scores = CandidateScores(model=model, encode=encode, candidates=names, reduce=reduce)  # type: ignore[arg-type]
        return AnswerModel(scores, table.hypotheses, temperature=temperature)

    return beliefs


def naming_prompt(table: Table, history: History) -> list[Message]:
    """The table, the answers so far, and the question for a name."""
    said = "\n".join(f"{question}: {table.render(question, int(answer))}" for question, answer in history)
    return [
        {"role": "user", "content": f"{game_prompt(table, 'table')}\n\n{said}\n\nWhich one is it? Answer its name."}
    ]


def pursuit_coverage(
    policy: InformationPursuit,
    factory: Callable[[], Any],
    rows: Sequence[Mapping[str, Any]],
    played: Sequence[Episode],
    *,
    count: int = 200,
    alpha: str = "0.1",
    calibration: int = 200,
) -> dict[str, Any]:
    """Coverage by history length over all tables of the rows: of `count` fresh histories of each table and length, and
    of those in the episodes, which the policy chose.

    Only the first are promised 1 - alpha. A policy without sets of its own is measured with C-IP's, of this `alpha` and
    `calibration`, which C-IP itself has its own of.
    """
    if isinstance(policy, ConformalPursuit):
        sets_of = policy
    else:
        sets_of = ConformalPursuit(beliefs=policy.beliefs, seed=policy.seed, alpha=alpha, calibration=calibration)
        sets_of._models = policy._models
    fresh: list[Covered] = []
    chosen: list[Covered] = []
    seen: set[Any] = set()
    environment = factory()
    for row, episode in zip(rows, played, strict=True):
        environment.reset(**row)
        sets, table, noise = sets_of.size(environment), environment._table, environment._noise
        if id(sets) not in seen:
            seen.add(id(sets))
            sample = random_histories(Noisy(table, noise), count=count, seed=policy.seed + FRESH)
            fresh += [covered(sets, h, label) for length in sets.thresholds.by_length for h, label in sample(length)]
        target = sets.model.hypotheses.index(episode.target)
        prefixes = (episode.history[:k] for k in range(1, len(episode.history) + 1))
        chosen += [covered(sets, h, target) for h in prefixes]
    return {"alpha": sets_of.alpha, "calibration-like": by_length(fresh), "self-chosen": by_length(chosen)}


class Covered(NamedTuple):
    """One history: whether each set held the truth, and how large it was."""

    length: int
    hit: bool
    size: int
    naive_hit: bool  # of the smallest set that holds 1 - alpha of the model's own probability
    naive_size: int


def covered(sets: ConformalSize, history: History, label: int | str) -> Covered:
    """The conformal set after a history, and what the model's probabilities alone would have kept."""
    kept = sets.kept(history)
    belief = sets.model.belief(history)
    naive = smallest_set(belief.probs, 1 - float(sets.thresholds.at(len(history)).alpha))
    truth = belief.index(label)
    return Covered(len(history), bool(kept[truth]), int(kept.sum()), bool(naive[truth]), int(naive.sum()))


def by_length(found: Iterable[Covered]) -> dict[int, dict[str, Any]]:
    """Means for each history length: `coverage`, `size`, `naive`, `naive_size`, and `n`."""
    groups: dict[int, list[Covered]] = {}
    for one in found:
        groups.setdefault(one.length, []).append(one)
    return {
        length: {
            "coverage": fmean(one.hit for one in group),
            "size": fmean(one.size for one in group),
            "naive": fmean(one.naive_hit for one in group),
            "naive_size": fmean(one.naive_size for one in group),
            "n": len(group),
        }
        for length, group in sorted(groups.items())
    }


def smallest_set(probs: Array, mass: float) -> Array:
    """(K,) bool: the most likely labels, as few as have this probability together; the first of equals."""
    order = np.argsort(-probs, kind="stable")
    needed = int(np.searchsorted(np.cumsum(probs[order]), mass - 1e-12)) + 1
    kept = np.zeros(len(probs), dtype=bool)
    kept[order[:needed]] = True
    return kept
