"""What each mode of the ARES reward stands for, its expert options, and which options make sense together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from entrl.maths.difficulty import BUCKETS
from entrl_rewards.correctness import ACCURACY, Gated, Verifier
from entrl_rewards.entropy_source import EntropyOptions, TopKEstimate
from entrl_rewards.hierarchical_formulas import CODE
from entrl_rewards.options import check_choices, check_ranges, filled_in

LambdaMode = Literal["off", "external", "dual_ascent"]


def by_bucket(easy: float, medium: float, hard: float) -> Mapping[str, float]:
    return dict(zip(BUCKETS, (easy, medium, hard), strict=True))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a mode decides where the option of the same name is left at None. The defaults are mode="fixed"."""

    alpha: float = 0.4  # below every alpha at which the published caps let a wrong answer outrank a right one
    alpha_rate: float = 0.0
    target_decay: float = 0.9
    rounded_target: bool = False
    following: bool = True
    threshold_lag: bool = False
    centred: bool = True
    ordering_guard: bool = True
    wrong_bonus: Mapping[str, float] = field(default_factory=lambda: by_bucket(0.0, 0.8, 1.0))
    lambda_mode: LambdaMode = "off"

    def __post_init__(self) -> None:
        rules = {
            "target_decay": (0 <= self.target_decay < 1, "in [0, 1)"),
            "alpha_rate": (self.alpha_rate >= 0, ">= 0; 0 keeps alpha where it is"),
        }
        check_ranges(self, rules)
        bonus: Any = self.wrong_bonus
        if not isinstance(bonus, Mapping) or set(bonus) != set(BUCKETS) or not all(0 <= v <= 1 for v in bonus.values()):
            raise ValueError(
                f"wrong_bonus is a share of the cap in [0, 1] for each of {', '.join(BUCKETS)}; got {bonus!r}. "
                "A negative one would punish wrong answers for windows and right ones would still outrank them"
            )


MODES: dict[str, Rules] = {
    "fixed": Rules(),
    "code": Rules(
        alpha=0.5,
        alpha_rate=0.05,
        target_decay=0.0,
        rounded_target=True,
        threshold_lag=True,
        centred=False,
        ordering_guard=False,
        wrong_bonus=by_bucket(*(of.wrong_share for of in CODE)),
    ),
    "paper": Rules(
        alpha=0.5,
        following=False,
        centred=False,
        ordering_guard=False,
        wrong_bonus=by_bucket(0.0, 0.0, 0.0),
        lambda_mode="external",
    ),
}


@dataclass(frozen=True, kw_only=True)
class HierarchicalExpert(EntropyOptions):
    """Options of windows, state and the published tables; those left at None take the value of `mode`."""

    # Windows and threshold
    following: bool | None = None  # the window is the tokens after the trigger; False: it begins with it
    argmax_trigger: bool = False  # test the most likely token, not the sampled one (needs token_topk_ids)
    threshold_decay: float = 0.99
    threshold_lag: bool | None = None  # count with the threshold of the step before
    threshold_estimate: TopKEstimate | None = None  # None: the same as for counting; published: "dropped"
    # Targets, alpha and lambda
    target_decay: float | None = None
    rounded_target: bool | None = None
    alpha_rate: float | None = None  # published 0.05
    alpha_range: tuple[float, float] = (0.0, 2.0)
    lambda_mode: LambdaMode | None = None
    # The table
    centred: bool | None = None
    evaluate_before_buckets: bool = False  # the published order: every prompt easy, target 0
    # NEGATIVE CONTROL, not a method: each completion is judged by the count of another one of its group with the same
    # verdict, so a group's rewards are the same numbers with the link between text and windows cut.
    shuffle_counts_in_group: bool = False
    shuffle_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.alpha_range
        rules = {
            "threshold_decay": (0 <= self.threshold_decay < 1, "in [0, 1)"),
            "alpha_range": (0 <= low <= high, "two numbers with 0 <= low <= high"),
        }
        check_ranges(self, rules)
        if self.threshold_estimate is not None and self.entropy_source != "topk":
            raise ValueError(
                f"threshold_estimate is a way to estimate from top-k log-probs, and entropy_source="
                f"{self.entropy_source!r} needs no estimate; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class HierarchicalOptions(Gated):
    """Options of the ARES reward. Those left at None take the value of `mode`."""

    mode: Literal["fixed", "code", "paper"] = "fixed"
    alpha: float | None = None  # size of the term; the published range in which order holds ends at 0.41
    wrong_bonus: Mapping[str, float] | None = None  # share of the cap per difficulty
    ordering_guard: bool | None = None  # no wrong answer above a right one
    window: int = 4  # tokens
    triggers: str | Sequence[str] | None = None  # "en", "en+zh", a list of words; None: every window
    percentile: float = 0.95  # of a completion's window means; the batch median of it is the threshold
    threshold: float | None = None  # nats; None: follows the policy
    correctness: Verifier = ACCURACY
    expert: HierarchicalExpert = field(default_factory=HierarchicalExpert)

    @cached_property
    def rules(self) -> Rules:
        """What the mode says, and what is given in its place."""
        return filled_in(MODES[self.mode], self, self.expert)


def check_options(reward: HierarchicalOptions) -> None:
    """ValueError for the first option that is out of range or does not fit another."""
    check_choices(reward)
    expert = reward.expert
    if reward.mode == "paper":
        given = vars(expert) | vars(reward)
        idle = [n for n in ("centred", "wrong_bonus", "ordering_guard", "alpha") if given[n] is not None]
        if idle or expert.evaluate_before_buckets:
            raise ValueError(
                f"mode='paper' is one printed equation, in which {', '.join(idle) or 'evaluate_before_buckets'} would "
                "do nothing, or something it does not say; leave it out, or take mode='fixed' or 'code'"
            )
    low, high = expert.alpha_range
    rules = {
        "window": (reward.window >= 1, ">= 1 token; the paper finds 4 to 8 best"),
        "percentile": (0 < reward.percentile < 1, "in (0, 1); 0.95 is the 95th percentile"),
        "threshold": (reward.threshold is None or reward.threshold >= 0, ">= 0 nats, or null to follow the policy"),
    }
    check_ranges(reward, rules)
    in_force = reward.rules
    check_ranges(in_force, {"alpha": (low <= in_force.alpha <= high, f"in alpha_range={[low, high]}")})
    if expert.argmax_trigger and reward.triggers is None:
        raise ValueError("argmax_trigger tests trigger words, and triggers=null looks at every window; give triggers")
    if reward.mode == "paper" and in_force.lambda_mode == "off":
        raise ValueError(
            "mode='paper' is accuracy minus lambda times a penalty; lambda_mode='off' leaves accuracy alone"
        )
    if reward.mode != "paper" and in_force.lambda_mode != "off":
        raise ValueError(
            f"lambda_mode={in_force.lambda_mode!r} belongs to mode='paper'; the table of mode={reward.mode!r} has none"
        )
