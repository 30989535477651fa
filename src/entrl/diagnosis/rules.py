"""The rule table: symptom, threshold with its reason, evidence, and the recipe keys to change.

A rule looks at the metric rows of a training run, in the order of their steps, and says what it sees or nothing. Where
one symptom is only the consequence of another that is there, it is silent (`unless`). It knows no trainer: the watchdog
of `entrl train`, `entrl advise` and the report's health are its faces.

Source:  own design. Thresholds are ours; none was fitted to recorded runs yet
Needs:   rows as metrics.jsonl has them (docs/metrics.md); a number that is none may be NaN, infinite or None
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Rows = Sequence[Mapping[str, Any]]

ENOUGH = 3  # rows with a metric below which nothing is concluded from it
FEW = 10  # rollouts below which a share of them is luck, so that all must be alike
NUMBERS = {"loss": "loss", "grad_norm": "gradient norm", "reward": "reward"}
ENTROPIES = ("policy_entropy/token_mean", "policy_entropy/response_mean", "entropy")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table. look: evidence in words, "" where the symptom is not there."""

    symptom: str
    threshold: float
    why: str  # of the threshold
    keys: tuple[str, ...]  # of the recipe
    change: str
    look: Callable[[Rows, float], str]
    unless: tuple[str, ...] = ()  # symptoms of which it is the consequence
    said_by: str = ""  # beginning of a warning of the trainer itself that says the same


class Finding(NamedTuple):
    rule: Rule
    evidence: str

    @property
    def text(self) -> str:
        return f"{self.rule.symptom}: {self.evidence}. {self.rule.change} ({', '.join(self.rule.keys)})"

    def as_json(self) -> dict[str, Any]:
        return {
            "symptom": self.rule.symptom,
            "threshold": self.rule.threshold,
            "evidence": self.evidence,
            "keys": list(self.rule.keys),
            "change": self.rule.change,
        }


def findings(rows: Rows) -> list[Finding]:
    """What the rows of a run show, in the order of the table."""
    found: dict[str, Finding] = {}
    for rule in RULES:
        if not found.keys() & set(rule.unless) and (evidence := rule.look(rows, rule.threshold)):
            found[rule.symptom] = Finding(rule, evidence)
    return list(found.values())


def threshold(symptom: str) -> float:
    return next(rule.threshold for rule in RULES if rule.symptom == symptom)


# --- reading rows ---------------------------------------------------------------------------------------------------


def values(rows: Rows, metric: str) -> list[float]:
    """The numbers of a metric; what is no number is left out."""
    found = [row.get(metric) for row in rows]
    return [float(v) for v in found if isinstance(v, int | float) and math.isfinite(v)]


def start_mean(numbers: Sequence[float]) -> float | None:
    """Mean of the first tenth, at least the first 3 points."""
    return end_mean(numbers[::-1])


def end_mean(numbers: Sequence[float]) -> float | None:
    """Mean of the last tenth, at least the last 3 points."""
    tail = numbers[-max(ENOUGH, math.ceil(len(numbers) / 10)) :]
    return sum(tail) / len(tail) if tail else None


def entropy_ends(rows: Rows) -> tuple[float, float] | None:
    """Entropy at the start and at the end, nats; None for fewer than four rows, or a start at 0."""
    known = next((found for name in ENTROPIES if (found := values(rows, name))), [])
    first, last = start_mean(known), end_mean(known)
    if len(known) <= ENOUGH or first is None or last is None or first <= 0:
        return None
    return first, last


def asked_for_less(rows: Rows) -> bool:
    """Whether a reward removes entropy on purpose: PEAR, which logs its alpha."""
    return any(row.get("pear/alpha") for row in rows)


# --- what each rule sees --------------------------------------------------------------------------------------------


def _no_numbers(rows: Rows, most: float) -> str:
    bad = {what: sum(key in r and not _is_finite(r[key]) for r in rows) for key, what in NUMBERS.items()}
    found = [f"{what} in {count}" for what, count in bad.items() if count > most]
    return f"{', '.join(found)} of {len(rows)} logged steps" if found else ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _all_zero(rows: Rows, most: float) -> str:
    known = [r for r in rows if _is_finite(r.get("reward"))]
    parts = {k for r in known for k in r if k.startswith("rewards/")} | {"reward"}
    if len(known) < ENOUGH or any(abs(v) > most for name in parts for v in values(known, name)):
        return ""
    return f"every reward of {len(known)} rollouts is 0"


def _equal(rows: Rows, most: float) -> str:
    flat = values(rows, "groups/without_spread")
    if len(flat) < ENOUGH:
        return ""
    empty = sum(share >= 1 for share in flat) / len(flat)
    if empty <= most or (len(flat) < FEW and empty < 1):
        return ""
    return f"in {empty:.0%} of {len(flat)} rollouts every group had equal rewards, so those updates had no gradient"


def _mostly_equal(rows: Rows, most: float) -> str:
    flat = values(rows, "groups/without_spread")
    share = end_mean(flat)
    if share is None or len(flat) < ENOUGH or share <= most:
        return ""
    return f"{share:.0%} of groups have equal rewards"


