"""The rule table: symptom, threshold with its reason, evidence, and the recipe keys to change.

A rule looks at the metric rows of a training run, in the order of their steps, and says what the newest of them show or
nothing: a symptom that has gone away is no finding. Where one symptom is only the consequence of another that is there,
it is silent (`unless`). The last rules look at what `entrl doctor` finds in a few sampled prompts, as one row of
`start/...`, which no training logs. It knows no trainer: the watchdog of `entrl train`, `entrl advise`, `entrl doctor`
and the report's health are its faces.

    curves   rows that grow, read once       looks    what each rule sees in them
    bounds   where the numbers of a recipe lie, and from where on `entrl plan` and `entrl train` say that they are odd

Source:  own design; docs/reliability.md has on which runs thresholds were set and on which they were judged
Needs:   rows as metrics.jsonl has them (docs/metrics.md); a number that is none may be NaN, infinite or None. Whoever
         looks at every new row keeps `Curves` and appends to them
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from entrl.diagnosis import looks
from entrl.diagnosis.curves import Curves, Row
from entrl.diagnosis.looks import Look

Rows = Iterable[Row] | Curves


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table. look: evidence in words, "" where the symptom is not there."""

    symptom: str
    threshold: float
    why: str  # of the threshold
    keys: tuple[str, ...]  # of the recipe
    change: str
    look: Look
    value: Callable[[Curves], str] = lambda curves: ""  # what was looked at, in words; rules may share it
    excuse: Callable[[Curves], str] = lambda curves: ""  # why it is as it was asked to be
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
    curves = _curves(rows)
    found = there(curves)
    told = [rule for rule in RULES if rule.symptom in found and not found.keys() & set(rule.unless)]
    return [Finding(rule, found[rule.symptom], rule.excuse(curves)) for rule in told]


def there(rows: Rows) -> dict[str, str]:
    """symptom -> evidence, consequences among them."""
    curves = _curves(rows)
    return {rule.symptom: evidence for rule in RULES if (evidence := rule.look(curves, rule.threshold))}


def values_of(rows: Rows) -> list[str]:
    """What was looked at and found well."""
    curves = _curves(rows)
    bad = {found.rule.value for found in seen(curves)}
    values = dict.fromkeys(rule.value for rule in RULES if rule.value not in bad)
    return [text for value in values if (text := value(curves))]


def _curves(rows: Rows) -> Curves:
    return rows if isinstance(rows, Curves) else Curves(rows)


def rule_of(symptom: str) -> Rule:
    return next(rule for rule in RULES if rule.symptom == symptom)


def said_of_the_start(warning: str) -> Rule | None:
    """The rule that says of the whole run what this warning of the trainer says of its first completions."""
    return next((rule for rule in RULES if rule.said_by and warning.startswith(rule.said_by)), None)


_flat_groups = looks.end_of("groups/without_spread", "of groups without spread")

