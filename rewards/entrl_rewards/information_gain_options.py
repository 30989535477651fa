"""What the information-gain reward pays: its terms, the presets as ready terms, and its expert options."""

import math
from dataclasses import dataclass
from typing import Literal

from entrl_rewards.options import check_choices

Credit = Literal["expected", "realised", "kl", "target", "target_prob", "regret", "resolved", "none"]
Reduce = Literal["sum", "mean", "last"]
Normalise = Literal["prior", "none"]
Preset = Literal["nous", "resolved_count", "delta_belief", "igpo"]

IN_BITS = ("expected", "realised", "kl", "target")  # the credits that H0 can divide


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is paid where no option says otherwise; the defaults are those without a preset."""

    credit: Credit = "expected"
    reduce: Reduce = "sum"
    normalise: Normalise | None = None  # None: prior for bits, none for the others
    positive_only: bool = False
    gain_weight: float = 1.0
    outcome_weight: float = 1.0
    question_cost: float = 0.0
    repeat_penalty: float = 0.0
    invalid_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.normalise == "prior" and self.credit not in IN_BITS:
            raise ValueError(
                f"normalise='prior' divides bits by bits, and credit={self.credit!r} is not in bits; leave it out"
            )
        for name in ("gain_weight", "outcome_weight", "question_cost", "repeat_penalty", "invalid_penalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and >= 0, got {value}; costs are subtracted")

    @property
    def per_h0(self) -> bool:
        """Whether gains are divided by the entropy of the prior."""
        return self.credit in IN_BITS if self.normalise is None else self.normalise == "prior"


PRESETS: dict[str, Terms] = {
    "nous": Terms(credit="realised", normalise="none", outcome_weight=0.0),
    "resolved_count": Terms(credit="resolved", outcome_weight=0.0),
    "delta_belief": Terms(
        credit="target",
        normalise="none",
        positive_only=True,
        gain_weight=0.1 * math.log(2.0),  # published per nat
        outcome_weight=2.0,
        question_cost=0.05,
        repeat_penalty=1.0,
        invalid_penalty=5.0,
    ),
    "igpo": Terms(credit="target_prob"),
}


@dataclass(frozen=True, kw_only=True)
class InformationGainExpert:
    """How gains are summed up, and controls; options left at None take the preset's value."""

    reduce: Reduce | None = None  # default sum; over the seen questions, repeats among them as 0
    normalise: Normalise | None = None  # default prior for bits, none otherwise
    positive_only: bool | None = None  # max(g_t, 0), which no longer telescopes; default False
    seen_only: bool = True  # False pays answers that the model never saw
    # NEGATIVE CONTROL, not a method: each rollout is paid the gains of another one of its group (costs and outcome stay
    # its own), so a group's gains are the same numbers with the link between questions and pay cut.
    shuffle: bool = False
    shuffle_seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