def _share_of(metric: str, words: str) -> Callable[[Rows, float], str]:
    def look(rows: Rows, most: float) -> str:
        known = values(rows, metric)
        share = end_mean(known)
        if share is None or len(known) < ENOUGH or share <= most:
            return ""
        return f"{share:.0%} of completions {words}"

    return look


def _still(rows: Rows, most: float) -> str:
    norms = values(rows, "grad_norm")[-ENOUGH:]
    if len(norms) < ENOUGH or max(norms) > most:
        return ""
    return f"the gradient was 0 in the last {len(norms)} logged steps"


def _collapsed(rows: Rows, least: float) -> str:
    ends = entropy_ends(rows)
    if ends is None or ends[1] >= least * ends[0] or asked_for_less(rows):
        return ""
    return f"it fell to {ends[1] / ends[0]:.0%} of its start ({ends[0]:.3f} -> {ends[1]:.3f} nats)"


def _surged(rows: Rows, most: float) -> str:
    ends = entropy_ends(rows)
    if ends is None or ends[1] <= most * ends[0]:
        return ""
    return f"it rose to {ends[1] / ends[0]:.1f} times its start ({ends[0]:.3f} -> {ends[1]:.3f} nats)"


def _far(rows: Rows, most: float) -> str:
    known = values(rows, "clip_ratio/region_mean")
    share = end_mean(known)
    if share is None or len(known) < ENOUGH or share <= most:
        return ""
    return f"{share:.0%} of tokens have a ratio to the policy that wrote them beyond the clip"


RULES = (
    Rule(
        symptom="not a number",
        threshold=0,
        why="one is enough: weights that hold it never recover",
        keys=("trainer.learning_rate", "trainer.max_grad_norm"),
        change="Lower the learning rate, and start over from a checkpoint before it",
        look=_no_numbers,
    ),
    Rule(
        symptom="no reward",
        threshold=0,
        why="rewards are sums of few values; none differs from 0",
        keys=("rewards", "data.task", "trainer.think_close", "trainer.max_completion_length"),
        change="Look at completions.jsonl: golds, tags, limit of tokens; else take easier problems or a cold start",
        look=_all_zero,
        said_by="every reward of the first",
    ),
    Rule(
        symptom="rewards equal",
        threshold=0.20,
        why="a fifth of the compute trains nothing; of fewer than ten rollouts all must be flat",
        keys=("data.task", "trainer.num_generations", "trainer.filter_on"),
        change="Take problems that are sometimes solved, more completions a prompt, or filter_on: reward",
        look=_equal,
        unless=("no reward",),
    ),
    Rule(
        symptom="groups flat",
        threshold=0.80,
        why="four fifths of the completions give no gradient",
        keys=("data.task", "trainer.filter_on"),
        change="Take harder or easier problems, or filter_on: reward",
        look=_mostly_equal,
        unless=("no reward", "rewards equal"),
    ),
    Rule(
        symptom="truncated",
        threshold=0.10,
        why="above it length and accuracy say more about the limit than about the policy",
        keys=("trainer.max_completion_length",),
        change="Raise the limit, or add a length reward",
        look=_share_of("completions/clipped_ratio", "are cut by the length limit"),
    ),
    Rule(
        symptom="thinking not closed",
        threshold=0.10,
        why="above it what is called thinking and answer is often neither",
        keys=("trainer.think_open", "trainer.think_close", "rewards"),
        change="Set the tags that the model writes, or add think_format to the rewards",
        look=_share_of("pear/missing_close", "never close their thinking"),
        said_by="trainer.think_close:",
    ),
    Rule(
        symptom="gradient zero",
        threshold=0,
        why="a norm that is exactly 0 moves no weight",
        keys=("rewards", "trainer.mask_truncated_completions", "trainer.num_generations"),
        change="See which completions count: all of them truncated and masked, or no advantage",
        look=_still,
        unless=("no reward", "rewards equal"),
    ),
    Rule(
        symptom="entropy collapsed",
        threshold=0.30,
        why="share of the start below which sampling has little left to explore; not told where PEAR asks for less",
        keys=("trainer.learning_rate", "controllers"),
        change="Lower the learning rate, or hold entropy up with kl_cov or the guard",
        look=_collapsed,
    ),
    Rule(
        symptom="entropy surged",
        threshold=3.0,
        why="times the start; more than noise of a rollout, a policy that forgets how to write",
        keys=("trainer.learning_rate", "controllers"),
        change="Lower the learning rate, or whatever pushes entropy up",
        look=_surged,
    ),
    Rule(
        symptom="ratio exploding",
        threshold=0.30,
        why="share of tokens beyond the clip; a step that small changes were meant for has left its region",
        keys=("trainer.learning_rate", "trainer.num_iterations", "trainer.steps_per_generation"),
        change="Lower the learning rate, or make fewer updates of a rollout",
        look=_far,
    ),
)