RULES = (
    Rule(
        symptom="not a number",
        threshold=0,
        why="one is enough: weights that hold it never recover",
        keys=("trainer.learning_rate", "trainer.max_grad_norm"),
        change="Lower the learning rate, and start over from a checkpoint before it",
        look=looks.no_numbers,
    ),
    Rule(
        symptom="truncated",
        threshold=0.10,
        why="above it length and accuracy say more about the limit than about the policy",
        keys=("trainer.max_completion_length",),
        change="Raise the limit, or add a length reward",
        look=looks.share_of("completions/clipped_ratio", "truncated"),
        value=looks.end_of("completions/clipped_ratio", "truncated"),
    ),
    Rule(
        symptom="tags never seen",
        threshold=0,
        why="a tag that the model knows stands in some completion of a rollout",
        keys=("trainer.think_open", "trainer.think_close"),
        change="Set the tags that the model writes; look at completions.jsonl",
        look=looks.no_tag,
        unless=("truncated",),
        said_by="trainer.think_close:",
    ),
    Rule(
        symptom="thinking not closed",
        threshold=0.10,
        why="above it what is called thinking and answer is often neither",
        keys=("trainer.think_open", "trainer.think_close", "rewards"),
        change="Set the tags that the model writes, or add think_format to the rewards",
        look=looks.share_of("pear/missing_close", "never close their thinking"),
        value=looks.end_of("pear/missing_close", "without a closing tag"),
        unless=("tags never seen", "truncated"),
    ),
    Rule(
        symptom="no reward",
        threshold=0,
        why="rewards are sums of few values; none differs from 0",
        keys=("rewards", "data.task", "trainer.think_close", "trainer.max_completion_length"),
        change="Look at completions.jsonl: golds, tags, limit of tokens; else take easier problems or a cold start",
        look=looks.no_reward,
        said_by="every reward of the first",
    ),
    Rule(
        symptom="rewards equal",
        threshold=0.20,
        why="a fifth of the compute trains nothing; of fewer than ten rollouts all must be flat",
        keys=("data.task", "trainer.num_generations", "trainer.filter_on"),
        change="Take problems that are sometimes solved, more completions a prompt, or filter_on: reward",
        look=looks.equal,
        value=_flat_groups,
        unless=("no reward",),
    ),
    Rule(
        symptom="groups flat",
        threshold=0.80,
        why="four fifths of the completions give no gradient",
        keys=("data.task", "trainer.filter_on"),
        change="Take harder or easier problems, or filter_on: reward",
        look=looks.mostly_equal,
        value=_flat_groups,
        unless=("no reward", "rewards equal"),
    ),
    Rule(
        symptom="gradient zero",
        threshold=0,
        why="a norm that is exactly 0 moves no weight",
        keys=("rewards", "trainer.mask_truncated_completions", "trainer.num_generations"),
        change="See which completions count: all of them truncated and masked, or no advantage",
        look=looks.still,
        unless=("no reward", "rewards equal", "groups flat"),
    ),
    Rule(
        symptom="entropy collapsed",
        threshold=0.30,
        why="share of the start below which sampling has little left to explore",
        keys=("trainer.learning_rate", "controllers"),
        change="Lower the learning rate, or hold entropy up with kl_cov or the guard",
        look=looks.collapsed,
        value=looks.entropy_left,
        excuse=looks.asked_for_less,
    ),
    Rule(
        symptom="entropy surged",
        threshold=2.0,
        why="times the start; healthy runs of the setting half stayed below 1.4",
        keys=("trainer.learning_rate", "controllers"),
        change="Lower the learning rate, or whatever pushes entropy up",
        look=looks.surged,
        value=looks.entropy_left,
    ),
    Rule(
        symptom="ratio exploding",
        threshold=0.10,
        why="share of tokens beyond the clip, or mean log ratio; healthy runs of the setting half stayed below 0.02",
        keys=("trainer.learning_rate", "trainer.num_iterations", "trainer.steps_per_generation"),
        change="Lower the learning rate, or make fewer updates of a rollout",
        look=looks.far,
    ),
    Rule(
        symptom="start without entropy",
        threshold=0.02,
        why="nats a token below which nearly every sample of a prompt is the same; our choice",
        keys=("trainer.temperature", "model.path"),
        change="Raise the temperature, or start from a model before such training",
        look=looks.at_start(
            "entropy",
            lambda nats, least: nats < least,
            lambda nats, _: (
                f"the entropy of the start is {nats:.3f} nats a token: samples of a prompt are nearly "
                "alike, and controllers have nothing to hold up"
            ),
        ),
    ),
    Rule(
        symptom="PEAR has nothing to take",
        threshold=0,
        why="PEAR takes the entropy that thinking has over alpha times the answer's, and nothing below it",
        keys=("rewards",),
        change="Lower its alpha, or leave PEAR out",
        look=looks.at_start(
            "pear_left",
            lambda nats, least: nats <= least,
            lambda nats, _: f"PEAR's penalty is 0 on average: H_think - alpha H_answer = {nats:.3f} nats",
        ),
    ),
    Rule(
        symptom="not verified",
        threshold=0,
        why="a completion that cannot be judged is paid nothing by a verifier; sound golds leave none",
        keys=("data.task",),
        change="Look at their golds",
        look=looks.at_start(
            "unverified",
            lambda share, most: share > most,
            lambda share, _: f"{share:.0%} of completions could not be verified",
        ),
    ),
    Rule(
        symptom="sampler and trainer differ",
        threshold=0.02,
        why="nats a token, mean; where the trainer raises its alarm too (trainer.vllm_gap_alarm)",
        keys=("model.dtype", "model.attn_implementation"),
        change="Take float32, or another attention kernel",
        look=looks.at_start(
            "sampler_gap",
            lambda nats, most: nats > most,
            lambda nats, _: f"the sampler's log-probs differ from the trainer's by {nats:.3f} nats a token on average",
        ),
    ),
)
