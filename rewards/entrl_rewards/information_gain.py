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
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl_rewards.groups import shuffle_within
from entrl_rewards.information_gain_credits import credits
from entrl_rewards.information_gain_options import PRESETS, Credit, InformationGainExpert, Preset, Terms
from entrl_rewards.inquiry import Dialogue, follow, invalid_turns, metrics
from entrl_rewards.options import check_choices, filled_in
from entrl_rewards.trainer_signals import LogMetric, optimiser_step

FACTS = ("_events", "_prior_entropy", "_estimator", "_target", "_correct", "_score", "_invalid", "_refused")


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
    pay: Literal["episode", "turn"] = "episode"
    outcome: Literal["correct", "score"] = "correct"  # score: the share of the submission that is right
    gain_weight: float | None = None  # default 1
    outcome_weight: float | None = None  # default 1
    question_cost: float | None = None  # per question asked, repeats included; default 0
    repeat_penalty: float | None = None  # default 0
    invalid_penalty: float | None = None  # per call that is malformed, has bad arguments or names no tool; default 0
    expert: InformationGainExpert = field(default_factory=InformationGainExpert)

    row_columns: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        reduce = self.terms.reduce
        if self.pay == "turn" and reduce != "sum":
            raise ValueError(
                f"pay='turn' gives every turn its own gain, so reduce={reduce!r} has nothing to reduce; leave it out"
            )

    @cached_property
    def terms(self) -> Terms:
        """What the preset says, and what is given in its place."""
        return filled_in(PRESETS[self.preset] if self.preset else Terms(), self, self.expert)

    @property
    def published_columns(self) -> tuple[str, ...]:
        return ("turn_rewards",) if self.pay == "turn" else ()

    @property
    def needs(self) -> tuple[str, ...]:
        return ("group_index",) if self.expert.shuffle else ()

    @property
    def needs_whole_groups(self) -> bool:
        return self.expert.shuffle

    def __call__(
        self,
        *,
        completions: list[Any],
        environments: Sequence[Any] | None = None,
        group_index: list[int] | None = None,
        trainer_state: Any = None,
        log_metric: LogMetric | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: object,
    ) -> list[float]:
        worlds = checked_environments(environments, completions)
        followed = [follow(c, e._events) for c, e in zip(completions, worlds, strict=True)]
        rows = [self.settle(d, e) for d, e in zip(followed, worlds, strict=True)]
        gains = [sum(row.gain_E) for row in rows]
        if log_metric is not None:
            for name, value in metrics(followed, worlds, gains).items():
                log_metric(f"information_gain/{name}", value)
        if log_extra is not None:
            log_extra("questions", [len(row.question_E) for row in rows])
            log_extra("gain", gains)
            log_extra("right", [row.right for row in rows])
        # the row whose gains each row is paid: itself, or another of its group
        gaining = [rows[s] for s in self._sources(len(rows), group_index, optimiser_step(trainer_state))]
        weight, outcome = self.terms.gain_weight, self.terms.outcome_weight
        paid = [outcome * row.right for row in rows]
        self.row_columns.clear()
        if self.pay == "turn":
            self.row_columns["turn_rewards"] = [
                weight * turn_gains(other, row.turns) - torch.tensor(row.cost_T, dtype=torch.float32)
                for row, other in zip(rows, gaining, strict=True)
            ]
            return [float(p) for p in paid]
        return [
            float(p + weight * self._reduced(other) - math.fsum(row.cost_T))
            for p, row, other in zip(paid, rows, gaining, strict=True)
        ]

    def settle(self, dialogue: Dialogue, environment: Any) -> Row:
        """What one rollout earned and cost."""
        terms, events, h0 = self.terms, environment._events, environment._prior_entropy()
        asked = [i for i, event in enumerate(events) if event.correct is None]
        paid = [i for i in asked if dialogue.seen_E[i] or not self.expert.seen_only]
        gains, gain_E = credits(environment, terms.credit), [0.0] * len(events)
        for i in paid:
            g = max(gains[i], 0.0) if terms.positive_only else gains[i]
            gain_E[i] = g if not terms.per_h0 else (g / h0 if h0 > 0 else 0.0)
        cost_T = [0.0] * max(dialogue.turns, 1)
        for i in asked:
            cost_T[dialogue.turn_E[i]] += terms.question_cost
            cost_T[dialogue.turn_E[i]] += terms.repeat_penalty * events[i].repeated
        for turn in invalid_turns(dialogue, environment):
            cost_T[turn] += terms.invalid_penalty
        return Row(
            turns=dialogue.turns,
            gain_E=gain_E,
            question_E=paid,
            turn_E=dialogue.turn_E,
            cost_T=cost_T[: dialogue.turns],
            right=float(environment._correct is True if self.outcome == "correct" else environment._score or 0.0),
        )

    def _reduced(self, row: Row) -> float:
        gains = [row.gain_E[i] for i in row.question_E]
        if not gains:
            return 0.0
        how = self.terms.reduce
        return gains[-1] if how == "last" else fmean(gains) if how == "mean" else math.fsum(gains)

    def _sources(self, rows: int, group_index: list[int] | None, step: int) -> list[int]:
        if not self.expert.shuffle:
            return list(range(rows))
        if group_index is None:
            raise TypeError("information_gain with shuffle needs group_index, which EntropyGRPOTrainer passes")
        return shuffle_within(torch.tensor(group_index)[:, None], seeds=(self.expert.shuffle_seed, step)).tolist()


def checked_environments(environments: Sequence[Any] | None, completions: Sequence[Any]) -> Sequence[Any]:
    """The environments; TypeError unless there is one with events for each completion."""
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
    return environments


def turn_gains(row: Row, turns: int) -> Tensor:
    """(turns,) float32: the row's gains by turn; with fewer turns than the row has, the last takes the rest."""
    gain_T = torch.zeros(turns)
    for turn, gain in zip(row.turn_E, row.gain_E, strict=True):
        if turns:
            gain_T[min(turn, turns - 1)] += gain
    return gain_T


reward = InformationGain()
