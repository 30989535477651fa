"""Filling a rollout with groups that pass the filter: new prompts, draws on every rank alike, rows put together.

`entrl.maths.group_filter` says which groups pass. Here: where further prompts come from, how many generations that
takes, and one batch of TRL's out of the kept groups of several. Whole groups per rank are needed; a rank's groups stay
where they were made, so ranks draw until the one that lacks most is full.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from entrl.controllers.hooks import Ranks
from entrl.maths.group_filter import VERDICTS, GroupFilter, Verdict
from entrl.trainers.grpo.splice import Batch, scaled_over_the_batch, spliced
from entrl.trainers.shared.rewards import reward_name
from entrl.trainers.shared.row_columns import loss_mask

CORRECT = "correct"  # a published column: 1, 0, or -1 where the verdict is not known
ACCURACY = "accuracy"  # the name of a reward function whose values are scores
NO_VERDICTS = f"filter_on: accuracy finds no verdicts: no reward is called {ACCURACY!r} or publishes {CORRECT!r}"


class PromptSource:
    """Further prompts out of the training set: shuffled passes of its own, the same on every rank, dealt by rank.

    The trainer's own order is left alone, so a run's epochs count the prompts it was scheduled to see; those drawn here
    come on top, and either may meet a prompt the other has had.
    """

    def __init__(self, dataset: Any, *, seed: int, rank: int, world_size: int) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                "filter_on draws prompts at random, which a streamed data set cannot give; load it whole "
                "(streaming: false) or set filter_on: null"
            )
        self.dataset, self.seed, self.rank, self.world_size = dataset, seed, rank, world_size
        self.taken = 0  # prompts, over all ranks
        self._pass = -1
        self._order: list[int] = []

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next `count` prompts of this rank; every rank must ask for equally many."""
        first = self.taken + self.rank * count
        self.taken += count * self.world_size
        return [self.dataset[self._index(i)] for i in range(first, first + count)]

    def _index(self, place: int) -> int:
        size = len(self.dataset)
        if place // size != self._pass:
            self._pass = place // size
            self._order = random.Random(f"group filter {self.seed} {self._pass}").sample(range(size), size)
        return self._order[place % size]


