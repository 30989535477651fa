"""Groups of candidate questions for one dialogue prefix, each scored by what it is expected to tell.

    reward(q | prefix) = I(h; answer of q) under the belief after the prefix     an open question, in bits
                         0                                                       a question that was asked before
                         w max_h b(h)                                            submitting, where w is given

No user turn is needed: the expectation is over the belief's own answers. A prefix is a real dialogue of the
environment, played for k turns by a scripted policy, so its messages are those a model would have in front of it.

Source:  method card information-gain, section 2 ("Offline use"; ours, Nous publishes no construction)
Needs:   numpy

Bits.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from entrl.beliefs.estimators import TIE
from entrl.environments.diagram import DiagramShort
from entrl.environments.joint import JointBelief
from entrl.environments.model_policy import tools_of
from entrl.environments.play import Message, opened
from entrl.environments.policies import (
    FixedOrder,
    GreedyExact,
    RandomQuestions,
    ScriptedPolicy,
    most_likely,
    open_gains,
    open_questions,
    question_argument,
    scripted_turn,
)
from entrl.settings.json_lines import json_lines
from entrl.settings.names import suggest

CERTAIN = 1e-9  # bits; a question worth no more has a known answer, and rewards no further apart are equal
Kind = Literal["open", "certain", "repeated", "submit"]
POLICIES: dict[str, Callable[[], ScriptedPolicy]] = {
    "random": RandomQuestions,
    "fixed": FixedOrder,
    "greedy": GreedyExact,
}


@dataclass(frozen=True, kw_only=True)
class PrefixSpec:
    """Which dialogues candidates are asked for."""

    per_row: int = 2  # prefixes of each row of the task
    longest: int = 6  # questions; the length is uniform in 0 .. longest
    policies: dict[str, float] = field(default_factory=lambda: dict.fromkeys(POLICIES, 1.0))  # mixture of who asked
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("prefixes.per_row", self.per_row, 1)
        _at_least("prefixes.longest", self.longest, 0)
        for name, weight in self.policies.items():
            if name not in POLICIES:
                raise ValueError(
                    f"prefixes.policies has no {name!r}.{suggest(name, POLICIES)} There are {', '.join(POLICIES)}"
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"prefixes.policies.{name} is a weight and must be >= 0, got {weight!r}")
        if sum(self.policies.values()) <= 0:
            raise ValueError(f"prefixes.policies gives no policy any weight, got {self.policies}; such as random: 1")


@dataclass(frozen=True, kw_only=True)
class CandidateSpec:
    """What is compared after one prefix."""

    count: int | None = None  # candidates of each prefix; None: every question there is
    repeated: int = 1  # of a sampled group: so many that were asked before, where there are any
    certain: int = 1  # and so many open ones whose answer is known already, where there are any
    submit: float | None = None  # bits that a right submission is worth, paid by its probability; None: left out
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("candidates.repeated", self.repeated, 0)
        _at_least("candidates.certain", self.certain, 0)
        if self.submit is not None and not 0 < self.submit < float("inf"):
            raise ValueError(f"candidates.submit is in bits and must be > 0, got {self.submit}; null leaves it out")
        if self.count is None:
            return
        _at_least("candidates.count", self.count, 2)
        reserved = self.repeated + self.certain + (self.submit is not None)
        if self.count <= reserved:
            raise ValueError(
                f"candidates.count is {self.count}, and repeated + certain + submit take {reserved} of them; raise it "
                f"to {reserved + 1} or more, so that a good question can be among them"
            )


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One thing the model could do next."""

    kind: Kind
    key: str  # the question; of a submission what is submitted
    reward: float
    message: Message  # the assistant's turn, a tool call


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prefix and its candidates."""

    problem_id: str
    table_id: str
    policy: str  # who asked the questions of the prefix
    length: int  # questions of the prefix
    entropy: float  # bits left after it
    prompt: list[Message]  # the task's prompt, calls and tool messages
    tools: list[dict[str, Any]]  # JSON schemas, as the chat template gets them
    gains: dict[str, float]  # expected gain of every question of the environment, asked ones 0
    open: list[str]  # questions not asked yet
    candidates: list[Candidate]

    @property
    def best(self) -> float:
        """The largest expected gain of any question."""
        return max(self.gains.values())

    @property
    def random(self) -> float:
        """What a random open question is expected to tell; 0 where none is open."""
        return float(np.mean([self.gains[question] for question in self.open])) if self.open else 0.0

    @property
    def spread(self) -> float:
        """Best reward minus worst."""
        rewards = [candidate.reward for candidate in self.candidates]
        return max(rewards) - min(rewards)

    def is_best(self, question: str) -> bool:
        """True for a question worth as much as the best one."""
        return self.gains.get(question, 0.0) >= self.best - max(TIE, CERTAIN)


@dataclass(frozen=True, kw_only=True)
class Made:
    """Groups, and how many prefixes gave none."""

    groups: list[Group]
    flat: int  # left out: all candidates are worth the same
    repeated: int  # left out: the same messages as an earlier one


def make_groups(
    factory: Callable[[], Any],
    rows: Iterable[Mapping[str, Any]],
    prefixes: PrefixSpec,
    candidates: CandidateSpec,
) -> Made:
    """Groups for the rows of a task, in their order; the same arguments give the same groups.

    A prefix is shorter than drawn where its policy had nothing left to ask. Prefixes without anything to choose (all
    rewards equal) and copies of earlier ones are left out and counted. Raises ValueError where a row allows no further
    question after the longest prefix, `count` exceeds the questions, or nothing is left; TypeError for an environment
    whose questions are not listed.
    """
    names = [name for name, weight in prefixes.policies.items() if weight > 0]
    weights = np.array([prefixes.policies[name] for name in names], dtype=np.float64)
    environment, found, seen = factory(), [], {}
    flat = repeated = total = 0
    for number, row in enumerate(rows):
        for copy in range(prefixes.per_row):
            rng = np.random.default_rng([prefixes.seed, number, copy])
            policy = names[rng.choice(len(names), p=weights / weights.sum())]
            messages = played_prefix(environment, row, POLICIES[policy](), int(rng.integers(prefixes.longest + 1)), rng)
            _check_budget(environment, prefixes)
            group = group_of(
                environment, row, messages, candidates, np.random.default_rng([candidates.seed, number, copy]), policy
            )
            total += 1
            if group.spread <= CERTAIN:
                flat += 1
            elif (known := seen.setdefault(prompt_key(messages), group)) is not group:
                if known.gains != group.gains:
                    raise ValueError(
                        f"two prefixes of {group.table_id!r} and {known.table_id!r} have the same messages and other "
                        "gains, so what to ask does not follow from what is seen; show the table in the prompt"
                    )
                repeated += 1
            else:
                found.append(group)
    if not found:
        raise ValueError(
            f"none of {total} prefixes has anything to choose ({flat} with candidates of equal worth, {repeated} "
            "copies); take more rows, shorter prefixes, or more candidates"
        )
    return Made(groups=found, flat=flat, repeated=repeated)


def played_prefix(
    environment: Any, row: Mapping[str, Any], policy: ScriptedPolicy, length: int, rng: np.random.Generator
) -> list[Message]:
    """Reset the environment and ask up to `length` questions; the messages so far, the environment is left there."""
    messages = opened(list(row["prompt"]), environment.reset(**row))
    if not (hasattr(environment, "_table") or isinstance(environment, DiagramShort)):
        raise TypeError(
            f"{type(environment).__name__} lists no questions to score; candidates need twenty_questions, diagram or a "
            "subclass of theirs"
        )
    while environment._asked < min(length, environment._budget):
        question = policy.choose(environment, rng)
        if question is None:
            break
        messages += scripted_turn(environment, "ask", {question_argument(environment): question})
    return messages


def _check_budget(environment: Any, prefixes: PrefixSpec) -> None:
    if prefixes.longest >= environment._budget:
        raise ValueError(
            f"prefixes.longest is {prefixes.longest}, and the task allows {environment._budget} questions, so the "
            f"longest prefixes leave none to ask; set it to {environment._budget - 1} or less, or raise max_questions"
        )


def group_of(
    environment: Any,
    row: Mapping[str, Any],
    messages: list[Message],
    spec: CandidateSpec,
    rng: np.random.Generator,
    policy: str,
) -> Group:
    """The candidates after a dialogue, scored under the environment's belief as it is now."""
    left, asked = open_questions(environment), environment._estimator.asked
    gains = {
        **dict(zip(left, map(float, open_gains(environment)), strict=True)),
        **dict.fromkeys((question for question in asked), 0.0),
    }
    chosen = [
        Candidate(
            kind="repeated" if question in asked else "certain" if gains[question] <= CERTAIN else "open",
            key=question,
            reward=gains[question],
            message=_call("ask", {question_argument(environment): question}),
        )
        for question in _questions(gains, left, asked, spec, rng)
    ]
    if spec.submit is not None:
        arguments = most_likely(environment)
        chosen.append(
            Candidate(
                kind="submit",
                key=next(iter(arguments.values())),
                reward=spec.submit * chance_right(environment),
                message=_call("submit", arguments),
            )
        )
    return Group(
        problem_id=str(row.get("problem_id")),
        table_id=str(row.get("table_id")),
        policy=policy,
        length=environment._asked,
        entropy=float(environment._estimator.entropy()),
        prompt=messages,
        tools=schemas_of(environment),
        gains=gains,
        open=list(left),
        candidates=chosen,
    )


