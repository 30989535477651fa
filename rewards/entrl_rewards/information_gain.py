"""Information gain: pay a dialogue for what its questions were worth, and for ending in the right answer.

    R = w_out 1[right] + w_gain G - c questions - p_rep repeats - p_inv invalid calls
    G = sum (or mean, or last) over the seen questions of g_t / H0

    credit        g_t, of the environment's belief
    expected      I(h; answer) before the answer; the default: the mean of the next three, without their luck
    realised      H before - H after; sums to H0 - HT, negative for surprises
    kl            KL(after || before)
    target        log2 of the true hypothesis' probability, after over before; at least -log2 K (K hypotheses)
    target_prob   the true hypothesis' probability, after minus before
    regret        expected over the largest expected gain of any open question, in [0, 1]; 0 when nothing is left to ask
    resolved      what became certain with the answer: slots, or 1 for a whole table
    none          0

H0 is the entropy of the prior in bits; `normalise` divides the credits that are bits by it (0 where H0 is 0).

    pay="episode"   R, one number per completion
    pay="turn"      w_out 1[right] alone is returned; w_gain g_t / H0 and the costs of turn t become the row column
                    `turn_rewards`, one value per assistant message, for the trainer's `turn_credit`

    preset          stands for                                      and cannot be
    nous            realised gain, summed, in bits, no outcome      other terms: the paper's body was not read
    resolved_count  the number of resolved slots, Nous' ablation    -
    delta_belief    2 for the answer, 0.1 max(ln b'/b, 0) for each  the policy's own b: here the environment's belief
                    question, -0.05 each, -1 repeated, -5 invalid
    igpo            1 for the answer, b' - b for each question      the policy's own b; F1; -2 for broken tags

The policy's own probability of the target is `entrl.beliefs.TargetLogProb`, which costs passes of the policy.

Source:  method card information-gain, sections 2, 4 and 7.4; delta-belief (arXiv 2602.12342; bethgelab/delta-belief-rl
    at f173b54); IGPO (arXiv 2510.14967; GuoqingWang1/IGPO at bff163b)
Differs: every weight outside the presets is ours. Delta-belief's clip at 0 pays an oscillating belief again each time
    it rises; it is kept in its preset alone (`positive_only`)
Needs:   environments with events (`entrl.environments`), which TRL passes when it has an environment_factory;
    group_index with shuffle

Documented answers. A question whose answer was taken back out of the completion was not seen, and its gain is not paid;
that it was asked is charged, and a submission counts, seen or not: the model wrote both. Repeats, ignored
contradictions and refused calls gain 0. The turn that submits has no gain; its costs are its own. No answer submitted
is a wrong answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from entrl.beliefs import FactoredBelief
from entrl_rewards.groups import shuffle_within
from entrl_rewards.inquiry import ENVIRONMENT_ERROR, TRL_ERROR, Dialogue, follow

Credit = Literal["expected", "realised", "kl", "target", "target_prob", "regret", "resolved", "none"]
Reduce = Literal["sum", "mean", "last"]
Normalise = Literal["prior", "none"]
Preset = Literal["nous", "resolved_count", "delta_belief", "igpo"]

FACTS = ("_events", "_prior_entropy", "_estimator", "_target", "_correct", "_score", "_invalid", "_refused")
IN_BITS = ("expected", "realised", "kl", "target")  # the credits that H0 can divide

DEFAULTS: dict[str, Any] = {
    "credit": "expected",
    "reduce": "sum",
    "normalise": None,  # prior for bits, none for the others
    "positive_only": False,
    "gain_weight": 1.0,
    "outcome_weight": 1.0,
    "question_cost": 0.0,
    "repeat_penalty": 0.0,
    "invalid_penalty": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "nous": {"credit": "realised", "normalise": "none", "outcome_weight": 0.0},
    "resolved_count": {"credit": "resolved", "outcome_weight": 0.0},
    "delta_belief": {
        "credit": "target",
        "normalise": "none",
        "positive_only": True,
        "gain_weight": 0.1 * math.log(2.0),  # published per nat
        "outcome_weight": 2.0,
        "question_cost": 0.05,
        "repeat_penalty": 1.0,
        "invalid_penalty": 5.0,
    },
    "igpo": {"credit": "target_prob"},
}


class Row(NamedTuple):
    """One rollout, settled. gain_E and costs are in the units of the reward, before weights where it says so."""

    turns: int
    gain_E: list[float]  # paid gains before gain_weight, 0 where nothing is paid
    question_E: list[int]  # events that are questions
    turn_E: tuple[int, ...]
    cost_T: list[float]  # costs and penalties by turn, >= 0 with the usual signs
    right: float  # 1 for a right answer, or the share of it that is right


@dataclass(frozen=True, kw_only=True)
class InformationGain:
    """The reward as TRL calls it. Options left at None take the preset's value, or the default of the same name."""

    __name__: ClassVar[str] = "information_gain"
    needs_environments: ClassVar[bool] = True

    preset: Preset | None = None
    credit: Credit | None = None  # default expected
    reduce: Reduce | None = None  # default sum; over the seen questions, repeats among them as 0
    normalise: Normalise | None = None  # default prior for bits, none otherwise
    positive_only: bool | None = None  # max(g_t, 0), which no longer telescopes; default False
    gain_weight: float | None = None  # default 1
    outcome_weight: float | None = None  # default 1
    outcome: Literal["correct", "score"] = "correct"  # score: the share of the submission that is right
    question_cost: float | None = None  # per question asked, repeats included; default 0
    repeat_penalty: float | None = None  # default 0
    invalid_penalty: float | None = None  # per call that is malformed, has bad arguments or names no tool; default 0
    pay: Literal["episode", "turn"] = "episode"
    seen_only: bool = True  # False pays answers that the model never saw
    # NEGATIVE CONTROL, not a method: each rollout is paid the gains of another one of its group (costs and outcome stay
    # its own), so a group's gains are the same numbers with the link between questions and pay cut.
    shuffle: bool = False
    shuffle_seed: int = 0

    row_columns: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _set: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, value in (DEFAULTS | PRESETS.get(self.preset or "", {})).items():
            given = getattr(self, name)
            self._set[name] = value if given is None else given
        self._check()

    def _check(self) -> None:
        choices = {"credit": Credit, "reduce": Reduce}
        for name, allowed in choices.items():
            if self._set[name] not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {self._set[name]!r}")
        if self.pay not in ("episode", "turn"):
            raise ValueError(f"pay must be episode or turn, got {self.pay!r}")
        if self.outcome not in ("correct", "score"):
            raise ValueError(f"outcome must be correct or score, got {self.outcome!r}")
        credit, bits = self._set["credit"], self._set["credit"] in IN_BITS
        if self._set["normalise"] is None:
            self._set["normalise"] = "prior" if bits else "none"
        if self._set["normalise"] not in get_args(Normalise):
            raise ValueError(f"normalise must be prior or none, got {self._set['normalise']!r}")
        if self._set["normalise"] == "prior" and not bits:
            raise ValueError(
                f"normalise='prior' divides bits by bits, and credit={credit!r} is not in bits; leave it out"
            )
        if self.pay == "turn" and self._set["reduce"] != "sum":
            raise ValueError(
                f"pay='turn' gives every turn its own gain, so reduce={self._set['reduce']!r} has nothing to reduce; "
                "leave it out"
            )
        for name in ("gain_weight", "outcome_weight", "question_cost", "repeat_penalty", "invalid_penalty"):
            if not (math.isfinite(self._set[name]) and self._set[name] >= 0):
                raise ValueError(f"{name} must be finite and >= 0, got {self._set[name]}; costs are subtracted")

    @property
    def published_columns(self) -> tuple[str, ...]:
        return ("turn_rewards",) if self.pay == "turn" else ()

    @property
    def needs(self) -> tuple[str, ...]:
        return ("group_index",) if self.shuffle else ()

    @property
    def needs_whole_groups(self) -> bool:
        return self.shuffle

    def __call__(
        self,
        *,
        completions: list[Any],
        environments: Sequence[Any] | None = None,
        group_index: list[int] | None = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: object,
    ) -> list[float]:
        checked_environments(environments, completions)
        assert environments is not None
        followed = [follow(c, e._events) for c, e in zip(completions, environments, strict=True)]
        rows = [self.settle(d, e) for d, e in zip(followed, environments, strict=True)]
        gain_BE = [row.gain_E for row in rows]
        if log_metric is not None:
            for name, value in metrics(followed, environments, [sum(g) for g in gain_BE]).items():
                log_metric(f"information_gain/{name}", value)
        if log_extra is not None:
            log_extra("questions", [len(row.question_E) for row in rows])
            log_extra("gain", [sum(g) for g in gain_BE])
            log_extra("right", [row.right for row in rows])
        source_B = self._sources(len(rows), group_index, trainer_state)
        weight, outcome = self._set["gain_weight"], self._set["outcome_weight"]
        paid = [outcome * row.right for row in rows]
        self.row_columns.clear()
        if self.pay == "turn":
            self.row_columns["turn_rewards"] = [
                weight * turn_gains(rows[s], row.turns) - torch.tensor(row.cost_T, dtype=torch.float32)
                for row, s in zip(rows, source_B, strict=True)
            ]
            return [float(p) for p in paid]
        total_B = [self._reduced(row) for row in rows]
        return [
            float(p + weight * total_B[s] - math.fsum(row.cost_T))
            for p, row, s in zip(paid, rows, source_B, strict=True)
        ]

    def settle(self, dialogue: Dialogue, environment: Any) -> Row:
        """What one rollout earned and cost."""
        events = environment._events
        asked = [i for i, event in enumerate(events) if event.correct is None]
        gains = credits(environment, self._set["credit"])
        h0 = environment._prior_entropy()
        gain_E = [0.0] * len(events)
        for i in asked:
            if dialogue.seen_E[i] or not self.seen_only:
                g = max(gains[i], 0.0) if self._set["positive_only"] else gains[i]
                gain_E[i] = g if self._set["normalise"] == "none" else (g / h0 if h0 > 0 else 0.0)
        cost_T = [0.0] * max(dialogue.turns, 1)
        for i in asked:
            cost_T[dialogue.turn_E[i]] += self._set["question_cost"]
            cost_T[dialogue.turn_E[i]] += self._set["repeat_penalty"] * events[i].repeated
        for turn in invalid_turns(dialogue, environment):
            cost_T[turn] += self._set["invalid_penalty"]
        return Row(
            turns=dialogue.turns,
            gain_E=gain_E,
            question_E=[i for i in asked if dialogue.seen_E[i] or not self.seen_only],
            turn_E=dialogue.turn_E,
            cost_T=cost_T[: dialogue.turns],
            right=float(environment._correct is True if self.outcome == "correct" else environment._score or 0.0),
        )

    def _reduced(self, row: Row) -> float:
        gains = [row.gain_E[i] for i in row.question_E]
        if not gains:
            return 0.0
        how = self._set["reduce"]
        return gains[-1] if how == "last" else fmean(gains) if how == "mean" else math.fsum(gains)

    def _sources(self, rows: int, group_index: list[int] | None, trainer_state: Any) -> list[int]:
        """The row whose gains each row is paid: itself, or another of its group."""
        if not self.shuffle:
            return list(range(rows))
        if group_index is None:
            raise TypeError("information_gain with shuffle needs group_index, which EntropyGRPOTrainer passes")
        step = int(getattr(trainer_state, "global_step", 0) or 0)
        return shuffle_within(torch.tensor(group_index)[:, None], seeds=(self.shuffle_seed, step)).tolist()