class GroupFiltering:
    """The filter at work in one trainer.

    group_size: completions per prompt; reward_names, reward_weights: of the F reward functions
    scale: TRL's `scale_rewards`; aggregation: its `multi_objective_aggregation`
    """

    def __init__(
        self,
        rule: GroupFilter,
        prompts: PromptSource,
        *,
        group_size: int,
        ranks: Ranks,
        reward_names: Sequence[str],
        reward_weights: Tensor,
        scale: str,
        aggregation: str,
        pad_token_id: int,
    ) -> None:
        self.rule, self.prompts, self.ranks = rule, prompts, ranks
        self.group_size = group_size
        self.reward_names, self.reward_weights = list(reward_names), reward_weights
        self.scale, self.aggregation = scale, aggregation
        self.pad_token_id = pad_token_id
        self.prompts_seen, self.prompts_dropped = 0, 0  # over all ranks, since the start of the run
        self.metrics: dict[str, float] = {}  # of the latest rollout
        self.notes: list[str] = []  # warnings for the user out of the latest rollout

    def fill(self, first: Batch, draw: Callable[[list[dict[str, Any]]], Batch]) -> Batch:
        """`first` with groups that pass in the places of those that do not; the same batch where all pass.

        draw: one more generation, from this rank's rows of the data set (each prompt `group_size` times in a row).
            Called equally often, with equally many rows, on every rank.
        Raises RuntimeError (on every rank) where `max_tries` generations did not fill the rollout and the rule says so.
        """
        self.notes = []
        places = self._groups_of(first)
        batches, verdicts = [first], [self._verdicts(first)]
        picks: list[tuple[int, int]] = [(0, g) for g in range(places)]  # (batch, group) per place
        open_places = [g for g, verdict in enumerate(verdicts[0]) if verdict != "kept"]
        surplus, tries, device = 0, 1, first.rewards_NF.device
        while missing := self.ranks.max(len(open_places)):
            if tries == self.rule.max_tries:
                break
            seen, kept = self._over_ranks(
                [sum(map(len, verdicts)), sum(v.count("kept") for v in verdicts)], device=device
            )
            count = self.rule.groups_to_draw(missing, kept=kept, seen=seen, most=places)
            rows = [dict(prompt) for prompt in self.prompts.take(count) for _ in range(self.group_size)]
            batch = draw(rows)
            tries += 1
            found = self._verdicts(batch)
            good = [g for g, verdict in enumerate(found) if verdict == "kept"]
            filled = min(len(good), len(open_places))
            for place, group in zip(open_places[:filled], good[:filled], strict=True):
                picks[place] = (len(batches), group)
            open_places, surplus = open_places[filled:], surplus + len(good) - filled
            batches.append(batch if filled else replace(batch, output={}))  # rows nobody needs need no memory
            verdicts.append(found)
        self._note_hidden_signal(batches, verdicts)
        self._measure(verdicts, tries=tries, surplus=surplus, unfilled=len(open_places), device=device)
        if self.metrics["filter/unfilled"] and self.rule.on_exhausted == "error":
            raise RuntimeError(self._exhausted_text())
        if self.metrics["filter/unfilled"]:
            self.notes.append(self._exhausted_text())
        if not self.ranks.max(int(any(batch for batch, _ in picks))):
            return first
        return self._assembled(batches, picks)

    # Judging

    def _groups_of(self, batch: Batch) -> int:
        groups, rest = divmod(len(batch), self.group_size)
        if rest:
            raise ValueError(
                f"the group filter needs whole groups on each process, and {len(batch)} rows are no multiple of "
                f"num_generations={self.group_size}; make per_device_train_batch_size x steps_per_generation one"
            )
        return groups

    def _verdicts(self, batch: Batch) -> list[Verdict]:
        scores = self._scores(batch) if self.rule.on == "accuracy" else [None] * len(batch)
        rewards = self._weighted(batch.rewards_NF)
        size = self.group_size
        return [
            self.rule.verdict(scores[i : i + size], rewards[i : i + size])
            for i in range(0, self._groups_of(batch) * size, size)
        ]

    def _scores(self, batch: Batch) -> list[float | None]:
        """Each row's score, from the published verdicts or from the reward function called accuracy."""
        if CORRECT in batch.rollout.columns:
            return [None if v < 0 else float(v) for v in batch.rollout.columns[CORRECT]]
        if ACCURACY in self.reward_names:
            column = batch.rewards_NF[:, self.reward_names.index(ACCURACY)]
            return [None if math.isnan(v) else v for v in column.tolist()]
        raise ValueError(f"{NO_VERDICTS} (rewards: {', '.join(self.reward_names)}); filter on reward instead")

    def _weighted(self, rewards_NF: Tensor) -> list[float | None]:
        """The weighted sum TRL trains with; None where no reward function applied."""
        total_N = (rewards_NF.double() * self.reward_weights.to(rewards_NF.device).double()).nansum(1)
        scored_N = ~rewards_NF.isnan().all(1)
        return [r if known else None for r, known in zip(total_N.tolist(), scored_N.tolist(), strict=True)]

    def _note_hidden_signal(self, batches: Sequence[Batch], verdicts: Sequence[Sequence[Verdict]]) -> None:
        """Which reward functions told completions apart in groups that went for being right."""
        if self.rule.on != "accuracy":
            return
        apart_F = torch.zeros_like(self.reward_weights, dtype=torch.int64, device=batches[0].rewards_NF.device)
        for batch, found in zip(batches, verdicts, strict=True):
            grouped_PGF = batch.rewards_NF.view(len(found), self.group_size, -1)
            easy_P = torch.tensor([v == "too_easy" for v in found], device=grouped_PGF.device)
            low_PF, high_PF = grouped_PGF.nan_to_num(math.inf).amin(1), grouped_PGF.nan_to_num(-math.inf).amax(1)
            apart_F += ((high_PF > low_PF) & easy_P[:, None]).sum(0)
        counts, weights = self.ranks.sum(apart_F).tolist(), self.reward_weights.tolist()
        apart = [n for n, count, w in zip(self.reward_names, counts, weights, strict=True) if count and w]
        if apart:
            self.notes.append(
                f"filter_on: accuracy removes groups of right answers, in which {', '.join(apart)} tells completions "
                "apart: that signal is not trained on. Filter on reward to keep it"
            )

    # Counting

    def _over_ranks(self, numbers: Sequence[int], *, device: torch.device) -> list[int]:
        return self.ranks.sum(torch.tensor(numbers, device=device)).tolist()

    def _measure(
        self,
        verdicts: Sequence[Sequence[Verdict]],
        *,
        tries: int,
        surplus: int,
        unfilled: int,
        device: torch.device,
    ) -> None:
        """Numbers of the rollout over all ranks; every prompt is in exactly one of the counts below `prompts`."""
        flat = [verdict for found in verdicts for verdict in found]
        counted = [*(flat.count(v) for v in VERDICTS), surplus, unfilled]
        *of_verdict, surplus_all, unfilled_all = self._over_ranks(counted, device=device)
        counts = dict(zip(VERDICTS, of_verdict, strict=True))
        seen = sum(of_verdict)
        dropped = seen - (counts["kept"] - surplus_all + unfilled_all)  # all but those that are trained on
        self.prompts_seen += seen
        self.prompts_dropped += dropped
        self.metrics = {
            "filter/pass_rate": counts["kept"] / seen,
            "filter/tries": float(tries),
            "filter/prompts": float(seen),
            **{f"filter/{v}": float(n) for v, n in counts.items() if v != "kept"},
            "filter/surplus": float(surplus_all),  # passed, and found no place
            "filter/unfilled": float(unfilled_all),  # places left with a group that did not pass
            "filter/dropped_total": float(self.prompts_dropped),
            "filter/prompts_total": float(self.prompts_seen),
        }

    def _exhausted_text(self) -> str:
        m = self.metrics
        wanted = "neither all right nor all wrong" if self.rule.on == "accuracy" else "rewards that differ"
        return (
            f"the group filter found no group for {m['filter/unfilled']:.0f} places in {m['filter/tries']:.0f} "
            f"generations ({m['filter/prompts']:.0f} prompts, {m['filter/pass_rate']:.1%} with {wanted}); take prompts "
            "nearer to what the policy can do, raise num_generations or filter_max_tries, or loosen the bounds"
        )

    # Putting together

    def _assembled(self, batches: Sequence[Batch], picks: Sequence[tuple[int, int]]) -> Batch:
        batch = spliced(batches, picks, group_size=self.group_size, pad_token_id=self.pad_token_id)
        batch.output["num_items_in_batch"] = self.ranks.sum(loss_mask(batch.output).sum())
        if self.scale == "batch" or self.aggregation == "normalize_then_sum":
            every_NF = self.ranks.gather(batch.rewards_NF)
            advantages_N = scaled_over_the_batch(
                every_NF,
                self.reward_weights.to(every_NF.device),
                group_size=self.group_size,
                aggregation=self.aggregation,
            )
            first = self.prompts.rank * len(batch)
            batch.output["advantages"] = advantages_N[first : first + len(batch)]
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.prompts.taken,
            "prompts_seen": self.prompts_seen,
            "prompts_dropped": self.prompts_dropped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prompts.taken = int(state["taken"])
        self.prompts_seen, self.prompts_dropped = int(state["prompts_seen"]), int(state["prompts_dropped"])


def filter_rule(args: Any) -> GroupFilter | None:
    """The filter that these options ask for; ValueError where they contradict each other. None without `filter_on`."""
    on = getattr(args, "filter_on", None)
    if on is None:
        return None
    return GroupFilter(
        on=on,
        low=args.filter_low,
        high=args.filter_high,
        min_std=args.filter_min_std,
        max_tries=args.filter_max_tries,
        on_exhausted=args.filter_exhausted,
    )


def filter_problems(args: Any, reward_funcs: Sequence[Any], *, whole_groups: bool) -> list[str]:
    """What makes the filter of these options impossible; empty without `filter_on`."""
    try:
        rule = filter_rule(args)
    except ValueError as error:
        return [str(error)]
    if rule is None:
        return []
    problems = []
    if not whole_groups:
        problems.append(
            "filter_on puts whole groups in the places of others, and groups are split over processes; make "
            "per_device_train_batch_size x steps_per_generation a multiple of num_generations"
        )
    sources = [r for r in reward_funcs if reward_name(r) == ACCURACY or CORRECT in getattr(r, "published_columns", ())]
    if rule.on == "accuracy" and not sources:
        problems.append(f"{NO_VERDICTS}; add the reward accuracy (weight 0 will do), or filter on reward")
    return problems
