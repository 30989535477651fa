"""The numbers of an evaluation: how each is called, read, shown and paired. The one list of them.

The before/after table, `entrl compare` and the studies walk this list. A new number is computed in `entrl.evaluation`,
named here, and stands in all of them; `main=True` puts it into a study's tables and comparisons as well.

Needs: eval_*.json as `entrl.evaluation` writes it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from entrl.settings.json_lines import is_number


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of an evaluation, or a family of them: `*` in its name stands for a key of that group."""

    name: str  # in studies; also where it stands in the evaluation, "/" going into a group
    path: str = ""  # where it stands, if not where its name says
    title: str
    unit: str = ""  # "%": a share, shown times 100
    digits: int = 1
    interval: str = ""  # field of its 95 % interval
    problem: str = ""  # the same of one problem, a metric of `paired_difference`; "" = not recorded by problem
    pooled: bool = False  # a mean over tokens: its change is not the mean of the problems' changes
    more_is_better: bool | None = None  # None: no direction is better. True: held against a study's margin
    main: bool = False  # among the few that a study's tables and comparisons show
    absent: float | None = None  # what it is where its group is there without it

    @property
    def label(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def of_dialogues(self) -> bool:
        return self.path.startswith("inquiry/")

    def read(self, evaluation: Mapping[str, Any]) -> float | None:
        *groups, last = (self.path or self.name).split("/")
        group: Any = evaluation
        for key in groups:
            group = group.get(key) if isinstance(group, Mapping) else None
        value = group.get(last, self.absent) if isinstance(group, Mapping) else None
        return value if is_number(value) else None

    def text(self, value: float, *, sign: bool = False) -> str:
        scaled = value * (100 if self.unit == "%" else 1)
        return f"{scaled:{'+' if sign else ''}.{self.digits}f}".replace("-", "−")


NUMBERS = (
    Number(
        name="greedy_accuracy",
        title="Greedy accuracy",
        unit="%",
        interval="greedy_accuracy_ci",
        problem="greedy_correct",
        more_is_better=True,
        main=True,
    ),
    Number(
        name="sampled_accuracy",
        title="Sampled accuracy",
        unit="%",
        interval="sampled_accuracy_ci",
        problem="sampled_accuracy",
        more_is_better=True,
        main=True,
    ),
    Number(name="pass_at_k/*", title="pass@*", unit="%", more_is_better=True, main=True),
    Number(name="mean_length_greedy", title="Length, greedy", unit="tokens", problem="greedy_length"),
    Number(name="mean_length_sampled", title="Length, sampled", unit="tokens", problem="mean_length", main=True),
    Number(name="length/think", title="Length, thinking", unit="tokens", problem="mean_think_length"),
    Number(name="length/answer", title="Length, answer", unit="tokens", problem="mean_answer_length"),
    *(
        Number(
            name=f"{name}/{way}",
            path=f"inquiry/{way}/{name}/mean",
            title=f"{title}, {way}",
            unit=unit,
            problem=f"{'greedy' if way == 'greedy' else 'mean'}_{name}",
            more_is_better=True if unit else None,
        )
        for name, title, unit in (("questions", "Questions", ""), ("score", "Share of the answer right", "%"))
        for way in ("greedy", "sampled")
    ),
    Number(name="entropy/all", title="Entropy, all", unit="nats", digits=4, main=True),
    Number(
        name="entropy/think", title="Entropy, thinking", unit="nats", problem="think_entropy", pooled=True, digits=4
    ),
    Number(
        name="entropy/answer", title="Entropy, answer", unit="nats", problem="answer_entropy", pooled=True, digits=4
    ),
    Number(name="counts/*", title="* a completion", digits=2),
    Number(name="legal_share", title="Legal share of a plan", unit="%", problem="legal_share"),
    Number(name="errors/*", title="Error: *", unit="%", absent=0.0),
    Number(name="missing_close_rate", title="Missing closing tag", unit="%"),
    Number(name="truncation_rate", title="Truncated", unit="%"),
    Number(name="unverified", title="Unverified", digits=0),
)


def by_task(evaluation: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Task -> its result, of an evaluation of several tasks; {"": the evaluation} of one, {} of none."""
    if not evaluation:
        return {}
    return dict(evaluation["tasks"]) if "tasks" in evaluation else {"": evaluation}


def of_problem(metric: str) -> Number:
    """The number whose value of one problem is called so."""
    return next(number for number in NUMBERS if number.problem == metric)


def find(name: str) -> Number | None:
    """The number of that name, a member of a family with its own title; None for what is no number of an evaluation."""
    number = next((n for n in NUMBERS if fnmatchcase(name, n.name)), None)
    return number and replace(number, name=name, title=number.title.replace("*", name.rpartition("/")[2]))


def named(name: str) -> Number:
    number = find(name)
    if number is None:
        raise ValueError(f"{name!r} is no number of an evaluation; there are {', '.join(n.name for n in NUMBERS)}")
    return number


def numbers_of(evaluations: Sequence[Mapping[str, Any]]) -> list[Number]:
    """The list, with a family's members that some of these evaluations hold; pass@1 is the sampled accuracy."""
    opened = (_members(n.name, evaluations) if "*" in n.name else [n.name] for n in NUMBERS)
    return [named(name) for names in opened for name in names]


def _members(family: str, evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the keys that some evaluation has in that group; pass@1 is the sampled accuracy."""
    group = family.partition("/")[0]
    keys = {key for e in evaluations for key in (e.get(group) or {})} - {"1"}
    return [family.replace("*", key) for key in sorted(keys, key=lambda key: (len(key), key))]