def checked_environments(environments: Sequence[Any] | None, completions: Sequence[Any]) -> None:
    """TypeError unless there is one environment with events for each completion."""
    if environments is None:
        raise TypeError(
            "information_gain needs environments, which TRL passes when the trainer has an environment_factory; in a "
            "recipe: environment: {use: twenty_questions}"
        )
    if len(environments) != len(completions):
        raise TypeError(f"{len(environments)} environments for {len(completions)} completions; TRL passes one for each")
    for environment in environments:
        missing = [n for n in FACTS if not hasattr(environment, n)]
        if missing:
            raise TypeError(
                f"environment {type(environment).__name__} has no {', '.join(missing)}; information_gain reads the "
                "events of entrl.environments.InquiryEnv, so derive yours from it"
            )


def credits(environment: Any, credit: str) -> list[float]:
    """g_t of each event in the credit's own unit, 0 for a submission; ValueError where the environment cannot know."""
    events = environment._events
    if credit == "target_prob":
        return _probability_gains(environment)
    floor = -log2_size(environment._estimator) if credit == "target" else 0.0
    return [_credit(event, credit, floor) for event in events]


def _credit(event: Any, credit: str, floor: float) -> float:
    step = event.step
    if credit == "none" or step is None or event.correct is not None:
        return 0.0
    if credit == "resolved":
        return float(event.resolved)
    if credit == "regret":
        best = event.best_expected
        return min(_known(step.expected, event, "expected gain") / best, 1.0) if best else 0.0
    if credit == "target":
        if event.contradiction and step.target_log_gain is None:
            return 0.0  # a factored belief that went back to its prior does not say
        return max(_known(step.target_log_gain, event, "target gain"), floor)
    return _known(getattr(step, credit), event, f"{credit} gain")


