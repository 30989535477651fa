"""Fixed candidates in the place of generated completions: GRPO on groups that were made beforehand.

    A_i = (r_i - mean r) / (std r + 1e-4)      r_i the stored reward of candidate i, over the G candidates of a prefix

The candidates were not drawn from the policy. The gradient at the first step on a group is sum_i A_i grad log pi(c_i),
an advantage-weighted likelihood in which every candidate counts the same, however unlikely the policy finds it; the
gradient of the policy's expected gain would weigh candidate i by pi(c_i) over its chance of being listed. The
importance ratio of the loss is the policy now over the policy when the group was handed out: it knows nothing of how
candidates were chosen, and holds the policy near itself over the updates on one group only.

Source:  method card information-gain, section 2: "offline GRPO on groups built in advance" is Nous's headline method;
    its objective is not known. This form is ours
Needs:   trl
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from entrl.environments.model_policy import Ids
from entrl.teach.offline.candidates import Group, prompt_key
from entrl.teach.offline.rendering import Rendering

REWARD = "offline_reward"  # of each row, beside its completion


class OfflineRollouts:
    """TRL's `rollout_func`: the i-th generation of a prompt is its i-th candidate.

    Row i of a process is generation (process_index rows + i) mod G of its prompt, as TRL deals rows out, so a group may
    be split over processes. Raises ValueError for groups of different sizes, or two with the same prompt.
    """

    def __init__(self, groups: Sequence[Group], rendering: Rendering) -> None:
        self.size = group_size(groups)
        self._rendering = rendering
        self._groups = {prompt_key(group.prompt): group for group in groups}
        if len(self._groups) < len(groups):
            raise ValueError(
                f"{len(groups) - len(self._groups)} of {len(groups)} groups have the prompt of another, so a prompt "
                "does not tell its candidates; make the groups with make_groups, which keeps the first"
            )
        self._ids: dict[str, tuple[Ids, list[Ids]]] = {}

    def __call__(self, prompts: list, trainer: Any) -> dict[str, Any]:
        if trainer.num_generations != self.size:
            raise ValueError(
                f"num_generations is {trainer.num_generations}, and each prompt has {self.size} candidates; set it to "
                f"{self.size}"
            )
        first = trainer.accelerator.process_index * len(prompts)
        out: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": None, REWARD: []}
        for row, prompt in enumerate(prompts):
            key, number = prompt_key(prompt), (first + row) % self.size
            prefix, turns = self._tokens(key)
            out["prompt_ids"].append(list(prefix))
            out["completion_ids"].append(list(turns[number]))
            out[REWARD].append(self._groups[key].candidates[number].reward)
        return out

    def _tokens(self, key: str) -> tuple[Ids, list[Ids]]:
        """(prefix, turns of its candidates), rendered once."""
        if key not in self._groups:
            raise ValueError("a prompt of the data set has no group of candidates; make the data set with `group_rows`")
        if key not in self._ids:
            group = self._groups[key]
            turns = [self._rendering.turn(group.prompt, c.message, group.tools) for c in group.candidates]
            self._ids[key] = self._rendering.prefix(group.prompt, group.tools), turns
        return self._ids[key]


class OfflineReward:
    """The stored reward of each candidate, as TRL calls a reward function."""

    __name__: ClassVar[str] = "offline_gain"  # the name TRL logs

    def __call__(self, *, offline_reward: list[float], **_: object) -> list[float]:
        return list(offline_reward)


def group_size(groups: Sequence[Group]) -> int:
    """How many candidates every group has. ValueError where they differ."""
    sizes = {len(group.candidates) for group in groups}
    if len(sizes) != 1:
        raise ValueError(
            f"groups have {' or '.join(map(str, sorted(sizes))) or 'no'} candidates, and GRPO needs one size for all; "
            f"set candidates.count to {min(sizes, default=2)} or less"
        )
    return sizes.pop()


def group_rows(groups: Sequence[Group]) -> Any:
    """The data set of prompts (datasets.Dataset) that goes with `OfflineRollouts`."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": group.prompt} for group in groups], on_mixed_types="use_json")
