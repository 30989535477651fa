"""Birdie: more of the tasks whose loss is falling.

    q = (new - old) / (old + 1e-8)
    n = sqrt(new old) q^3 e
    R = clip(-100 e tanh(n), -1, 1)          e = 2.718...

The cube makes small changes count almost nothing: at loss 2 a drop of 1 % gives 0.0015, of 5 % 0.18, of 9 % all of 1.
A loss of exactly 0 before or after gives 0, also 0.3 -> 0: a cross-entropy never is, 1 - accuracy often.
The bandit moves each task's value towards its reward and draws tasks by them:

    Q <- Q + step (R - Q)        w_i = (1 - explore) exp(Q / temperature) / Z + explore / P

where Z sums the exponentials over the P prompts: a task without rewards keeps the share its prompts are of the data.

Source:  samblouir/birdie, birdie_rl/birdie_reward_model/agent_bird.py calculate_reward; exploration ends at 0.2 there
Differs: there a network predicts rewards from (losses, action) and searches for the best action; this is a plain
         bandit, its numbers ours. The loss is 1 - accuracy of the completions of `every` rollouts; a task that
         was not met keeps its loss
Needs:   a column that names each prompt's task; `data.mixture` writes `task`
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from entrl.curriculum.rules import Floats, Prompts, Rule, Tried


def loss_reward(old: float, new: float) -> float:
    """Reward in [-1, 1] for a task whose loss (>= 0) went from old to new: above 0 where it fell."""
    if min(old, new) < 0:
        raise ValueError(f"losses are >= 0, got {old} and {new}")
    change = (new - old) / (old + 1e-8)
    return max(-1.0, min(1.0, -100 * math.e * math.tanh(math.sqrt(new * old) * change**3 * math.e)))


@dataclass(kw_only=True)
class Birdie(Rule):
    name: ClassVar[str] = "birdie"
    by_prompt: ClassVar[bool] = False

    column: str = "task"
    every: int = 8  # rollouts between two rewards
    step: float = 0.3  # of the values, in (0, 1]
    temperature: float = 0.25  # in units of the reward
    explore: float = 0.2  # share of the draws that no value touches

    _losses: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _values: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _window: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)  # task -> trials, passes
    _rollouts: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"birdie: every counts rollouts, at least 1; got {self.every}")
        if not 0 < self.step <= 1:
            raise ValueError(f"birdie: step must be in (0, 1], got {self.step}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"birdie: temperature must be finite and > 0, got {self.temperature}")
        if not 0 <= self.explore <= 1:
            raise ValueError(f"birdie: explore must be in [0, 1], got {self.explore}")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def weights(self, prompts: Prompts) -> Floats:
        task_P = prompts.columns[self.column]
        if wrong := [i for i, task in enumerate(task_P) if not isinstance(task, (str, int))]:
            raise ValueError(
                f"birdie: the column {self.column!r} holds {task_P[wrong[0]]!r} for prompt {wrong[0]}; it names each "
                "prompt's task: give it one, or leave the prompt out"
            )
        value_P = np.array([self._values.get(task, 0.0) for task in task_P]) / self.temperature
        soft_P = np.exp(value_P - value_P.max())
        return (1 - self.explore) * soft_P / soft_P.sum() + self.explore / len(soft_P)

    def observed(self, prompts: Prompts, tried: Tried) -> None:
        task_P = prompts.columns[self.column]
        for prompt, trials, passes in zip(tried.prompt_G, tried.trials_G, tried.passes_G, strict=True):
            window = self._window.setdefault(task_P[prompt], [0, 0])
            window[0] += trials
            window[1] += passes
        self._rollouts += 1
        if self._rollouts % self.every == 0:
            self._reward()

    def _reward(self) -> None:
        for task, (trials, passes) in sorted(self._window.items()):
            if trials == 0:
                continue
            loss, value = (trials - passes) / trials, self._values.get(task, 0.0)
            if task in self._losses:
                self._values[task] = value + self.step * (loss_reward(self._losses[task], loss) - value)
            self._losses[task] = loss
        self._window = {}

    def state_dict(self) -> dict[str, Any]:
        window = {task: list(counts) for task, counts in self._window.items()}
        state = {"losses": dict(self._losses), "values": dict(self._values), "window": window}
        return {**state, "rollouts": self._rollouts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses, self._values = dict(state["losses"]), dict(state["values"])
        self._window = {task: list(counts) for task, counts in state["window"].items()}
        self._rollouts = int(state["rollouts"])


rule = Birdie()