def _known(value: float | None, event: Any, what: str) -> float:
    if value is None:
        raise ValueError(
            f"event {event.number} ({event.key!r}) has no {what}; its environment's belief does not know it"
        )
    return float(value)


def _probability_gains(environment: Any) -> list[float]:
    """b_t(h*) - b_(t-1)(h*), from the prior and the log gains; they sum to last - first."""
    start = level = log2_prior(environment)
    forgets = environment._estimator.on_contradiction == "reset"
    gains = []
    for event in environment._events:
        step, before = event.step, level
        if step is not None and event.correct is None:
            if event.contradiction:
                level = start if forgets else level
            else:
                level += _known(step.target_log_gain, event, "target gain")
        gains.append(2.0**level - 2.0**before)
    return gains


def log2_prior(environment: Any) -> float:
    """log2 b0 of what the environment hides; a factored belief multiplies its slots."""
    prior = environment._estimator._prior
    if not hasattr(prior, "slots"):
        return prior.log2_prob(environment._target)
    truth = environment._truth
    if isinstance(prior, FactoredBelief):
        return math.fsum(belief.log2_prob(truth[name]) for name, belief in prior.slots.items())
    index = tuple(values.index(truth[name]) for name, values in prior.slots.items())
    return math.log2(prior.probs[index])


