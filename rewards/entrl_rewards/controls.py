r"""Control rewards of model-task alignment: what a run gains where the reward says little or nothing about the answer.

    truth       r = F [y is right]                                  format       r = F
    random      r = F c, c a fair coin                              incorrect    r = F (1 - [y is right])
    majority    r = F [y answers as most of its group do]
    likelihood  r = mean over the policy's own tokens of ln pi(y_t)   (entropy minimisation)

F is 1 for a well-formed completion: `think_format`'s rule, or with `form: think_answer` a full match of

    ^<think>.*?</think>\s*<answer>.*?</answer>$

and with `form: none` always. A method that gains as much under `random` as under its own reward has shown nothing about
that reward: `entrl compare` says so.

Source:  hkust-nlp/model-task-align-rl at ee8637c, src/syn_logic_reward.py (truth, format, random, incorrect, entropy
         minimisation); majority: TTRL, arXiv 2504.16084, which a script of the repository names and its table lacks
Differs: their regular expression has no DOTALL, so that a line feed inside either block fails it: `newlines: false`
         does the same. Their coin is not seeded. Where a check failed nobody is paid; of equally frequent
         answers the one given first is the majority, and completions without an answer vote for none
Needs:   truth and incorrect: what `correctness` needs. random, majority: group_index of EntropyGRPOTrainer, whole
         groups; majority also answer_texts. likelihood: token_logprobs, token_mask
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from entrl.verify.answers import completion_text
from entrl_rewards.correctness import ACCURACY, Gated, Verifier, judge
from entrl_rewards.groups import mix
from entrl_rewards.options import check_choices
from entrl_rewards.think_format import ThinkFormat

Arm = Literal["truth", "format", "random", "incorrect", "majority", "likelihood"]

JUDGED, GROUPED = ("truth", "incorrect"), ("random", "majority")
PATTERN = r"^<think>.*?</think>\s*<answer>.*?</answer>$"


def think_then_answer(text: str, *, newlines: bool = True) -> bool:
    """Whether the whole text is a think block and an answer block; newlines: whether either may hold line feeds."""
    return re.match(PATTERN, text.strip(), re.DOTALL if newlines else 0) is not None


def coins(group_index: Sequence[int], *, seed: int, call: int) -> list[bool]:
    """A fair coin for each row, from seed, call, its group and its place in it; the same however ranks share groups."""
    seen: Counter[int] = Counter()
    tossed = []
    for group in group_index:
        generator = torch.Generator().manual_seed(mix(seed, call, group, seen[group]))
        tossed.append(bool(torch.rand((), generator=generator) < 0.5))
        seen[group] += 1
    return tossed


def in_majority(answers: Sequence[str], group_index: Sequence[int]) -> list[bool]:
    """Whether each row's answer is the most frequent of its group; "" is no answer. White space does not count."""
    squeezed = [" ".join(answer.split()) for answer in answers]
    votes: dict[int, Counter[str]] = {}
    for answer, group in zip(squeezed, group_index, strict=True):
        if answer:
            votes.setdefault(group, Counter())[answer] += 1
    winner = {group: count.most_common(1)[0][0] for group, count in votes.items()}  # of equals the first
    return [bool(answer) and answer == winner[group] for answer, group in zip(squeezed, group_index, strict=True)]


@dataclass
class Calls:
    """What a checkpoint holds: rollouts that were rewarded."""

    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Control(Gated):
    """One arm of the suite as TRL calls it; logged as `control_<arm>`."""

    arm: Arm = "random"
    form: Literal["think", "think_answer", "none"] = "think"
    newlines: bool = True  # of think_answer; False: as the published regular expression
    seed: int = 0  # of the coin
    correctness: Verifier = ACCURACY

    _calls: Calls = field(default_factory=Calls, init=False, repr=False, compare=False)
    _think: ClassVar[ThinkFormat] = ThinkFormat()

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.newlines and self.form != "think_answer":
            raise ValueError(f"newlines is of form: think_answer, and form is {self.form!r}; leave newlines out")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"control_{self.arm}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals the trainer must deliver."""
        if self.arm == "likelihood":
            return ("token_logprobs", "token_mask")
        shaped = self._think.needs if self.form == "think" else ()
        grouped = ("group_index", "training") if self.arm in GROUPED else ()
        return (*shaped, *grouped, *(("answer_texts",) if self.arm in ("majority", *JUDGED) else ()))

    @property
    def needs_whole_groups(self) -> bool:
        return self.arm in GROUPED

    @property
    def judges(self) -> str | None:
        return super().judges if self.arm in JUDGED else None

    @property
    def columns(self) -> tuple[str, ...]:
        return super().columns if self.arm in JUDGED else ()

    def __call__(self, *, completions: list[Any], **signals: Any) -> list[float | None]:
        if self.arm == "likelihood":
            return self._likelihood(signals)
        said = self._said(completions, signals)
        formed = self._formed(completions, signals)
        return [None if right is None else float(right and good) for right, good in zip(said, formed, strict=True)]

    def _said(self, completions: list[Any], signals: dict[str, Any]) -> Sequence[bool | None]:
        """What the arm says of each completion apart from its form."""
        if self.arm in JUDGED:
            verdicts = judge(self.correctness, completions=completions, **signals)
            return verdicts if self.arm == "truth" else [None if right is None else not right for right in verdicts]
        if self.arm == "format":
            return [True] * len(completions)
        groups = self._signal("group_index", signals)
        if self.arm == "majority":
            return in_majority(self._signal("answer_texts", signals), groups)
        call = self._calls.count
        if signals.get("training", True):
            self._calls.count += 1
        return coins(groups, seed=self.seed, call=call)

    def _formed(self, completions: list[Any], signals: dict[str, Any]) -> list[bool]:
        if self.form == "none":
            return [True] * len(completions)
        if self.form == "think":
            return [score == 1 for score in self._think(completions=completions, **signals)]
        return [think_then_answer(completion_text(c), newlines=self.newlines) for c in completions]

    def _likelihood(self, signals: dict[str, Any]) -> list[float | None]:
        """Nats per token; None for a completion without a token of the policy's own."""
        rows = self._signal("token_logprobs", signals)
        masks = signals.get("token_mask") or [None] * len(rows)
        own = [row if mask is None else row[torch.as_tensor(mask)] for row, mask in zip(rows, masks, strict=True)]
        return [float(row.double().mean()) if len(row) else None for row in own]

    def _signal(self, name: str, signals: dict[str, Any]) -> Any:
        if signals.get(name) is None:
            raise TypeError(f"controls, arm {self.arm}: needs {name}; train with EntropyGRPOTrainer, which delivers it")
        return signals[name]

    def state_dict(self) -> dict[str, int]:
        return {"calls": self._calls.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._calls.count = int(state["calls"])


truth = Control(arm="truth")
formatted = Control(arm="format")
random = Control(arm="random")
incorrect = Control(arm="incorrect")
majority = Control(arm="majority")
likelihood = Control(arm="likelihood")
reward = random