def _questions(
    gains: Mapping[str, float],
    left: Sequence[str],
    asked: Sequence[str],
    spec: CandidateSpec,
    rng: np.random.Generator,
) -> list[str]:
    """Which questions are compared: all of them, or a sample that keeps room for bad ones. Order of the environment."""
    if spec.count is None:
        return [*left, *asked]
    room = spec.count - (spec.submit is not None)
    if room > len(gains):
        raise ValueError(
            f"candidates.count is {spec.count}, and there are {len(gains)} questions to ask"
            f"{' and one submission' if spec.submit is not None else ''}; set it to "
            f"{len(gains) + (spec.submit is not None)} or less, or null for all of them"
        )
    known = [question for question in left if gains[question] <= CERTAIN]
    first = [*_some(rng, asked, spec.repeated), *_some(rng, known, spec.certain)]
    others = [question for question in left if question not in first]
    first += _some(rng, others, room - len(first))
    first += _some(rng, [question for question in asked if question not in first], room - len(first))
    return [str(question) for question in gains if question in first]


def _some(rng: np.random.Generator, names: Sequence[str], count: int) -> list[str]:
    return [str(names[int(i)]) for i in rng.permutation(len(names))[: max(count, 0)]]


def _call(tool: str, arguments: Mapping[str, Any]) -> Message:
    """As the tool loop's parser would return it."""
    call = {"type": "function", "function": {"name": tool, "arguments": dict(arguments)}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def chance_right(environment: Any) -> float:
    """P(the most likely submission is right) under the environment's belief."""
    if not isinstance(environment, DiagramShort):
        return float(environment._estimator.belief.probs.max())
    marginals = [environment._marginal(slot) for slot in environment._world.slots]
    belief = environment._estimator.belief
    if isinstance(belief, JointBelief):
        return float(belief.probs[tuple(int(marginal.argmax()) for marginal in marginals)])
    return float(np.prod([marginal.max() for marginal in marginals]))


def schemas_of(environment: Any) -> list[dict[str, Any]]:
    """JSON schemas of the tools; what `apply_chat_template` makes of the methods themselves."""
    from transformers.utils import get_json_schema

    return [get_json_schema(tool) for tool in tools_of(environment).values()]


def plain(value: Any) -> Any:
    """Without the nulls that a column of messages fills in where other rows have more keys."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def prompt_key(messages: Sequence[Message]) -> str:
    """Messages as one string; equal for equal messages, whatever a data set made of their missing keys."""
    return json.dumps(plain(list(messages)), sort_keys=True, ensure_ascii=False)


def summary_of(groups: Sequence[Group]) -> dict[str, Any]:
    """What a reader of the report wants to know of the groups."""
    kinds = [candidate.kind for group in groups for candidate in group.candidates]
    return {
        "prefixes": len(groups),
        "candidates": len(kinds),
        "kinds": {kind: kinds.count(kind) for kind in get_args(Kind)},
        "lengths": {str(n): sum(g.length == n for g in groups) for n in sorted({g.length for g in groups})},
        "policies": {name: sum(g.policy == name for g in groups) for name in sorted({g.policy for g in groups})},
        "mean_best": float(np.mean([group.best for group in groups])),
        "mean_random": float(np.mean([group.random for group in groups])),
    }


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """One line per prefix: its messages and tools, candidates as assistant messages, and their rewards."""
    path.write_text("".join(json.dumps(asdict(g), ensure_ascii=False) + "\n" for g in groups), encoding="utf-8")


def read_groups(path: Path) -> list[Group]:
    """What `write_groups` wrote; ValueError that names the line for anything else."""
    found = []
    for number, row in json_lines(path):
        try:
            found.append(Group(**{**row, "candidates": [Candidate(**one) for one in row["candidates"]]}))
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number} is no group of candidates: {error}; write it with write_groups"
            ) from None
    return found