def log2_size(estimator: Any) -> float:
    """log2 of the number of hypotheses, of combinations where the belief is factored."""
    belief = estimator.belief
    if hasattr(belief, "slots"):
        return math.fsum(math.log2(len(slot)) for slot in belief.slots.values())
    return math.log2(len(belief))


def invalid_turns(dialogue: Dialogue, environment: Any) -> list[int]:
    """The turn of each call that is malformed, has bad arguments or names no tool.

    Calls that were taken back count for the last turn.
    """
    turns = [*dialogue.unread]
    turns += [turn for turn, text in dialogue.other if text.startswith((TRL_ERROR, ENVIRONMENT_ERROR))]
    shown = sum(text.startswith(ENVIRONMENT_ERROR) for _, text in dialogue.other)
    return turns + [max(dialogue.turns - 1, 0)] * max(environment._invalid - shown, 0)


def turn_gains(row: Row, turns: int) -> Tensor:
    """(turns,) float32: the row's gains by turn; with fewer turns than the row has, the last takes the rest."""
    gain_T = torch.zeros(turns)
    for turn, gain in zip(row.turn_E, row.gain_E, strict=True):
        if turns:
            gain_T[min(turn, turns - 1)] += gain
    return gain_T


def metrics(dialogues: Sequence[Dialogue], environments: Sequence[Any], paid: Sequence[float]) -> dict[str, float]:
    """Means over the rollouts; gains in bits over what was seen."""
    found: dict[str, list[float]] = {}
    for dialogue, env, gain in zip(dialogues, environments, paid, strict=True):
        asked = [(e, seen) for e, seen in zip(env._events, dialogue.seen_E, strict=True) if e.correct is None]
        seen = [e for e, was in asked if was and e.step is not None]
        realised = math.fsum(e.step.realised for e in seen)
        expected = math.fsum(e.step.expected or 0.0 for e in seen)
        h0 = env._prior_entropy()
        row = {
            "paid": gain,
            "realised": realised,
            "expected": expected,
            "luck": realised - expected,
            "normalised": realised / h0 if h0 > 0 else 0.0,
            "questions": float(len(asked)),
            "gain_per_question": realised / len(seen) if seen else 0.0,
            "repeats": float(sum(e.repeated for e, _ in asked)),
            "contradictions": float(sum(e.contradiction for e, _ in asked)),
            "invalid": float(len(invalid_turns(dialogue, env))),
            "refused": float(env._refused),
            "unseen": float(sum(not was for was in dialogue.seen_E)),
            "submitted": float(env._correct is not None),
            "success": float(env._correct is True),
            "score": float(env._score or 0.0),
        }
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in found.items()}


reward = InformationGain()
