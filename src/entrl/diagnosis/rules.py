"""The rule table: symptom, threshold with its reason, evidence, and the recipe keys to change.

A rule looks at the metric rows of a training run, in the order of their steps, and says what the newest of them show or
nothing: a symptom that has gone away is no finding. Where one symptom is only the consequence of another that is there,
it is silent (`unless`). It knows no trainer: the watchdog of `entrl train`, `entrl advise` and the report's health are
its faces.

Source:  own design; docs/reliability.md has on which runs thresholds were set and on which they were judged
Needs:   rows as metrics.jsonl has them (docs/metrics.md); a number that is none may be NaN, infinite or None
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Rows = Sequence[Mapping[str, Any]]
Look = Callable[[Rows, float], str]

ENOUGH = 2  # rollouts, of many completions each, below which nothing is concluded from one number of theirs
SHORT = 3  # points of a mean at either end of a run, at least
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
    look: Look
    value: Callable[[Rows], str] = lambda rows: ""  # what was looked at, in words; rules may share it
    excuse: Callable[[Rows], str] = lambda rows: ""  # why it is as it was asked to be
    unless: tuple[str, ...] = ()  # symptoms of which it is the consequence
    said_by: str = ""  # beginning of a warning of the trainer itself that says the same of its first completions


class Finding(NamedTuple):
    rule: Rule
    evidence: str
    excuse: str = ""

    @property
    def text(self) -> str:
        return f"{self.evidence}. {self.rule.change} ({', '.join(self.rule.keys)})"

    def as_json(self) -> dict[str, Any]:
        return {
            "symptom": self.rule.symptom,
            "threshold": self.rule.threshold,
            "evidence": self.evidence,
            "keys": list(self.rule.keys),
            "change": self.rule.change,
        }


def findings(rows: Rows) -> list[Finding]:
    """What is wrong, in the order of the table."""
    return [found for found in seen(rows) if not found.excuse]


def seen(rows: Rows) -> list[Finding]:
    """Every symptom that is there, also where it was asked for."""
    found = there(rows)
    told = [rule for rule in RULES if rule.symptom in found and not found.keys() & set(rule.unless)]
    return [Finding(rule, found[rule.symptom], rule.excuse(rows)) for rule in told]


def there(rows: Rows) -> dict[str, str]:
    """symptom -> evidence, consequences among them."""
    return {rule.symptom: evidence for rule in RULES if (evidence := rule.look(rows, rule.threshold))}


def values_of(rows: Rows) -> list[str]:
    """What was looked at and found well."""
    bad = {found.rule.value for found in seen(rows)}
    looks = dict.fromkeys(rule.value for rule in RULES if rule.value not in bad)
    return [text for look in looks if (text := look(rows))]


def rule_of(symptom: str) -> Rule:
    return next(rule for rule in RULES if rule.symptom == symptom)


def said_of_the_start(warning: str) -> Rule | None:
    """The rule that says of the whole run what this warning of the trainer says of its first completions."""
    return next((rule for rule in RULES if rule.said_by and warning.startswith(rule.said_by)), None)


# --- reading rows ---------------------------------------------------------------------------------------------------


def values(rows: Rows, metric: str) -> list[float]:
    """The numbers of a metric; what is no number is left out."""
    return [float(row[metric]) for row in rows if _is_finite(row.get(metric))]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def newest(points: Sequence[Any], least: int = SHORT) -> Sequence[Any]:
    """The last tenth, at least `least`."""
    return points[-max(least, math.ceil(len(points) / 10)) :]


def start_mean(numbers: Sequence[float]) -> float | None:
    """Mean of the first tenth, at least the first 3 points."""
    return end_mean(numbers[::-1])


def end_mean(numbers: Sequence[float]) -> float | None:
    """Mean of the last tenth, at least the last 3 points."""
    tail = newest(numbers)
    return sum(tail) / len(tail) if tail else None


def entropy_ends(rows: Rows) -> tuple[float, float] | None:
    """Entropy at the start and at the end, nats; None for fewer than four rows, or a start at 0."""
    known = next((found for name in ENTROPIES if (found := values(rows, name))), [])
    first, last = start_mean(known), end_mean(known)
    if len(known) <= SHORT or first is None or last is None or first <= 0:
        return None
    return first, last


# --- what each rule sees --------------------------------------------------------------------------------------------


def _no_numbers(rows: Rows, most: float) -> str:
    bad = {what: sum(key in r and not _is_finite(r[key]) for r in rows) for key, what in NUMBERS.items()}
    found = [f"{what} in {count}" for what, count in bad.items() if count > most]
    return f"not a number: {', '.join(found)} of {len(rows)} logged steps" if found else ""


def _no_reward(rows: Rows, most: float) -> str:
    known = newest([r for r in rows if _is_finite(r.get("reward"))])
    parts = {k for r in known for k in r if k.startswith("rewards/")} | {"reward"}
    if len(known) < ENOUGH or any(abs(v) > most for name in parts for v in values(known, name)):
        return ""
    return f"every reward of the last {len(known)} rollouts is 0"


def _equal(rows: Rows, most: float) -> str:
    flat = newest(values(rows, "groups/without_spread"), FEW)
    empty = sum(share >= 1 for share in flat) / max(len(flat), 1)
    if len(flat) < ENOUGH or empty <= most or (len(flat) < FEW and empty < 1) or max(newest(flat)) < 1:
        return ""
    last = "" if len(flat) < FEW else f"the last {len(flat)} "
    return f"in {empty:.0%} of {last}rollouts every group had equal rewards: updates without any gradient"


def _mostly_equal(rows: Rows, most: float) -> str:
    flat = values(rows, "groups/without_spread")
    share = end_mean(flat)
    if share is None or len(flat) < SHORT or share <= most:
        return ""
    return f"{share:.0%} of groups have equal rewards in the last rollouts: most samples give no gradient"


def _share_of(metric: str, words: str) -> Look:
    def look(rows: Rows, most: float) -> str:
        known = values(rows, metric)
        share = end_mean(known)
        if share is None or len(known) < ENOUGH or share <= most:
            return ""
        return too_many(share, words, most, "in the last rollouts")

    return look


def too_many(share: float, words: str, most: float, when: str) -> str:
    return f"{share:.0%} of completions {words} {when} (over {most:.0%})"


def _end_of(metric: str, words: str) -> Callable[[Rows], str]:
    def value(rows: Rows) -> str:
        share = end_mean(values(rows, metric))
        return "" if share is None else f"{share:.0%} {words}"

    return value


def _no_tag(rows: Rows, least: float) -> str:
    closed = newest(values(rows, "completions/thinking_closed"))
    if len(closed) < ENOUGH or max(closed) > least:
        return ""
    return f"the closing tag stands in no completion of the last {len(closed)} rollouts"


def _still(rows: Rows, most: float) -> str:
    """Over two rollouts at least: one without spread has no gradient in all of its updates."""
    rollouts = [i for i, row in enumerate(rows) if "reward" in row]
    since = rows[rollouts[-ENOUGH] :] if len(rollouts) >= ENOUGH else []
    norms = values(since, "grad_norm")
    if len(norms) < SHORT:
        norms = values(rows, "grad_norm")[-SHORT:]
    if len(norms) < SHORT or not since or max(norms) > most:
        return ""
    return f"the gradient was exactly 0 in the last {len(norms)} logged steps"


def _collapsed(rows: Rows, least: float) -> str:
    ends = entropy_ends(rows)
    if ends is None or ends[1] >= least * ends[0]:
        return ""
    return f"entropy fell to {ends[1] / ends[0]:.0%} of its start ({_nats(ends)}): little is left to explore"


def _surged(rows: Rows, most: float) -> str:
    ends = entropy_ends(rows)
    if ends is None or ends[1] <= most * ends[0]:
        return ""
    return f"entropy rose to {ends[1] / ends[0]:.1f} times its start ({_nats(ends)})"


def _nats(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3f} \u2192 {ends[1]:.3f} nats"


def _entropy_left(rows: Rows) -> str:
    ends = entropy_ends(rows)
    return "" if ends is None else f"entropy at {ends[1] / ends[0]:.0%} of its start"


def _asked_for_less(rows: Rows) -> str:
    return "PEAR asks for that" if any(row.get("pear/alpha") for row in rows) else ""


def _far(rows: Rows, most: float) -> str:
    known = values(rows, "clip_ratio/region_mean")
    share = end_mean(known)
    if share is not None and len(known) >= SHORT and share > most:
        return f"{share:.0%} of tokens have a ratio to the policy that wrote them beyond the clip"
    for name in {key for row in rows for key in row if key.endswith("/abs_log_ratio")}:  # losses that do not clip
        known = values(rows, name)
        mean = end_mean(known)
        if mean is not None and len(known) >= SHORT and mean > most:
            return f"the log ratio to the policy that wrote the tokens is {mean:.2f} on average"
    return ""


_flat_groups = _end_of("groups/without_spread", "of groups without spread")

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
        symptom="truncated",
        threshold=0.10,
        why="above it length and accuracy say more about the limit than about the policy",
        keys=("trainer.max_completion_length",),
        change="Raise the limit, or add a length reward",
        look=_share_of("completions/clipped_ratio", "truncated"),
        value=_end_of("completions/clipped_ratio", "truncated"),
    ),
    Rule(
        symptom="tags never seen",
        threshold=0,
        why="a tag that the model knows stands in some completion of a rollout",
        keys=("trainer.think_open", "trainer.think_close"),
        change="Set the tags that the model writes; look at completions.jsonl",
        look=_no_tag,
        unless=("truncated",),
        said_by="trainer.think_close:",
    ),
    Rule(
        symptom="thinking not closed",
        threshold=0.10,
        why="above it what is called thinking and answer is often neither",
        keys=("trainer.think_open", "trainer.think_close", "rewards"),
        change="Set the tags that the model writes, or add think_format to the rewards",
        look=_share_of("pear/missing_close", "never close their thinking"),
        value=_end_of("pear/missing_close", "without a closing tag"),
        unless=("tags never seen", "truncated"),
    ),
    Rule(
        symptom="no reward",
        threshold=0,
        why="rewards are sums of few values; none differs from 0",
        keys=("rewards", "data.task", "trainer.think_close", "trainer.max_completion_length"),
        change="Look at completions.jsonl: golds, tags, limit of tokens; else take easier problems or a cold start",
        look=_no_reward,
        said_by="every reward of the first",
    ),
    Rule(
        symptom="rewards equal",
        threshold=0.20,
        why="a fifth of the compute trains nothing; of fewer than ten rollouts all must be flat",
        keys=("data.task", "trainer.num_generations", "trainer.filter_on"),
        change="Take problems that are sometimes solved, more completions a prompt, or filter_on: reward",
        look=_equal,
        value=_flat_groups,
        unless=("no reward",),
    ),
    Rule(
        symptom="groups flat",
        threshold=0.80,
        why="four fifths of the completions give no gradient",
        keys=("data.task", "trainer.filter_on"),
        change="Take harder or easier problems, or filter_on: reward",
        look=_mostly_equal,
        value=_flat_groups,
        unless=("no reward", "rewards equal"),
    ),
    Rule(
        symptom="gradient zero",
        threshold=0,
        why="a norm that is exactly 0 moves no weight",
        keys=("rewards", "trainer.mask_truncated_completions", "trainer.num_generations"),
        change="See which completions count: all of them truncated and masked, or no advantage",
        look=_still,
        unless=("no reward", "rewards equal", "groups flat"),
    ),
    Rule(
        symptom="entropy collapsed",
        threshold=0.30,
        why="share of the start below which sampling has little left to explore",
        keys=("trainer.learning_rate", "controllers"),
        change="Lower the learning rate, or hold entropy up with kl_cov or the guard",
        look=_collapsed,
        value=_entropy_left,
        excuse=_asked_for_less,
    ),
    Rule(
        symptom="entropy surged",
        threshold=2.0,
        why="times the start; healthy runs of the setting half stayed below 1.4",
        keys=("trainer.learning_rate", "controllers"),
        change="Lower the learning rate, or whatever pushes entropy up",
        look=_surged,
        value=_entropy_left,
    ),
    Rule(
        symptom="ratio exploding",
        threshold=0.10,
        why="share of tokens beyond the clip, or mean log ratio; healthy runs of the setting half stayed below 0.02",
        keys=("trainer.learning_rate", "trainer.num_iterations", "trainer.steps_per_generation"),
        change="Lower the learning rate, or make fewer updates of a rollout",
        look=_far,
    ),
)
